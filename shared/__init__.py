"""Code that both the trainer and the sidecar use: events, wire, records, and the emitter."""
