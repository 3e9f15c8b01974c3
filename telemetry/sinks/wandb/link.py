"""Link: what is known of a run's server, beside what the run's cursor says.

In: what the server has shown, and whether rows may be on their way to it.
Out: the same after any crash.
Never: less than the truth: it says that rows may be on their way before the
first is sent, and takes it back only when the server has stood still.

The cursor can't hold this: it moves once a second, behind the rows.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import msgspec

from telemetry.files import read_json, write_json
from telemetry.journal.layout import make_durably
from telemetry.sinks.base import SinkUnavailable

RETRY_FIRST_S: Final = 30.0
RETRY_MAX_S: Final = 600.0


class Link(msgspec.Struct, frozen=True):
    """One run and its server.

    is_open: rows above last_row may have been sent. last_row, count: the last
    row and the number of rows that the server has shown. why: what is wrong with
    the server, once that was said; failures, retry_wall_ns: when to try again.
    is_refused: it answers, and does not take the rows. mode: online or offline, as
    it was decided when the sink first started; empty before. settled_row: the fragments
    here hold all before this row, also what has no row of its own.
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
        """One more failure, and a later time for the next try."""
        delay_s = min(RETRY_FIRST_S * 2**self.failures, RETRY_MAX_S) * random.uniform(0.5, 1.0)
        return msgspec.structs.replace(
            self,
            why=why or "unknown",
            failures=min(self.failures + 1, 16),
            retry_wall_ns=now_ns + int(delay_s * 1e9),
            is_refused=is_refused,
        )

    def put_off(self, by_ns: int) -> Link:
        """The next try so much later: it took that long to be ready for anything."""
        return msgspec.structs.replace(self, retry_wall_ns=self.retry_wall_ns + by_ns)

    def is_due(self, now_ns: int) -> bool:
        """Whether to try the server again. A clock that was set back does not put it off."""
        return not now_ns < self.retry_wall_ns <= now_ns + int(RETRY_MAX_S * 1e9)

    def decided(self, mode: str) -> Link:
        """The same with the mode that is kept from here on."""
        return msgspec.structs.replace(self, mode=mode)

    def settled(self, row: int) -> Link:
        """The same with fragments that hold all before a row; 0 once they are moved away."""
        return msgspec.structs.replace(self, settled_row=row)

    def worked(self) -> Link:
        """The server has taken rows."""
        return Link(is_open=self.is_open, last_row=self.last_row, count=self.count, mode=self.mode)

    def shown(self, last_row: int, count: int, *, is_open: bool) -> Link:
        """The server has shown so much."""
        return msgspec.structs.replace(self, is_open=is_open, last_row=last_row, count=count)


class LinkFile:
    """The link of one run, on disk."""

    def __init__(self, directory: Path, run_id: str) -> None:
        self.path = directory / f"online-{run_id}.json"
        self.value = self._read()

    def set(self, link: Link) -> None:
        """Keep this, durably.

        Raises:
            SinkUnavailable: the disk refuses.
        """
        if link == self.value:
            return
        try:
            make_durably(self.path.parent)
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
            # Damaged: then anything may be on its way.
            return Link(is_open=True)
