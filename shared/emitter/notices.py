"""Notices: warnings for the person who runs the script, each logged once."""

from __future__ import annotations

import logging

log = logging.getLogger("telemetry.emitter")


class Notices:
    """Warnings that were given already. Not thread-safe: the sender thread owns it."""

    def __init__(self, most: int | None = None) -> None:
        """Give at most so many different ones; None for no limit."""
        self._most = most
        self._given: set[str] = set()

    def warn(self, key: str, text: str) -> None:
        """Log text as a warning, unless one was logged under this key."""
        if key in self._given or (self._most is not None and len(self._given) >= self._most):
            return
        self._given.add(key)
        log.warning("%s", text)
