"""Link: the state of a run's connection to its W&B server, on disk beside the cursor.

In: the rows that the server has shown, and a flag that rows may be on their way to it.
Out: the same after any crash.
Never: claims too little: the flag is set before the first row is sent, and cleared only
when the answers of the server no longer change.

The cursor can't hold this, because it moves only once a second, after the rows.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import msgspec

from shared.files import make_directory
from telemetry.json_files import read_json, write_json
from telemetry.sinks.base import SinkUnavailable

RETRY_FIRST_S: Final = 30.0
RETRY_MAX_S: Final = 600.0


class Link(msgspec.Struct, frozen=True):
    """State of one run on its server.

    is_open: rows above last_row may have been sent.
    last_row, count: the last row and the number of rows that the server has shown.
    why: the problem with the server that was logged; empty if there is none.
    failures, retry_wall_ns: number of failed tries, and the wall time of the next one.
    is_refused: the server answers, but refuses the rows.
    mode: online or offline, decided when the sink first started; empty before.
    settled_row: the local fragments hold everything before this row, also effects
    without a history row (config, summary).
    """

    is_open: bool = False
    last_row: int = -1
    count: int = 0
    why: str = ""
    failures: int = 0
    retry_wall_ns: int = 0
    is_refused: bool = False
    mode: str = ""
    settled_row: int = 0

    def failed(self, why: str, now_ns: int, *, is_refused: bool) -> Link:
        """Return the link after one more failure, with a later time for the next try."""
        delay_s = min(RETRY_FIRST_S * 2**self.failures, RETRY_MAX_S) * random.uniform(0.5, 1.0)
        return msgspec.structs.replace(
            self,
            why=why or "unknown",
            failures=min(self.failures + 1, 16),
            retry_wall_ns=now_ns + int(delay_s * 1e9),
            is_refused=is_refused,
        )

    def put_off(self, by_ns: int) -> Link:
        """Return the link with the next try later by by_ns, the time that opening took."""
        return msgspec.structs.replace(self, retry_wall_ns=self.retry_wall_ns + by_ns)

    def is_due(self, now_ns: int) -> bool:
        """True if the server should be tried again. A clock that was set back causes no delay."""
        return not now_ns < self.retry_wall_ns <= now_ns + int(RETRY_MAX_S * 1e9)

    def decided(self, mode: str) -> Link:
        """Return the link with the mode, which is kept from here on."""
        return msgspec.structs.replace(self, mode=mode)

    def settled(self, row: int) -> Link:
        """Return the link with settled_row set; 0 once the fragments are moved away."""
        return msgspec.structs.replace(self, settled_row=row)

    def worked(self) -> Link:
        """Return the link without failures, after the server has taken rows."""
        return Link(is_open=self.is_open, last_row=self.last_row, count=self.count, mode=self.mode)

    def shown(self, last_row: int, count: int, *, is_open: bool) -> Link:
        """Return the link with the rows that the server has shown."""
        return msgspec.structs.replace(self, is_open=is_open, last_row=last_row, count=count)


class LinkFile:
    """The file with the link of one run."""

    def __init__(self, directory: Path, run_id: str) -> None:
        self.path = directory / f"online-{run_id}.json"
        self.value = self._read()

    def set(self, link: Link) -> None:
        """Store the link durably.

        Raises:
            SinkUnavailable: the disk refuses.
        """
        if link == self.value:
            return
        try:
            make_directory(self.path.parent)
            write_json(self.path, msgspec.to_builtins(link))
        except OSError as exc:
            raise SinkUnavailable(f"{self.path} can't be written: {exc}") from exc
        self.value = link

    def _read(self) -> Link:
        if not self.path.exists():
            return Link()
        try:
            return msgspec.convert(read_json(self.path), Link)
        except ValueError:
            # The file is damaged: rows may be on their way to the server.
            return Link(is_open=True)
