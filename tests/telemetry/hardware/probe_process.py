"""A process that reads the GPUs through the real nvidia-ml-py, on a clock that a test moves.

In: lines on stdin: `read`, or `advance SECONDS`.
Out: after each `read` a line of JSON: the values, the conditions and the reports since.

A process of its own, because the library that nvidia-ml-py loads stays loaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import msgspec

from shared.closing import Closing
from tests.telemetry.hardware.fake_nvml import Machine


class ProbeProcess(Closing):
    """The test's end of such a process."""

    def __init__(self, machine: Machine) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.telemetry.hardware.probe_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=machine.environ(),
            text=True,
        )
        self.events: list[dict[str, Any]] = []
        self.reports: list[tuple[str, str]] = []

    def read(self, *, after_s: float = 0) -> dict[str, Any]:
        """Return the values of one reading, taken so much later."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"advance {after_s}\nread\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process ended"
        found = json.loads(line)
        self.events += found["events"]
        self.reports += [tuple(report) for report in found["reports"]]
        return dict(found["values"])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    from telemetry.hardware.conditions import Conditions
    from telemetry.hardware.gpu_processes import GpuProcesses
    from telemetry.hardware.nvml import NvmlProbe, load_nvml
    from tests.fakes import ManualClock

    clock = ManualClock()
    events: list[Any] = []
    reports: list[tuple[str, str]] = []
    probe = NvmlProbe(
        load_nvml(),
        clock,
        lambda level, text: reports.append((level, text)),
        Conditions("node1", events.append, clock),
        GpuProcesses(dict, lambda: True, print),
    )
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "advance":
            clock.advance(float(arguments[0]))
            continue
        values = probe.read()
        told = {"values": values, "events": msgspec.to_builtins(events), "reports": reports}
        print(json.dumps(told), flush=True)
        events.clear()
        reports.clear()


if __name__ == "__main__":
    main()
