"""LocalRun: a run in offline fragments on this disk, each selected row once.

In: rows with what is selected for them, from where `open` says.
Out: `.wandb` files, and how far they are safely on the disk.
Never: vouches for a row that was not read back and synced, or asks a server.

The files are their own cursor: rows that they hold are only counted. An effect
without a row of its own (config, summary) counts as written when a row behind
it is, so a crash repeats it and never loses it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from shared.clock import Clock
from telemetry.journal.layout import make_durably
from telemetry.sinks.base import SinkContext, SinkRejected, SinkUnavailable
from telemetry.sinks.wandb import client, offline, wandb_file
from telemetry.sinks.wandb.offline import Confirmation, Ledger
from telemetry.sinks.wandb.policy import Policy, Selected
from telemetry.sinks.wandb.status import Ending, say_ending

log = logging.getLogger(__name__)

PLACE: Final = "."
UNRESOLVED: Final = "wandb-unresolved"
"""Where fragments go that may hold rows which the server has too: `wandb sync` must not find
them. Both are below the run's directory; wandb adds a `wandb/` of its own."""


class Spot(msgspec.Struct, frozen=True):
    """A row, and what the rows before it say about it."""

    row: int = 0
    policy: Policy = Policy()


class LocalPart(msgspec.Struct, frozen=True):
    """How far the fragments in one place safely are, for the cursor.

    superseded: how many fragments had been moved away then; where more are now,
    this part speaks of those.
    """

    spot: Spot
    ledger: Ledger
    place: str
    superseded: int


class _Snapshot(NamedTuple):
    part: LocalPart
    needed_row: int


class LocalRun:
    """Not thread-safe."""

    def __init__(
        self,
        context: SinkContext,
        place: str,
        clock: Clock,
        pause: Callable[[float], object],
    ) -> None:
        self._context = context
        self._place = place
        self._parent = context.out_dir / place
        self._dir = self._parent / "wandb"
        self._clock = clock
        self._pause = pause
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
        """Find what is in the files, and say where to begin.

        spot: where to begin when the files say nothing. first_row: rows before
        it are on the server and must not come into a file. settled_row: all before it is in
        the files, unless they are superseded here.

        Raises:
            SinkUnavailable: another process still writes, or the disk refuses.
            SinkRejected: the files hold rows of another journal.
        """
        run_id = self._context.run_id
        # A row that is vouched for must not go with the name of its directory.
        make_durably(self._dir)
        paths = offline.fragment_paths(self._dir, run_id)
        offline.wait_for_writers(paths, self._clock, self._pause)
        fragments = self._read()
        self._check_journal(fragments)
        if offline.first_row(fragments) < first_row:
            # The server has rows of these files by now: synced (again) they would be doubled.
            offline.supersede(self._dir, run_id)
            fragments, paths, settled_row = [], [], 0
        self._superseded = offline.superseded_count(self._dir, run_id)
        for fragment in fragments:
            offline.cut_torn(fragment)
            # Read is not synced: another process wrote it, and may have just died.
            offline.sync_file(fragment.path)
        if part is not None and (part.place, part.superseded) != (self._place, self._superseded):
            part = None
        if part is not None:
            spot, self._ledger, self._part = part.spot, part.ledger, part
        self._last_row_in_files = offline.last_row(fragments)
        self._first_new_row = max(
            spot.row, first_row, self._last_row_in_files + 1, settled_row if fragments else 0
        )
        self._first_row = min(offline.first_row(fragments), self._first_new_row)
        self._check_rows_before(spot.row, fragments)
        return spot

    def take(self, row: int, selected: Selected) -> None:
        """Count a row that is in the files, or write it.

        Raises:
            SinkUnavailable: wandb-core is gone.
            SinkRejected: wandb does not take this run.
            RowRefused: wandb does not take this row.
        """
        if row < self._first_new_row:
            self._count(row, selected)
            return
        # History last: once the row is in the file, so is all that came with it.
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
        # Only now: a row that wandb has refused is in no file, and not expected there.
        self._count(row, selected)

    def _count(self, row: int, selected: Selected) -> None:
        if selected.history is not None and row >= self._first_row:
            self._ledger = self._ledger.plus([row])

    def commit(self, here: Spot) -> LocalPart | None:
        """How far the rows were read back and synced."""
        self._snapshots.append(_Snapshot(self._part_at(here), self._needed_row))
        safe_row = self._first_new_row - 1
        if self._confirmation is not None:
            safe_row = max(safe_row, self._confirmation.read_back())
        while self._snapshots and self._snapshots[0].needed_row <= safe_row:
            self._part = self._snapshots.popleft().part
        return self._part

    def finish(self, here: Spot, ending: Ending) -> LocalPart:
        """End the run, and read it all back.

        Raises:
            SinkUnavailable: rows are missing, or doubled.
        """
        if self._client is not None or not self._is_ended(ending.code):
            running = self._running()
            say_ending(running, ending, is_of_sweep=bool(self._context.run.get("wandb_sweep_id")))
            running.finish(ending.code)
            self._client = None
            if self._confirmation is not None:
                self._confirmation.wait_for_end(self._clock, self._pause)
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
        """End wandb-core without a word on the run: what it has is flushed, nothing vouched for."""
        running, self._client = self._client, None
        if running is None:
            return
        try:
            running.finish(0)
            if self._confirmation is not None:
                self._confirmation.wait_for_end(self._clock, self._pause)
        except SinkUnavailable as exc:
            log.warning("sink=wandb run=%s closed unclean: %s", self._context.run_id, exc)

    def _is_ended(self, code: int) -> bool:
        """Whether an earlier process has finished the run, and just could not say so."""
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
        # Taken away by hand, or by `wandb clean` after a sync: sending them
        # again would double them.
        self._ledger = held

    def _rows_of(self, fragments: list[offline.Fragment]) -> Iterator[int]:
        """Yield the rows in the files that are selected: one at which a process died may have
        come into a file all the same."""
        skipped = self._context.skipped
        return (row for row in offline.rows_of(fragments) if row not in skipped)

    def _running(self) -> client.Client:
        """Return the run in wandb. It begins with the first thing to say, in a new fragment."""
        if self._client is None:
            self._client = self._started()
            self._confirmation = Confirmation(self._client.file)
        return self._client

    def _started(self) -> client.Client:
        """Start the run; if wandb refuses what it is called, under its id alone.

        Raises:
            SinkRejected: wandb refuses that, too.
        """
        run_id = self._context.run_id
        try:
            return client.start(self._context, "offline", self._parent)
        except client.RefusedSettings as exc:
            why = str(exc)
        log.warning("sink=wandb run=%s is called by its id alone: %s", run_id, why)
        try:
            return client.start(self._context, "offline", self._parent, bare_for=why)
        except client.RefusedSettings as exc:
            raise SinkRejected(f"wandb refuses run {run_id}: {exc}") from exc

    def _part_at(self, spot: Spot) -> LocalPart:
        return LocalPart(spot, self._ledger, self._place, self._superseded)


def part_from(value: Any) -> LocalPart | None:
    """The part in a cursor's state.

    Raises:
        ValueError: it is something else.
    """
    return None if value is None else msgspec.convert(value, LocalPart)
