"""Stop requests: SIGTERM and Ctrl-C end a run between two steps, not within one.

In: signals.
Out: the signal that came, which the loop looks for after each step.
Never: ends anything itself, except that a second Ctrl-C interrupts as usual.
"""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context that records signals instead of ending the process.

    The previous handlers are set again at its end.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def is_requested(self) -> bool:
        """True if a signal has come."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code of a process that ended on this signal, 128 + number; 0 without one."""
        return 128 + self.signal if self.signal is not None else 0

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
