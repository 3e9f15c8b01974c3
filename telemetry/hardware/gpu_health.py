"""GPU health: what the readings of a GPU say of its condition.

In: the readings of each GPU, and the XIDs that the driver reported.
Out: conditions with an onset and an end: `gpu_xid`, `gpu_ecc_uncorrected`,
`gpu_rows_pending`, `gpu_throttled`, `gpu_lost`.
Never: an end for a GPU that could not be read.

A software power cap is no condition: it is the ordinary state of a GPU at full load.
"""

from __future__ import annotations

from typing import Final

from telemetry.hardware.conditions import Conditions
from telemetry.hardware.gpu_readings import THROTTLE_REASONS
from telemetry.hardware.probe import Values
from telemetry.hardware.xid import Xid

SLOWDOWNS: Final = 0x8 | 0x20 | 0x40 | 0x80
"""Reasons for a lowered clock that people should know of: heat, and trouble with power."""

THROTTLED_ONSET_S: Final = 2.0
THROTTLED_END_S: Final = 15.0
QUIET_S: Final = 300.0
"""Time without another XID or ECC error after which the last one counts as over."""


class GpuHealth:
    """The conditions of all GPUs of this machine. Not thread-safe."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._ecc: dict[int, int] = {}
        self._slowdowns: dict[int, int] = {}
        self._names: dict[int, str] = {}

    def see(self, index: int, values: Values) -> None:
        """Note the readings of one GPU, by their names without the prefix."""
        if isinstance(uuid := values.get("uuid"), str):
            self._names[index] = f"gpu {index} ({uuid})"
        if type(bits := values.get("throttle_reasons")) is int:
            self._see_throttling(index, bits)
        if type(count := values.get("ecc_uncorrected_total")) is int:
            self._see_ecc(index, count)
        if isinstance(is_pending := values.get("remapped_rows_pending"), bool):
            self._conditions.state(
                "gpu_rows_pending",
                f"gpu/{index}",
                is_pending,
                f"{self._name(index)} waits for a reset to replace rows of its memory",
            )

    def see_xid(self, xid: Xid) -> None:
        """Note an error that the driver reported."""
        subject = f"gpu/{xid.gpu}"
        if xid.gpu_instance is not None:
            subject = f"{subject}/instance/{xid.gpu_instance}"
        text = f"{self._name(xid.gpu)} reports {xid.text}"
        self._conditions.pulse(
            "gpu_xid", subject, text, quiet_s=QUIET_S, severity=xid.severity, value=xid.number
        )

    def see_lost(self, index: int, is_lost: bool, reason: str = "") -> None:
        """Note that a GPU can't be reached, or can again."""
        text = f"{self._name(index)} is lost: {reason}"
        self._conditions.state("gpu_lost", f"gpu/{index}", is_lost, text, severity="error")

    def expire(self) -> None:
        """End what has been quiet for long enough. To be called with each reading."""
        self._conditions.expire()

    def _see_throttling(self, index: int, bits: int) -> None:
        slowdowns = bits & SLOWDOWNS
        # All reasons since the onset: their mixture changes each second, and is no news.
        seen = self._slowdowns[index] = self._slowdowns.get(index, 0) | slowdowns
        names = [name for bit, name in THROTTLE_REASONS.items() if seen & bit]
        is_over = self._conditions.state(
            "gpu_throttled",
            f"gpu/{index}",
            slowdowns != 0,
            f"{self._name(index)} is throttled: {', '.join(names)}",
            onset_s=THROTTLED_ONSET_S,
            end_s=THROTTLED_END_S,
        )
        if is_over:
            self._slowdowns[index] = 0

    def _see_ecc(self, index: int, count: int) -> None:
        """Note the count of errors since the driver was loaded: news is only what is added."""
        before = self._ecc.get(index)
        self._ecc[index] = count
        if before is not None and count > before:
            self._conditions.pulse(
                "gpu_ecc_uncorrected",
                f"gpu/{index}",
                f"{self._name(index)} has uncorrectable ECC errors: {count} since the driver start",
                quiet_s=QUIET_S,
                severity="error",
                value=count,
            )

    def _name(self, index: int) -> str:
        return self._names.get(index, f"gpu {index}")
