"""Journal of a run: a durable, append-only log of events, numbered by rows."""
