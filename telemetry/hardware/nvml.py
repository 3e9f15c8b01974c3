"""NVML: readings of each NVIDIA GPU, under `gpu/<index>/…`.

In: the pynvml module (this is the one place that imports it) and a clock.
Out: each reading that the driver gives; `gpu/<index>/uuid` identifies the GPU.
Never: a stand-in for a reading; a failure where there is no driver, or no GPU.

A session lasts from nvmlInit to the first sign that the driver went away. Then,
and where there is no driver yet, it is tried again with back-off. What a GPU does
not have is asked for once, and again after it was lost or divided in another way.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from shared.clock import Clock
from telemetry.hardware.conditions import Conditions
from telemetry.hardware.gpu_energy import EnergySinceStart
from telemetry.hardware.gpu_health import GpuHealth
from telemetry.hardware.gpu_processes import GpuProcesses
from telemetry.hardware.nvml_session import DriverGone, Session
from telemetry.hardware.probe import Report, Values

log = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 60.0


def load_nvml() -> Any | None:
    """Return the pynvml module, or None where it is not installed. Loads no driver."""
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def _log(level: str, text: str) -> None:
    log.log(logging.getLevelNamesMapping().get(level.upper(), logging.INFO), "%s", text)


def _nothing(event: object) -> None:
    """Take an event that nobody asked for."""


class NvmlProbe:
    """All GPUs of this machine, by NVML's own index. Not thread-safe."""

    name = "nvml"

    def __init__(
        self,
        nvml: Any | None,
        clock: Clock,
        report: Report = _log,
        conditions: Conditions | None = None,
        processes: GpuProcesses | None = None,
    ) -> None:
        self._nvml = nvml
        self._clock = clock
        self._report = report
        self._health = GpuHealth(conditions or Conditions("", _nothing, clock))
        self._energy = EnergySinceStart()
        self._processes = processes
        self._session: Session | None = None
        self._lost: set[int] = set()
        self._had_session = False
        self._trouble: str | None = None
        self._retry_s = RETRY_FIRST_S
        self._retry_at_ns: int | None = None

    def read(self) -> Values:
        """Return the readings of all GPUs that answer; none without a driver."""
        session = self._session or self._open()
        if session is None:
            return {}
        try:
            values = session.read()
        except DriverGone as exc:
            self._give_up(str(exc))
            return {}
        finally:
            self._health.expire()
        if not values:
            self._give_up("no GPU answers")
        else:
            self._is_well()
        return values

    def _open(self) -> Session | None:
        now_ns = self._clock.monotonic_ns()
        if self._nvml is None or (self._retry_at_ns is not None and now_ns < self._retry_at_ns):
            return None
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as exc:
            self._back_off(str(exc))
            return None
        try:
            self._session = Session(
                self._nvml,
                self._clock,
                self._report,
                self._lost,
                self._health,
                self._energy,
                self._processes,
            )
        except self._nvml.NVMLError as exc:
            self._give_up(str(exc))
        return self._session

    def _give_up(self, reason: str) -> None:
        """End the session; a later one may find the driver again."""
        assert self._nvml is not None
        if self._session is not None:
            self._session.close()
        self._session = None
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            log.debug("nvml: shutdown refused, the driver is gone already")
        self._back_off(reason)

    def _back_off(self, reason: str) -> None:
        if self._trouble is None:
            text = f"nvml unavailable: {reason}; its fields are left out, tried again by itself"
            # Not a warning on a machine that never had a GPU.
            if self._had_session:
                self._report("warning", text)
            else:
                log.info(text)
        self._trouble = reason
        self._retry_at_ns = self._clock.monotonic_ns() + round(self._retry_s * 1e9)
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def _is_well(self) -> None:
        if self._trouble is not None and self._had_session:
            self._report("info", "nvml available again")
        self._had_session = True
        self._trouble = None
        self._retry_s = RETRY_FIRST_S
