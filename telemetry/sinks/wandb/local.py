"""LocalRun: a run in offline fragments on this disk, each selected row once.

In: rows with the values selected for them, from the row that `open` returns.
Out: `.wandb` files, and the position up to which they are on the disk.
Never: covers a row that was not read back and synced, or asks a server.

The files are their own cursor: rows that they hold already are counted, not written.
An effect without a row of its own (config, summary) counts as written when a row
behind it is, so a crash repeats it and never loses it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from shared.clock import Clock
from shared.files import make_directory
from telemetry.run_dir import RunDir
from telemetry.sinks.base import SinkContext, SinkRejected, SinkUnavailable
from telemetry.sinks.wandb import client, offline, wandb_file
from telemetry.sinks.wandb.limits import LIMITS, Limits
from telemetry.sinks.wandb.offline import Confirmation, Ledger
from telemetry.sinks.wandb.run_status import Ending, say_ending
from telemetry.sinks.wandb.selection import Policy, Selected

log = logging.getLogger(__name__)

PLACE: Final = "."
UNRESOLVED: Final = "wandb-unresolved"
"""Directory for fragments with rows that the server may have too: `wandb sync` must not
find them. Both are relative to the run's directory; wandb adds a `wandb/` of its own."""


class Spot(msgspec.Struct, frozen=True):
    """A row, and the state of the policy after the rows before it."""

    row: int = 0
    policy: Policy = Policy()


class LocalPart(msgspec.Struct, frozen=True):
    """Progress of the fragments in one place, for the cursor.

    superseded: number of fragments that were moved away before. If more are moved away
    now, this part is about moved fragments and no longer valid.
    """

    spot: Spot
    ledger: Ledger
    place: str
    superseded: int


class _Snapshot(NamedTuple):
    part: LocalPart
    needed_row: int


class LocalRun:
    """A run written to offline fragments. Not thread-safe."""

    def __init__(
        self,
        context: SinkContext,
        place: str,
        clock: Clock,
        pause: Callable[[float], object],
        limits: Limits = LIMITS,
    ) -> None:
        self._context = context
        self._place = place
        self._parent = context.out_dir / place
        self._dir = RunDir(self._parent).wandb
        self._clock = clock
        self._pause = pause
        self._limits = limits
        self._client: client.Client | None = None
        self._confirmation: Confirmation | None = None
        self._ledger = Ledger()
        self._first_row = 0
        self._first_new_row = 0
        self._last_row_in_files = -1
        self._needed_row = -1
        self._superseded = 0
        self._part: LocalPart | None = None
        self._snapshots: deque[_Snapshot] = deque()

    def open(
        self, spot: Spot, part: LocalPart | None, first_row: int, settled_row: int = 0
    ) -> Spot:
        """Read the existing files, and return the spot to continue from.

        spot: the spot to use if part is None or not valid. first_row: rows before it are
        on the server and must not come into a file. settled_row: everything before it is
        in the files, unless they are superseded here.

        Raises:
            SinkUnavailable: another process still writes, or the disk refuses.
            SinkRejected: the files hold rows of another journal.
        """
        # 1. Wait until no other process writes the files, and read them.
        run_id = self._context.run_id
        # The directory's name has to be durable: a committed row must not be lost with it.
        make_directory(self._dir)
        paths = offline.fragment_paths(self._dir, run_id)
        offline.wait_for_writers(paths, self._clock, self._pause)
        fragments = self._read()
        self._check_journal(fragments)
        if offline.first_row(fragments) < first_row:
            # 2. The server has rows of these files: a `wandb sync` would double them.
            offline.supersede(self._dir, run_id)
            fragments, paths, settled_row = [], [], 0
        self._superseded = offline.superseded_count(self._dir, run_id)
        for fragment in fragments:
            offline.cut_torn(fragment)
            # 3. Cut torn ends, and sync: the process that wrote the file may have died
            # before its sync.
            offline.sync_with_directories(fragment.path)
        # 4. Continue from the part in the cursor, if it is about these files.
        if part is not None and (part.place, part.superseded) != (self._place, self._superseded):
            part = None
        if part is not None:
            spot, self._ledger, self._part = part.spot, part.ledger, part
        # 5. Rows up to _first_new_row are in the files or on the server: not written again.
        self._last_row_in_files = offline.last_row(fragments)
        self._first_new_row = max(
            spot.row, first_row, self._last_row_in_files + 1, settled_row if fragments else 0
        )
        self._first_row = min(offline.first_row(fragments), self._first_new_row)
        self._check_rows_before(spot.row, fragments)
        return spot

    def take(self, row: int, selected: Selected) -> None:
        """Write a row, or only count it if it is in the files already.

        Raises:
            SinkUnavailable: wandb-core has ended.
            SinkRejected: wandb refuses this run.
            RowRefused: wandb refuses this row.
        """
        if row < self._first_new_row:
            self._count(row, selected)
            return
        # History last: if the row is in the file, everything sent with it is too.
        if selected.config is not None:
            self._running().update_config(selected.config)
        if selected.summary is not None:
            self._running().update_summary(selected.summary)
        if selected.alert is not None:
            self._running().alert(selected.alert)
        if selected.history is not None:
            self._running().send(row, selected.history)
            if self._confirmation is not None:
                self._confirmation.sent(row)
            self._needed_row = row
        elif selected.config is not None or selected.summary is not None:
            self._needed_row = row + 1
        # Counted only now: a row that wandb has refused is in no file.
        self._count(row, selected)

    def _count(self, row: int, selected: Selected) -> None:
        if selected.history is not None and row >= self._first_row:
            self._ledger = self._ledger.plus([row])

    def commit(self, here: Spot) -> LocalPart | None:
        """Return the part up to which rows were read back and synced; None before the first."""
        self._snapshots.append(_Snapshot(self._part_at(here), self._needed_row))
        safe_row = self._first_new_row - 1
        if self._confirmation is not None:
            safe_row = max(safe_row, self._confirmation.read_back())
        while self._snapshots and self._snapshots[0].needed_row <= safe_row:
            self._part = self._snapshots.popleft().part
        return self._part

    def finish(self, here: Spot, ending: Ending) -> LocalPart:
        """End the run, and read all of it back.

        Raises:
            SinkUnavailable: rows are missing or doubled in the files.
        """
        if self._client is not None or not self._is_ended(ending.code):
            running = self._running()
            say_ending(running, ending, is_of_sweep=bool(self._context.run.wandb_sweep_id))
            running.finish(ending.code)
            self._client = None
            if self._confirmation is not None:
                self._confirmation.wait_for_end(self._clock, self._pause, self._limits.written_s)
        found = Ledger().plus(self._rows_of(self._read()))
        if found != self._ledger:
            raise SinkUnavailable(
                f"run {self._context.run_id}: {found.count} rows are in {self._dir}, "
                f"{self._ledger.count} were selected, and they are not the same"
            )
        self._snapshots.clear()
        self._part = self._part_at(here)
        return self._part

    def close(self) -> None:
        """Flush and end wandb-core without ending the run; nothing more is committed."""
        running, self._client = self._client, None
        if running is None:
            return
        try:
            running.finish(0)
            if self._confirmation is not None:
                self._confirmation.wait_for_end(self._clock, self._pause, self._limits.written_s)
        except SinkUnavailable as exc:
            log.warning("sink=wandb run=%s closed unclean: %s", self._context.run_id, exc)

    def _is_ended(self, code: int) -> bool:
        """True if an earlier process finished the run but could not commit that."""
        fragments = self._read()
        return bool(fragments) and wandb_file.exit_code(fragments[-1].path) == code

    def _read(self) -> list[offline.Fragment]:
        return offline.read_fragments(
            self._dir, self._context.run_id, lambda: self._context.wait(0)
        )

    def _check_journal(self, fragments: list[offline.Fragment]) -> None:
        own = self._context.journal
        for fragment in fragments:
            if own and fragment.journal not in ("", own):
                raise SinkRejected(
                    f"{fragment.path} has rows of journal {fragment.journal}, and this is "
                    f"journal {own}: a row number means nothing in another journal"
                )

    def _check_rows_before(self, row: int, fragments: list[offline.Fragment]) -> None:
        held = Ledger().plus(r for r in self._rows_of(fragments) if r < row)
        if held == self._ledger:
            return
        log.warning(
            "sink=wandb run=%s: %d rows before row %d are in %s, where %d were written",
            self._context.run_id,
            held.count,
            row,
            self._dir,
            self._ledger.count,
        )
        # Files were removed by hand, or by `wandb clean` after a sync: writing these rows
        # again would double them.
        self._ledger = held

    def _rows_of(self, fragments: list[offline.Fragment]) -> Iterator[int]:
        """Yield the rows in the files, without skipped ones, which a crash may have left there."""
        skipped = self._context.skipped
        return (row for row in offline.rows_of(fragments) if row not in skipped)

    def _running(self) -> client.Client:
        """Return the run in wandb; the first call starts it, in a new fragment."""
        if self._client is None:
            self._client = self._started()
            self._confirmation = Confirmation(self._client.file)
        return self._client

    def _started(self) -> client.Client:
        """Start the run; if wandb refuses its names or config, start it with its id alone.

        Raises:
            SinkRejected: wandb refuses the id alone too.
        """
        run_id = self._context.run_id
        try:
            return self._start()
        except client.RefusedSettings as exc:
            why = str(exc)
        log.warning("sink=wandb run=%s is called by its id alone: %s", run_id, why)
        try:
            return self._start(why)
        except client.RefusedSettings as exc:
            raise SinkRejected(f"wandb refuses run {run_id}: {exc}") from exc

    def _start(self, bare_for: str = "") -> client.Client:
        return client.start(self._context, "offline", self._parent, bare_for, self._limits)

    def _part_at(self, spot: Spot) -> LocalPart:
        return LocalPart(spot, self._ledger, self._place, self._superseded)


def part_from(value: Any) -> LocalPart | None:
    """Return the part in a cursor's state; None if there is none.

    Raises:
        ValueError: the value does not have the form of a part.
    """
    return None if value is None else msgspec.convert(value, LocalPart)
