"""Guarded: runs a probe on a thread of its own, so that a call that hangs delays no other.

In: a probe that may hang for ever, as NVML does when a GPU falls off the bus.
Out: its values, if they come in time; if they come late, with the next reading. With them
`sampler/probe/<name>_seconds`: how long the probe took.
Never: waits longer than agreed, or asks again while an answer is outstanding.
"""

from __future__ import annotations

import threading
from pathlib import Path
from queue import Empty, SimpleQueue

from shared.clock import Clock
from telemetry.hardware.probe import Probe, Values


class GuardedProbe:
    """A probe that is read on its own thread. Its methods belong to one thread.

    The first reading may take `first_timeout_s`, since a driver that is not yet
    awake takes seconds; every other `timeout_s`.
    """

    def __init__(
        self, probe: Probe, clock: Clock, timeout_s: float, first_timeout_s: float
    ) -> None:
        self._probe = probe
        self._clock = clock
        self._timeout_s = timeout_s
        self._next_timeout_s = first_timeout_s
        self._time_name = f"sampler/probe/{probe.name.replace(' ', '_')}_seconds"
        self._asked_ns: int | None = None
        self._questions: SimpleQueue[bool] = SimpleQueue()
        self._answers: SimpleQueue[Values | Exception] = SimpleQueue()
        # A daemon: the process must be able to end while the call hangs.
        self._thread = threading.Thread(
            target=self._answer, name=f"probe {probe.name}", daemon=True
        )
        self._thread.start()

    @property
    def name(self) -> str:
        return self._probe.name

    def read(self) -> Values:
        """Return the newest values; none while the probe has not answered.

        Raises whatever the probe raised.
        """
        wait_s = 0.0
        if self._asked_ns is None:
            self._asked_ns = self._clock.monotonic_ns()
            self._questions.put(True)
            wait_s, self._next_timeout_s = self._next_timeout_s, self._timeout_s
        try:
            answer = self._answers.get(timeout=wait_s) if wait_s else self._answers.get_nowait()
        except Empty:
            return {}
        self._asked_ns = None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def outstanding_s(self) -> float:
        """Return the time in s since the probe was asked, 0 if it has answered."""
        if self._asked_ns is None:
            return 0.0
        return (self._clock.monotonic_ns() - self._asked_ns) / 1e9

    def is_uninterruptible(self) -> bool:
        """Return True if the kernel holds the thread in a call that not even a kill ends."""
        try:
            text = Path(f"/proc/self/task/{self._thread.native_id}/stat").read_text()
        except OSError:
            return False
        return text.rpartition(")")[2].split()[0] == "D"

    def close(self) -> None:
        """End the thread, unless it hangs: then it ends with the process."""
        self._questions.put(False)
        if self._asked_ns is None:
            self._thread.join(timeout=1.0)

    def _answer(self) -> None:
        while self._questions.get():
            began_ns = self._clock.monotonic_ns()
            try:
                values = self._probe.read()
            except Exception as exc:  # read() raises it again, where it is logged
                self._answers.put(exc)
                continue
            took_s = (self._clock.monotonic_ns() - began_ns) / 1e9
            self._answers.put({**values, self._time_name: took_s})
