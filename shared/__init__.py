"""What the trainer and the sidecar have in common: events, wire, records, and the emitter."""
