"""Hangs: probes that do not answer are named, with an onset and an end.

In: the guarded probes.
Out: a condition `probe_hangs` for each that has not answered for a while, and the word that
the sampler should be started again where that may help.
Never: takes a slow probe for one that hangs: it has HANGS_S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from telemetry.hardware.conditions import Conditions
from telemetry.hardware.guarded import GuardedProbe

HANGS_S: Final = 10.0


class HangWatch:
    """Watches guarded probes; the values of one that hangs are left out. Not thread-safe.

    restartable: the probe for which a new process may do better.
    """

    def __init__(
        self, probes: Sequence[GuardedProbe], restartable: GuardedProbe, conditions: Conditions
    ) -> None:
        self._probes = probes
        self._restartable = restartable
        self._conditions = conditions

    def check(self) -> None:
        """Say which probes hang, and which do so no longer. Called once a tick."""
        for probe in self._probes:
            self._conditions.state(
                "probe_hangs",
                f"probe/{probe.name}",
                probe.outstanding_s() >= HANGS_S,
                f"probe {probe.name} does not answer: its values are left out, the others go on",
            )

    def stuck_s(self) -> float:
        """Return the time in s for which a new process might have done better, else 0.

        A process whose thread the kernel holds does not end even when it is killed: it would
        take all other values with it.
        """
        outstanding_s = self._restartable.outstanding_s()
        return 0.0 if outstanding_s and self._restartable.is_uninterruptible() else outstanding_s
