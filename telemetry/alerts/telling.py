"""Telling: passes each onset and end on to the log, the counters and the receivers, once.

In: alerts as they are journaled, and conditions of a machine that no run records.
Out: a line in the log, and a message for each receiver.
Never: tells the same onset twice because several runs have it, or waits for a receiver.

Not thread-safe: the watching thread owns it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from shared.events import AlertChanged
from shared.ids import SIDECAR, host_of
from shared.text import clean
from telemetry.alerts.words import level_of, words_of
from telemetry.watch.feed import FedAlert

log = logging.getLogger("telemetry.alerts")

TOLD_MAX: Final = 4_096
NAMES_COUNTED_MAX: Final = 200
_LEVELS: Final = {
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
OF_MACHINE: Final = frozenset({"memory_near_limit", "gpu_memory_near_limit", "disk_nearly_full"})
"""Rules about this machine: several runs may have the same onset."""

Message = tuple[str, str, AlertChanged]
"""Run id ("" for the machine), source, and the alert."""


class Telling:
    """Tells each change once, to each of the receivers."""

    def __init__(self, receivers: Sequence[Callable[[Message], None]] = ()) -> None:
        self.counts: Counter[str] = Counter()
        """Onsets, by the name of the alert."""
        self._receivers = receivers
        self._told: dict[tuple[str, str, str], bool] = {}

    def take(self, alert: FedAlert) -> None:
        """Tell an alert that was journaled."""
        is_of_machine = bool(host_of(alert.source)) or (
            alert.source == SIDECAR and alert.event.name in OF_MACHINE
        )
        self.tell("" if is_of_machine else alert.run_id, alert.source, alert.event)

    def tell(self, run_id: str, source: str, event: AlertChanged) -> None:
        """Tell an onset or an end, unless that was done before."""
        place = f"{run_id} {source}", event.name, event.subject
        # An end whose onset a former sidecar told is told as well.
        if self._told.get(place) == event.is_active:
            return
        if len(self._told) >= TOLD_MAX:
            self._told.clear()
        self._told[place] = event.is_active
        if event.is_active:
            is_known = event.name in self.counts or len(self.counts) < NAMES_COUNTED_MAX
            self.counts[clean(event.name, 60) if is_known else "other"] += 1
        level = _LEVELS.get(level_of(event), logging.WARNING)
        where = f"run={clean(run_id)} " if run_id else ""
        log.log(level, "%ssource=%s %s", where, clean(source), clean(words_of(event)))
        for receiver in self._receivers:
            receiver((run_id, source, event))
