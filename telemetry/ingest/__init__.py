"""Ingest: the way of an event from the socket into a journal, and of its acknowledgement back."""
