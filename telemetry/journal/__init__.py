"""The journal of a run: durable, append-only, numbered by rows."""
