"""Check: one finding of `telemetry doctor`, and the bound on the time of each check.

In: functions that look at a part of the machine; some may hang for ever.
Out: their findings, in the order of the functions.
Never: waits longer than the given time, whatever a function does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

WORKS: Final = "works"
DOUBTFUL: Final = "doubt"
FAILS: Final = "fails"
ABSENT: Final = "none"
"""States of a finding: it works; it works, but look at it; it was configured and does not
work; it is not there, and nothing has asked for it."""


class Finding(NamedTuple):
    """The result of one check: its part of the machine, its state, and what to do about it."""

    part: str
    state: str
    text: str
    advice: str = ""


class Check(NamedTuple):
    """A part of the machine, and the function that looks at it."""

    part: str
    look: Callable[[], Iterator[Finding]]


def run_checks(checks: Sequence[Check], timeout_s: float) -> list[Finding]:
    """Run all checks at once, each on a thread of its own, and return their findings.

    A check that has not ended after timeout_s is abandoned: what it found until then is
    kept, and a finding says that it does not answer.
    """
    jobs = [_Job(check) for check in checks]
    deadline_s = time.monotonic() + timeout_s
    for job in jobs:
        job.thread.start()
    for job in jobs:
        job.thread.join(max(0.0, deadline_s - time.monotonic()))
    return [finding for job in jobs for finding in job.findings(timeout_s)]


class _Job:
    """One check on a thread, which may outlive its usefulness."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._found: list[Finding] = []
        self._is_done = False
        # A daemon: a call that hangs in a driver must not keep the command from ending.
        self.thread = threading.Thread(target=self._run, name=check.part, daemon=True)

    def findings(self, timeout_s: float) -> list[Finding]:
        found = list(self._found)
        if not self._is_done:
            text = f"no answer within {timeout_s:g} s"
            found.append(Finding(self._check.part, FAILS, text, "look whether it hangs"))
        return found

    def _run(self) -> None:
        try:
            for finding in self._check.look():
                self._found.append(finding)
        except Exception as exc:  # of any kind: the other checks go on
            text = f"the check itself failed: {type(exc).__name__}: {exc}"
            self._found.append(Finding(self._check.part, FAILS, text))
        self._is_done = True
