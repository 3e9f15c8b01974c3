"""Process: hooks that close emitters when their process ends and renew them after a fork.

In: every emitter that is open in this process.
Out: emitters closed in time when the process ends; a new session in a forked child.
Never: acts at import but for the hooks that the interpreter itself calls.
"""

from __future__ import annotations

import atexit
import os
import secrets
import sys
import time
import weakref
from typing import Final, Protocol

from shared.ids import main_source

LAST_CLOSE_S: Final = 0.2


class Endable(Protocol):
    """The part of an emitter that these hooks use."""

    run_id: str
    close_timeout_s: float

    @property
    def source(self) -> str: ...

    def close(self, timeout_s: float | None = None) -> bool: ...

    def begin_again_in_child(self) -> None: ...


LIVE: Final[weakref.WeakSet[Endable]] = weakref.WeakSet()
_INHERITED: Final[set[tuple[str, str]]] = set()
"""(run id, source) of the emitters that were open in the parent when this process was forked."""
_token = secrets.token_hex(8)
_ended_by_multiprocessing = 0
"""Pid of the process in which multiprocessing was told to close our emitters; 0 if none."""


def token() -> str:
    """Return a random text that differs between any two processes, also after a fork."""
    return _token


def is_of_emitting_parent(run_id: str, source: str) -> bool:
    """True if this process was forked from one that records this run under this source."""
    return (run_id, source) in _INHERITED


def spawned_by() -> str:
    """Return the pid of the parent if multiprocessing started this process; else an empty text."""
    process = sys.modules.get("multiprocessing.process")
    parent = None if process is None else process.parent_process()
    return "" if parent is None else str(parent.pid)


def end_with_process() -> None:
    """Register the closing of emitters at the end of this process; called by a starting one.

    A child of multiprocessing ends with os._exit: no atexit hook runs, only the
    finalizers of multiprocessing.util.
    """
    global _ended_by_multiprocessing
    util = sys.modules.get("multiprocessing.util")
    if util is None or not spawned_by():
        return
    if _ended_by_multiprocessing != os.getpid():
        _ended_by_multiprocessing = os.getpid()
        util.Finalize(None, close_all, exitpriority=-10)


def close_all() -> None:
    """Close all emitters; all together get the time that a single one would get."""
    began_s = time.monotonic()
    for emitter in list(LIVE):
        left_s = emitter.close_timeout_s - (time.monotonic() - began_s)
        emitter.close(max(left_s, LAST_CLOSE_S))


def _begin_again() -> None:
    global _token
    _token = secrets.token_hex(8)
    for emitter in list(LIVE):
        _INHERITED.add((emitter.run_id, main_source(emitter.source)))
        emitter.begin_again_in_child()


atexit.register(close_all)
os.register_at_fork(after_in_child=_begin_again)
