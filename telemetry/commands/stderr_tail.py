"""Tail of standard error: a small process between a command and the terminal.

In: what the command writes to its standard error, through a pipe or a terminal of its own.
Out: the same bytes, at once, on our standard error; and the last of them, when asked.
Never: ends before the command has closed its end, whatever happens to `telemetry run`: the
command's next line would otherwise end the command.

It is a process of its own because `telemetry run` may be killed, and its command goes on.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Iterator
from typing import Final

KEPT_BYTES: Final = 12_000
CHUNK_BYTES: Final = 65_536


class Tail:
    """The last bytes of a stream that is passed on."""

    def __init__(self, source_fd: int, target_fd: int) -> None:
        self._source_fd, self._target_fd = source_fd, target_fd
        self._kept = b""
        self.is_open = True
        """False when the command, and all that it started, have closed their end."""
        self._is_target_open = True

    @property
    def kept(self) -> bytes:
        return self._kept[-KEPT_BYTES:]

    def pass_on(self) -> None:
        """Pass on what can be read now."""
        try:
            chunk = os.read(self._source_fd, CHUNK_BYTES)
        except OSError:  # EIO: the other end of a terminal was closed
            chunk = b""
        self.is_open = bool(chunk)
        self._kept = (self._kept + chunk)[-2 * KEPT_BYTES :]
        while chunk and self._is_target_open:
            try:
                chunk = chunk[os.write(self._target_fd, chunk) :]
            except OSError:  # nobody reads: the command must not notice
                self._is_target_open = False

    def pass_on_all(self) -> None:
        """Pass on until nothing more can be read without a wait."""
        while self.is_open and _readable([self._source_fd], 0):
            self.pass_on()


def _readable(fds: list[int], timeout_s: float | None) -> list[int]:
    ready, _, _ = select.select(fds, [], [], timeout_s)
    return list(ready)


def serve(tail: Tail, source_fd: int, asker: socket.socket) -> None:
    """Pass on until the end; when the asker has sent all it will, send it the last bytes."""
    is_asked = False
    while tail.is_open or not is_asked:
        fds = [source_fd] if tail.is_open else []
        ready = _readable(fds if is_asked else [*fds, asker.fileno()], None)
        if source_fd in ready:
            tail.pass_on()
        if not is_asked and asker.fileno() in ready:
            is_asked = True
            tail.pass_on_all()
            _tell(asker, tail.kept)


def _tell(asker: socket.socket, kept: bytes) -> None:
    with asker:
        try:
            asker.recv(1)
            asker.sendall(kept)
        except OSError:  # it was killed
            return


def lines_of(data: bytes) -> Iterator[str]:
    """Yield the lines of the last bytes; a first one that was cut, and progress, are left out."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    lines = text.split("\n")
    for line in lines[1:] if len(data) >= KEPT_BYTES else lines:
        # Of a progress bar only the last state.
        if shown := line.rstrip("\r").rpartition("\r")[2].rstrip():
            yield shown


def main() -> int:
    """Serve standard input; the argument is the descriptor of the asker's socket."""
    with socket.socket(fileno=int(sys.argv[1])) as asker:
        serve(Tail(0, 2), 0, asker)
    return 0


if __name__ == "__main__":
    sys.exit(main())
