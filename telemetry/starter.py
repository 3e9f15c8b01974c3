"""Starter: starts the service under its guard, and hears the process that started both.

In: standard input, which that process holds open as long as it lives.
Out: a stopped service, which knows that its producers are gone, and how their command ended.

A last line of JSON, `{"exit_code": N}`, tells how the command that made the runs has ended;
N is 128 + n, or -n, for signal n.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Annotated, Final

import msgspec

from telemetry.config import ServeConfig
from telemetry.descriptors import prepare_descriptors
from telemetry.guard import take_signals
from telemetry.service import Service

KEPT_BYTES: Final = 4096


def serve(config: ServeConfig, pid: int) -> int:
    """Run the service until it is told to end, and return the exit code of `serve`.

    pid: the process to be named as the sidecar, the guard.
    """
    with Service(config, shares=prepare_descriptors(), pid=pid) as service:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.stop.set())
        take_signals()
        if config.exit_with_stdin:
            watch_stdin(service)
        return service.run()


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
