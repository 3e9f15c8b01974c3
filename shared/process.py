"""Process: what happens to emitters when their process forks or ends.

In: every emitter that is open in this process.
Out: their end, in time, however the process comes to it; a new beginning in a forked child.
Never: acts at import but for the hooks that the interpreter itself calls.
"""

from __future__ import annotations

import atexit
import os
import secrets
import sys
import time
import weakref
from typing import Any, Final, Protocol

from shared.ids import main_source

LAST_CLOSE_S: Final = 0.2


class Endable(Protocol):
    """An emitter, as its process sees it."""

    run_id: str
    close_timeout_s: float

    @property
    def source(self) -> str: ...

    def close(self, timeout_s: float | None = None) -> bool: ...

    def begin_again_in_child(self) -> None: ...


LIVE: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
_INHERITED: Final[set[tuple[str, str]]] = set()
"""Run and source of the emitters that were open in the process that this one was forked from."""
_token = secrets.token_hex(8)
_ended_by_multiprocessing = 0
"""The process that multiprocessing ends, where it was told to end our emitters too."""


def token() -> str:
    """Return what tells this process from any other, forked ones too."""
    return _token


def is_of_emitting_parent(run_id: str, source: str) -> bool:
    """True if this process was forked from one that records this run under this source."""
    return (run_id, source) in _INHERITED


def spawned_by() -> str:
    """Return the pid of the process of which this is a child by multiprocessing, or nothing."""
    process = sys.modules.get("multiprocessing.process")
    parent = None if process is None else process.parent_process()
    return "" if parent is None else str(parent.pid)


def end_with_process() -> None:
    """Have emitters closed when this process ends; called as soon as one says something.

    A child of multiprocessing leaves by os._exit, without atexit, after the finalizers
    of multiprocessing.util.
    """
    global _ended_by_multiprocessing
    util = sys.modules.get("multiprocessing.util")
    if util is None or not spawned_by():
        return
    if _ended_by_multiprocessing != os.getpid():
        _ended_by_multiprocessing = os.getpid()
        util.Finalize(None, close_all, exitpriority=-10)


def close_all() -> None:
    """Close all emitters: together they get the time that one would."""
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
