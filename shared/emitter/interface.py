"""Interface: the methods that producers of events call, and an emitter that records nothing."""

from __future__ import annotations

from typing import Protocol

from shared.closing import Closing
from shared.emitter.stats import EmitterStats
from shared.events import Event
from shared.ids import MAIN_SOURCE, new_session


class EventSink(Protocol):
    """The interface that a producer of events needs; Emitter and NullEmitter have it."""

    def emit(self, event: Event) -> None: ...

    def stats(self) -> EmitterStats: ...

    def close(self, timeout_s: float | None = None) -> bool: ...


class NullEmitter(Closing):
    """An emitter that records nothing, for a run without telemetry."""

    def __init__(self, run_id: str = "", source: str = MAIN_SOURCE) -> None:
        self.run_id = run_id
        self.source = source
        self.session = new_session()

    def emit(self, event: Event) -> None:
        """Do nothing with the event."""

    def stats(self) -> EmitterStats:
        return EmitterStats()

    def close(self, timeout_s: float | None = None) -> bool:
        return True
