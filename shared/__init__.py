"""Code that both the trainer and the sidecar use: events, wire, records, and the emitter."""

from shared import moved

moved.install()
