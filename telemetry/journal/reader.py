"""Reading a journal: rows in order, no further than what is on disk.

In: the journal directory of a run, live or finished.
Out: rows, and what is damaged or missing between them.
Never: writes, locks, or reads past the durable mark of a live journal.
"""
