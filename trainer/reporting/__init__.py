"""Reporting: a run's metrics and messages, to the record and to the person at the terminal."""
