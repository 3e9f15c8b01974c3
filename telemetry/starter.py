"""Starter: the process that started the sidecar, heard through standard input.

In: standard input, which that process holds open as long as it lives.
Out: a stopped service, which knows that its producers are gone, and how their command ended.

A last line of JSON, `{"exit_code": N}`, tells how the command that made the runs has ended;
N is 128 + n, or -n, for signal n.
"""

from __future__ import annotations

import os
import threading
from typing import Annotated, Final

import msgspec

from telemetry.service import Service

KEPT_BYTES: Final = 4096


def watch_stdin(service: Service) -> None:
    """Stop the service when standard input closes. Starts a thread, "stdin"."""

    def watch() -> None:
        said = b""
        while chunk := os.read(0, 1024):
            said = (said + chunk)[-KEPT_BYTES:]
        service.producers.exit_code = exit_code_in(said)
        service.producers.are_gone = True
        service.stop.set()

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def exit_code_in(said: bytes) -> int | None:
    """Return the exit code in the last line of `said`, or None where there is none."""
    lines = said.split(b"\n")
    try:
        return msgspec.json.decode(lines[-2 if said.endswith(b"\n") else -1], type=_Said).exit_code
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


class _Said(msgspec.Struct):
    """A line on standard input."""

    exit_code: Annotated[int, msgspec.Meta(ge=-255, le=2**31)]
