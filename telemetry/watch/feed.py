"""Feed: hands the events of journaled frames from the journal thread to the watching thread.

In: each frame as it is appended to a journal, still packed.
Out: its typed events, to a thread that looks at them.
Never: waits, or holds more than BYTES_MAX of frames: the oldest are dropped and counted,
because only the latest values are of interest. Alerts are kept apart, and are not dropped
before ALERTS_MAX of them wait.

A frame is unpacked by the thread that takes it. The journal thread has its events already, but
those of a flood are mostly dropped here, and while they are held the garbage collector walks
over them: a fifth of the time of taking them in.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from shared.events import AlertChanged, Event, decode_envelopes
from shared.ids import StreamId, host_of

BYTES_MAX: Final = 1024 * 1024
ALERTS_MAX: Final = 1_000


class Fed(NamedTuple):
    """The events of one frame of one run; hardware comes once, with the first run that has it."""

    run_id: str
    session: str
    source: str
    events: Sequence[Event | None]


class FedAlert(NamedTuple):
    """An alert as it was journaled in one run."""

    run_id: str
    session: str
    source: str
    event: AlertChanged


class Feed:
    """A bounded queue of frames, and one of alerts. May be used from any thread."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self.dropped_frames = 0
        """Frames that were dropped before the watching thread took them."""
        self.dropped_alerts = 0
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._frames: deque[tuple[StreamId, bytes]] = deque()
        self._alerts: deque[FedAlert] = deque()
        self._bytes = 0
        self._last = b""

    def put(self, stream: StreamId, payload: bytes, events: Sequence[Event | None]) -> None:
        """Add a frame, as it is in the journal and as its typed events. Returns at once."""
        alerts = [e for e in events if type(e) is AlertChanged]
        with self._lock:
            for event in alerts:
                self._put_alert(FedAlert(*stream, event))
            # A sampler's frame is appended to the journal of every active run, one after
            # the other: it is the same object each time.
            if payload is self._last and host_of(stream.source):
                return
            self._last = payload
            self._frames.append((stream, payload))
            self._bytes += len(payload)
            while self._bytes > self._bytes_max:
                self._bytes -= len(self._frames.popleft()[1])
                self.dropped_frames += 1

    def _put_alert(self, alert: FedAlert) -> None:
        if len(self._alerts) >= ALERTS_MAX:
            self.dropped_alerts += 1
        else:
            self._alerts.append(alert)

    def take(self) -> tuple[list[Fed], list[FedAlert]]:
        """Return all that waits, in its order, and leave the feed empty."""
        with self._lock:
            frames, alerts = list(self._frames), list(self._alerts)
            self._frames.clear()
            self._alerts.clear()
            self._bytes = 0
            self._last = b""
        return [_unpacked(*frame) for frame in frames], alerts


def _unpacked(stream: StreamId, payload: bytes) -> Fed:
    return Fed(*stream, [envelope.event() for envelope in decode_envelopes(payload)])
