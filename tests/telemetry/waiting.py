"""Waiting for what another process or thread does, with a limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(is_so: Callable[[], T], timeout_s: float = 30.0) -> T:
    """The first true answer; fails when there is none in time."""
    deadline_s = time.monotonic() + timeout_s
    while not (answer := is_so()):
        assert time.monotonic() < deadline_s, "waited in vain"
        threading.Event().wait(0.01)
    return answer
