"""Feed: hands the events of journaled frames from the journal thread to the watching thread.

In: the typed events of each frame, as it is appended to a journal.
Out: the same, to a thread that looks at them.
Never: waits, or holds more than BYTES_MAX of frames: the oldest are dropped and counted,
because only the latest values are of interest. Alerts are kept apart, and are not dropped
before ALERTS_MAX of them wait.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from shared.events import AlertChanged, Event
from shared.ids import host_of

BYTES_MAX: Final = 1024 * 1024
"""Bytes of frames as they came; their events take several times as much memory."""
ALERTS_MAX: Final = 1_000


class Fed(NamedTuple):
    """The events of one frame of one run; hardware comes once, with the first run that has it."""

    run_id: str
    session: str
    source: str
    events: Sequence[Event | None]
    size: int


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
        self._frames: deque[Fed] = deque()
        self._alerts: deque[FedAlert] = deque()
        self._bytes = 0
        self._last: Sequence[Event | None] | None = None

    def put(self, fed: Fed) -> None:
        """Add a frame. Returns at once."""
        is_hardware = bool(host_of(fed.source))
        alerts = [e for e in fed.events if type(e) is AlertChanged]
        with self._lock:
            for event in alerts:
                self._put_alert(FedAlert(fed.run_id, fed.session, fed.source, event))
            # A sampler's frame is appended to the journal of every active run, one after
            # the other: it is the same list each time.
            if is_hardware and fed.events is self._last:
                return
            self._last = fed.events
            self._frames.append(fed)
            self._bytes += fed.size
            while self._bytes > self._bytes_max:
                self._bytes -= self._frames.popleft().size
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
            self._last = None
        return frames, alerts
