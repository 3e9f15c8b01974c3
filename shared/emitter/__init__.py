"""The emitter: records events without ever making the training process wait.

Read in this order: emitter (what a script calls), packing, backlog, stream (numbered frames),
conversation and connection (the way to the sidecar), spool, sender (the thread that does it all).
"""

from shared.emitter.emitter import Emitter, EmitterStats, EventSink, NullEmitter

__all__ = ["Emitter", "EmitterStats", "EventSink", "NullEmitter"]
