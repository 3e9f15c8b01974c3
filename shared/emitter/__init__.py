"""The emitter: records events without ever making the training process wait.

Read in this order: emitter (the object that a script has), queue (from its threads to ours),
packing, backlog, framing, frames and stream (numbered frames), conversation and connection
(the way to the sidecar), spool, spooling and peers (without one), sender (the thread that
does it all).
"""

from shared.emitter.emitter import Emitter
from shared.emitter.interface import EventSink, NullEmitter
from shared.emitter.stats import EmitterStats

__all__ = ["Emitter", "EmitterStats", "EventSink", "NullEmitter"]
