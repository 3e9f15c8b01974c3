"""WandbSink: one run's journal as one W&B run, each selected row once.

In: rows of the journal, from where `open` says.
Out: a wandb run: fragments on this disk, or a run on a server.
Never: gives a position that a crash of this machine could take back.

Offline, the `.wandb` files are their own cursor: rows that they hold are only
folded, so that windows go on, and a commit vouches for what was read back and
synced. Online, nothing that wandb returns means that the server has a row: the
position moves when a clean finish says so, or when the server, asked at the
next start, says which row it waits for. Where the server can't be had the run
goes on offline; the next start tries it again.

An effect without a row of its own (config, summary) counts as written when a
row behind it is, so a crash repeats it and never loses it.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shared.clock import Clock, SystemClock
from telemetry.rows import Row
from telemetry.sinks.base import Position, SinkContext, SinkRejected, SinkUnavailable
from telemetry.sinks.wandb import client, offline, wandb_file
from telemetry.sinks.wandb.offline import Confirmation, Ledger
from telemetry.sinks.wandb.policy import Policy, Selected

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")


class Snapshot(NamedTuple):
    """Where the sink stood, and the row that must be read back for it to be safe."""

    position: Position
    needed_row: int


class WandbSink:
    """The run of one journal in Weights & Biases. Runs on one thread."""

    def __init__(
        self,
        context: SinkContext,
        clock: Clock | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._context = context
        self._clock = clock or SystemClock()
        self._pause = pause
        self._mode = context.options.get("mode") or context.run.get("wandb_mode") or "online"
        self._dir = context.out_dir / "wandb"
        self._client: client.Client | None = None
        self._confirmation: Confirmation | None = None
        self._policy = Policy()
        self._ledger = Ledger()
        self._next_row = 0
        self._first_new_row = 0
        self._last_row_in_files = -1
        self._needed_row = -1
        self._position = Position(0, {})
        self._snapshots: deque[Snapshot] = deque()

    def open(self, position: Position) -> int:
        """Find what the files and the server have; start wandb online, offline when needed."""
        if self._mode not in MODES:
            raise SinkRejected(f"wandb mode {self._mode!r} is none of {', '.join(MODES)}")
        self._go_on_from(position)
        if self._mode == "disabled":
            return position.row
        client.check_installed()
        self._read_files()
        if self._mode == "online":
            self._open_online()
        return position.row

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._policy, selected = self._policy.after(row)
            if self._mode != "disabled":
                self._account(row.row, selected)
                if row.row >= self._first_new_row:
                    self._send(row.row, selected)
            self._next_row = row.row + 1
            if self._mode == "online" and self._next_row == self._first_new_row:
                # The server, asked at open, has all up to here.
                self._position = self._here()

    def commit(self) -> Position:
        """The position that is safe: offline as far as the rows were read back and synced."""
        if self._mode == "disabled":
            self._position = self._here()
        if self._mode == "offline":
            self._snapshots.append(Snapshot(self._here(), self._needed_row))
            self._settle(self._read_back())
        return self._position

    def finish(self, status: str | None, exit_code: int | None) -> Position:
        """End the run in wandb; offline, read it all back.

        Raises:
            SinkUnavailable: rows are missing, or the server has not taken them all.
        """
        code = _exit_code(status, exit_code)
        if self._mode == "offline":
            self._finish_offline(code)
        elif self._client is not None:
            self._client.finish(code)
            self._client = None
        self._snapshots.clear()
        self._position = self._here()
        return self._position

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

    def sync_command(self) -> str | None:
        """The shell command that uploads what is on this disk; None when nothing is.

        One command a fragment: `wandb sync` gives up a run at a fragment that
        a crash has torn, and would never come to those behind it.
        """
        fragments = offline.read_fragments(self._dir, self._context.run_id)
        commands = [shlex.join(["wandb", "sync", str(f.path.parent)]) for f in fragments]
        return "; ".join(commands) or None

    def _go_on_from(self, position: Position) -> None:
        try:
            self._policy = Policy.from_json(position.state.get("policy", {}))
            self._ledger = Ledger(**position.state.get("ledger", {}))
        except (ValueError, TypeError) as exc:
            raise SinkRejected(f"the position at row {position.row} is not ours: {exc}") from exc
        self._position = position
        self._next_row = self._first_new_row = position.row
        self._needed_row = -1

    def _read_files(self) -> None:
        """Find the rows that fragments hold already; they are not sent again."""
        self._dir.mkdir(parents=True, exist_ok=True)
        paths = offline.fragment_paths(self._dir, self._context.run_id)
        offline.wait_for_writers(paths, self._clock, self._pause)
        fragments = offline.read_fragments(self._dir, self._context.run_id)
        for path in paths:
            # Read is not synced: another process wrote it, and may have just died.
            offline.sync_file(path)
        before = (row for row in offline.rows_of(fragments) if row < self._position.row)
        held = Ledger().plus(before)
        if held != self._ledger:
            log.warning(
                "sink=wandb run=%s: %d rows before row %d are in %s, where %d were written",
                self._context.run_id,
                held.count,
                self._position.row,
                self._dir,
                self._ledger.count,
            )
            # Taken away by hand, or by `wandb clean` after a sync: sending them
            # again would double them.
            self._ledger = held
        self._last_row_in_files = offline.last_row(fragments)
        self._first_new_row = max(self._position.row, self._last_row_in_files + 1)

    def _open_online(self) -> None:
        try:
            self._client = client.start(self._context, "online")
        except (SinkUnavailable, client.RefusedSettings) as exc:
            log.warning("sink=wandb run=%s goes on offline: %s", self._context.run_id, exc)
            client.let_go()
            self._mode = "offline"
            return
        self._first_new_row = max(self._first_new_row, self._client.answer().first_row)

    def _running(self) -> client.Client:
        """The run in wandb. Offline it begins with the first thing to say, in a new fragment."""
        if self._client is None:
            try:
                self._client = client.start(self._context, "offline")
            except client.RefusedSettings as exc:
                raise SinkRejected(f"wandb refuses run {self._context.run_id}: {exc}") from exc
            self._confirmation = Confirmation(self._client.file)
        return self._client

    def _account(self, row: int, selected: Selected) -> None:
        """Note that a row is in the files, or is about to be."""
        is_in_files = self._mode == "offline" or row <= self._last_row_in_files
        if selected.history is not None and is_in_files:
            self._ledger = self._ledger.plus([row])

    def _send(self, row: int, selected: Selected) -> None:
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

    def _read_back(self) -> int:
        """The last row that is safely in the files."""
        if self._confirmation is None:
            return self._first_new_row - 1
        return max(self._confirmation.read_back(), self._first_new_row - 1)

    def _settle(self, row: int) -> None:
        while self._snapshots and self._snapshots[0].needed_row <= row:
            self._position = self._snapshots.popleft().position

    def _finish_offline(self, code: int) -> None:
        if self._client is not None or not self._is_ended(code):
            self._running().finish(code)
            self._client = None
            if self._confirmation is not None:
                self._confirmation.wait_for_end(self._clock, self._pause)
        fragments = offline.read_fragments(self._dir, self._context.run_id)
        found = Ledger().plus(offline.rows_of(fragments))
        if found != self._ledger:
            raise SinkUnavailable(
                f"run {self._context.run_id}: {found.count} rows are in {self._dir}, "
                f"{self._ledger.count} were selected, and they are not the same"
            )

    def _is_ended(self, code: int) -> bool:
        """Whether an earlier process has finished the run, and just could not say so."""
        fragments = offline.read_fragments(self._dir, self._context.run_id)
        return bool(fragments) and wandb_file.exit_code(fragments[-1].path) == code

    def _here(self) -> Position:
        state: dict[str, Any] = {"policy": self._policy.to_json(), "mode": self._mode}
        if self._mode != "disabled":
            state["ledger"] = self._ledger.to_json()
        return Position(self._next_row, state)


def _exit_code(status: str | None, exit_code: int | None) -> int:
    """The exit code for W&B, which calls a run failed where it is not 0."""
    is_good = status in (None, "finished")
    return exit_code or (0 if is_good else 1)
