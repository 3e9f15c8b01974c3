"""WandbSink: one run's journal as one W&B run, each selected row once.

In: rows of the journal, from the row that `open` returns.
Out: a wandb run: on a server, in fragments on this disk, or first one and then the other.
Never: returns a position that a crash of this machine could undo.

Offline the position covers the rows read back from the fragments; online, the rows that
the server has confirmed. If a run should be online and its server can't be reached, the
sink writes fragments at once, and asks the server again with back-off. When the server
answers, the process ends as unavailable; the next process moves the fragments away and
sends all rows behind the server's last one from the journal. So such a run is done only
when the server has it.

A process that ends in between leaves one of three states: fragments in place, nothing
sent; fragments moved, nothing sent; rows sent and the link open. The journal has the
rows in each of them, and the server is asked before any row is sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from shared.clock import Clock, SystemClock
from shared.wandb_variables import DISABLED, OFFLINE, ONLINE
from telemetry.journal.rows import Row
from telemetry.run_dir import RunDir
from telemetry.sinks.base import (
    Position,
    SinkBehind,
    SinkContext,
    SinkRejected,
    SinkUnavailable,
)
from telemetry.sinks.wandb import client, core, mode, offline
from telemetry.sinks.wandb.link import LinkFile
from telemetry.sinks.wandb.local import PLACE, UNRESOLVED, LocalPart, LocalRun, Spot, part_from
from telemetry.sinks.wandb.online import OnlineRun
from telemetry.sinks.wandb.reach import Reach
from telemetry.sinks.wandb.run_identity import say_changes
from telemetry.sinks.wandb.run_status import ending_of
from telemetry.sinks.wandb.selection import Policy, versions_of
from telemetry.sinks.wandb.server import Server, Stopped, View, account
from telemetry.sinks.wandb.timeouts import TIMEOUTS, Timeouts

log = logging.getLogger(__name__)

REFUSED_IN_A_ROW_MAX: Final = 20
"""If more rows than this are refused in a row, their content is not the cause."""


class WandbSink:
    """Sink that writes the run of one journal to Weights & Biases. Runs on one thread."""

    def __init__(
        self,
        context: SinkContext,
        clock: Clock | None = None,
        pause: Callable[[float], object] = time.sleep,
        ask: Callable[[SinkContext], View] | None = None,
        account: Callable[[], mode.Account] = account,
        timeouts: Timeouts = TIMEOUTS,
    ) -> None:
        self._context = context
        self._clock = clock or SystemClock()
        self._pause = pause
        self._mode = ""
        self._ask_account = account
        self._timeouts = timeouts
        self._refused_in_a_row = 0
        self._link = LinkFile(RunDir(context.out_dir).wandb, context.run_id)
        server = Server(context, self._clock, ask, timeouts)
        self._reach = Reach(context, self._clock, server, self._link)
        self._server_spot = Spot()
        self._local_part: LocalPart | None = None
        self._online: OnlineRun | None = None
        self._local: LocalRun | None = None
        self._row = 0
        self._policy = Policy()
        self._versions: list[list[int]] = []

    def open(self, position: Position) -> int:
        """Find the rows in the files and on the server, and return the first row to write.

        Online, this starts the run on the server. Offline, wandb starts when there is a
        first row to write.
        """
        # 1. Decide the mode, and take over the stored position.
        self._mode = self._decided_mode(position)
        self._go_on_from(position)
        if self._mode == DISABLED:
            return self._row
        core.check_installed()
        # 2. Wait until no process of an earlier sink sends or writes.
        self._wait_for_other_senders()
        # 3. Open the server or the fragments; each sets the row to begin at.
        if self._mode == ONLINE:
            self._open_online()
        else:
            self._open_local()
        return self._row

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if self._mode != DISABLED:
                self._take(row)
            self._row = row.row + 1

    def commit(self) -> Position:
        """Return the safe position: read back offline, confirmed by the server online.

        Raises:
            SinkUnavailable: the server is away, or answers again; the sink has to be opened
                again.
        """
        if self._online is not None:
            with self._reach.noting_refusals():
                self._server_spot = self._online.commit(self._here())
        elif self._local is not None:
            self._local_part = self._local.commit(self._here())
            if self._mode == ONLINE and self._link.value.is_due(self._clock.wall_ns()):
                self._reach.try_again()
        return self._position()

    def finish(self, status: str | None, exit_code: int | None) -> Position:
        """End the run in wandb; offline, read all of it back.

        Raises:
            SinkUnavailable: rows are missing, or the server has not taken them all.
        """
        ending = ending_of(status, exit_code)
        if self._online is not None:
            with self._reach.noting_refusals():
                self._server_spot = self._online.finish(self._here(), ending)
        elif self._local is not None:
            self._local_part = self._local.finish(self._here(), ending)
            if self._mode == ONLINE:
                # Otherwise each try would write the summary again, into a further fragment.
                self._link.set(self._link.value.settled(self._row))
                raise SinkBehind(
                    f"{self._link.value.why}; all of the run is on this disk, "
                    f"the server has it up to row {self._server_spot.row}"
                )
        return self._position()

    def close(self) -> None:
        """End wandb-core without finishing the run."""
        for target in (self._online, self._local):
            if target is not None:
                target.close()
        self._online = self._local = None

    def _take(self, row: Row) -> None:
        """Write one row; a row that the library refuses is skipped, counted and logged.

        Raises:
            SinkUnavailable: as for write; or so many rows in a row were refused that their
                content can't be the cause.
        """
        before = self._policy
        self._policy, selected = before.after(row)
        try:
            if self._online is not None:
                with self._reach.noting_refusals():
                    self._online.take(row.row, selected)
            elif self._local is not None:
                self._local.take(row.row, selected)
        except core.RowRefused as exc:
            self._refused_in_a_row += 1
            if self._refused_in_a_row > REFUSED_IN_A_ROW_MAX:
                raise SinkUnavailable(f"wandb takes no row any more: {exc}") from exc
            # Undo the row's effect on the policy: a replay is not given the row at all.
            self._policy = before
            self._context.skip(row.row, str(exc))
        else:
            self._refused_in_a_row = 0

    # --- opening: the mode, and the row to begin at

    def _decided_mode(self, position: Position) -> str:
        """Return the mode that was decided when the sink first started, or decide it now.

        Raises:
            SinkUnavailable: wandb, which has to look for a key, is not installed or fails.
        """
        asked = self._context.options.get("mode") not in (None, "", mode.AUTO)
        decided = self._link.value.mode or str(position.state.get("mode") or "")
        if decided in (ONLINE, OFFLINE) and not asked:
            return decided
        choice = mode.choose(self._context, self._ask_account)
        if choice.mode == DISABLED:
            return DISABLED
        if choice.why:
            log.warning("sink=wandb run=%s stays offline: %s", self._context.run_id, choice.why)
        say_changes(self._context)
        self._link.set(self._link.value.decided(choice.mode))
        return choice.mode

    def _go_on_from(self, position: Position) -> None:
        state = position.state
        try:
            if "server" in state:
                self._server_spot = msgspec.convert(state["server"], Spot)
            self._local_part = part_from(state.get("local"))
            self._versions = versions_of(state, position.row)
        except (ValueError, TypeError) as exc:
            raise SinkRejected(f"the position at row {position.row} is not ours: {exc}") from exc
        self._row = position.row if self._mode == DISABLED else self._server_spot.row

    def _wait_for_other_senders(self) -> None:
        """Wait for the wandb-core of a killed sink to end: a stopped one may wake up and send."""
        files = offline.online_files(RunDir(self._context.out_dir).wandb, self._context.run_id)
        offline.wait_for_writers(files, self._clock, self._pause)

    def _open_online(self) -> None:
        # 1. Ask the server; if it can't be reached, write fragments.
        began_ns = self._clock.wall_ns()
        is_resting = self._link.value.is_refused and not self._link.value.is_due(began_ns)
        try:
            view = self._reach.look(self._server_spot.row)
        except Stopped:
            raise
        except SinkUnavailable as exc:
            self._reach.note_failure(str(exc))
            self._open_local()
            return
        # 2. If the server answers but has just refused rows, write fragments for a while.
        if is_resting:
            self._link.set(self._link.value.put_off(self._clock.wall_ns() - began_ns))
            self._open_local()
            return
        # 3. Start behind the server's last row.
        online = OnlineRun(
            self._context,
            self._clock,
            self._reach.server,
            self._link,
            self._server_spot,
            self._timeouts,
        )
        try:
            online.start(view)
        except (SinkUnavailable, client.RefusedSettings) as exc:
            self._reach.note_failure(str(exc))
            self._open_local()
            return
        # 4. The journal has all rows: local fragments are not needed any more.
        self._online, self._local_part = online, None
        self._move_fragments()
        self._begin_at(self._server_spot)

    def _move_fragments(self) -> None:
        """Move local fragments away: the server gets all rows from the journal instead."""
        for place in (PLACE, UNRESOLVED):
            directory = RunDir(self._context.out_dir / place).wandb
            paths = offline.fragment_paths(directory, self._context.run_id)
            # If a `wandb sync` is uploading them, wait for it first.
            offline.wait_for_writers(paths, self._clock, self._pause)
            offline.supersede(directory, self._context.run_id)
        self._link.set(self._link.value.settled(0))

    def _open_local(self) -> None:
        link = self._link.value
        # If rows may be on their way to a server that can't be asked, rows written now may
        # be there already: `wandb sync` must not find them.
        place = UNRESOLVED if link.is_open else PLACE
        local = LocalRun(self._context, place, self._clock, self._pause, self._timeouts)
        first_row = max(self._server_spot.row, link.last_row + 1)
        spot = local.open(self._server_spot, self._local_part, first_row, link.settled_row)
        self._local = local
        self._begin_at(spot)

    def _begin_at(self, spot: Spot) -> None:
        self._row, self._policy = spot.row, spot.policy

    # --- the position

    def _here(self) -> Spot:
        return Spot(self._row, self._policy)

    def _position(self) -> Position:
        state: dict[str, Any] = {"mode": self._mode, "policy_versions": self._versions}
        if self._mode == DISABLED:
            return Position(self._row, state)
        state["server"] = msgspec.to_builtins(self._server_spot)
        row = self._server_spot.row
        if self._local_part is not None:
            state["local"] = msgspec.to_builtins(self._local_part)
            row = self._local_part.spot.row if self._mode == OFFLINE else row
        return Position(row, state)
