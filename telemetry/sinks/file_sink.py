"""Base of the sinks that write files: to be opened first, and again after an error of the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from telemetry.sinks.base import SinkUnavailable


class FileSink:
    """A sink that writes files and may have to be opened again. Not thread-safe."""

    FILES: ClassVar[str] = "files"
    """Words for what the sink writes, for messages."""

    def __init__(self) -> None:
        self._is_open = False

    def close(self) -> None:
        self._is_open = False

    def _require_open(self) -> None:
        if not self._is_open:
            raise SinkUnavailable(f"{self.FILES} have to be opened, or opened again, first")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn disk errors into SinkUnavailable; the sink has to be opened again after one."""
        try:
            yield
        except OSError as exc:
            self.close()
            raise SinkUnavailable(f"{self.FILES}: {exc}") from exc
