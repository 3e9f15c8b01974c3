"""Terminal: the standard streams of a program, made safe to print to.

In: whatever a shell, a service manager or a container has given the process.
Out: streams that take any text, in any encoding, closed ones among them.
Never: fails for a character that a terminal doesn't have.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Final

Say = Callable[[str], None]
"""A function that prints a line for the user."""

LAST_STANDARD_FD: Final = 2


def prepare_streams() -> None:
    """Open closed standard streams, and escape characters that a stream can't encode.

    Raises:
        OSError: there is no /dev/null.
    """
    _fill_standard_descriptors()
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            mode = "r" if name == "stdin" else "w"
            # Kept open as long as the process: it takes the place of a standard stream.
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def finish_streams() -> OSError | None:
    """Flush stdout; return the error if that fails, for the caller to report.

    After an error stdout is /dev/null, so that Python's own flush at exit is quiet.
    """
    try:
        sys.stdout.flush()
    except OSError as exc:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exc
    return None


def _fill_standard_descriptors() -> None:
    # A closed descriptor would be given to the next file that is opened, a journal
    # perhaps, and what a library prints to stderr would be written into it.
    while (fd := os.open(os.devnull, os.O_RDWR)) <= LAST_STANDARD_FD:
        os.set_inheritable(fd, True)
    os.close(fd)
