"""OnlineRun: a run on a server, each selected row once as far as the server can tell.

In: rows with what is selected for them, and what the server has shown of itself.
Out: rows on the server, and how far the server has confirmed them.
Never: takes anything that wandb returns for a confirmation. The position moves
when the server, asked, shows the row, or with a clean finish.

Before the first row is sent, the link says that rows may be on their way; it
takes that back when the server has shown all that was sent.
"""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from shared.clock import Clock
from telemetry.sinks.base import SinkContext, SinkUnavailable
from telemetry.sinks.wandb import client, core
from telemetry.sinks.wandb.link import LinkFile
from telemetry.sinks.wandb.local import Spot
from telemetry.sinks.wandb.policy import Selected
from telemetry.sinks.wandb.server import Server, View
from telemetry.sinks.wandb.status import INTERRUPTED, Ending, say_ending

log = logging.getLogger(__name__)

ASK_S: Final = 30.0
AWAY_S: Final = 60.0
"""A server that does not answer for so long is away."""

CONFIRM_S: Final = 30.0
CONFIRM_POLL_S: Final = 1.0
CLOSE_LIMIT_S: Final = 15.0
"""Below what a sidecar has for its own end."""

MAX_SNAPSHOTS: Final = 1000


class Away(SinkUnavailable):
    """The server has not answered for too long."""


class _Snapshot(NamedTuple):
    spot: Spot
    needed_row: int


class OnlineRun:
    """Not thread-safe."""

    def __init__(
        self, context: SinkContext, clock: Clock, server: Server, link: LinkFile, spot: Spot
    ) -> None:
        self._context = context
        self._clock = clock
        self._server = server
        self._link = link
        self._spot = spot
        self._client: client.Client | None = None
        self._snapshots: deque[_Snapshot] = deque()
        self._sent = array("q")
        self._base = View()
        self._last_row = -1
        self._needed_row = -1
        self._asked_ns = self._answered_ns = clock.monotonic_ns()
        self._is_mismatch_said = False
        self._is_lost = False
        self._is_of_sweep = bool(context.run.get("wandb_sweep_id"))

    def start(self, view: View) -> None:
        """Go on behind what the server shows, which has stood still.

        Raises:
            SinkUnavailable: the server can't be had, or has more rows by now.
            SinkRejected: it will never take this run.
            RefusedSettings: wandb refuses what it was told of the run.
        """
        before = self._link.value
        self._link.set(before.shown(view.last_row, view.row_count, is_open=True))
        has_more = False
        try:
            self._client = client.start(self._context, "online")
            first_row = self._client.answer().first_row
            has_more = view.exists and first_row != view.last_row + 1
            if has_more:
                raise SinkUnavailable(f"the server has rows up to {first_row - 1} all of a sudden")
        except BaseException:
            # We have sent nothing yet. Somebody has, where the server has more than it
            # showed: then what is written offline meanwhile must not be synced beside it.
            self._client = None
            core.let_go()
            self._link.set(before.shown(view.last_row, view.row_count, is_open=has_more))
            raise
        self._base, self._last_row = view, view.last_row
        self._asked_ns = self._answered_ns = self._clock.monotonic_ns()

    def take(self, row: int, selected: Selected) -> None:
        """Send what the server has not shown. What has no row of its own may be repeated.

        Raises:
            Refused: the server has refused the upload.
            RowRefused: wandb does not take this row.
            SinkUnavailable: wandb-core is gone.
        """
        running = self._running()
        with self._losing():
            if selected.config is not None:
                running.update_config(selected.config)
            if selected.summary is not None:
                running.update_summary(selected.summary)
            if selected.alert is not None:
                running.alert(selected.alert)
            if selected.history is not None and row > self._base.last_row:
                running.send(row, selected.history)
                self._sent.append(row)
        if selected.history is not None and row > self._base.last_row:
            self._needed_row = row
        elif selected.config is not None or selected.summary is not None:
            self._needed_row = max(self._needed_row, row + 1)

    def commit(self, here: Spot) -> Spot:
        """How far the server has confirmed the rows; it is asked every 30 s.

        Raises:
            Refused: the server has refused the upload.
            Away: it has not answered for AWAY_S.
        """
        with self._losing():
            self._running().check()
        self._snapshots.append(_Snapshot(here, self._needed_row))
        if len(self._snapshots) > MAX_SNAPSHOTS:
            self._snapshots = deque(list(self._snapshots)[1::2])
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._asked_ns >= ASK_S * 1e9:
            self._asked_ns = now_ns
            with self._losing():
                self._ask(now_ns)
        self._settle()
        return self._spot

    def finish(self, here: Spot, ending: Ending) -> Spot:
        """End the run on the server, and see that it has all of it.

        Raises:
            Refused: the server refused something, or does not show the last rows.
            SinkUnavailable: it could not be finished in time.
        """
        running = self._running()
        self._context.wait(0)
        with self._losing():
            say_ending(running, ending, is_of_sweep=self._is_of_sweep)
            running.finish(ending.code)
        self._client = None
        self._confirm()
        self._snapshots.clear()
        self._spot = here
        return here

    def close(self) -> None:
        """End the session: the run goes on, and W&B shows it as preempted until it does."""
        running, self._client = self._client, None
        if running is None:
            return
        try:
            if self._is_lost:
                raise SinkUnavailable("the session has failed")
            if not self._is_of_sweep:
                running.mark_preempting()
            running.finish(INTERRUPTED, CLOSE_LIMIT_S)
            self._confirm()
        except SinkUnavailable as exc:
            running.abandon()
            log.warning("sink=wandb run=%s closed unclean: %s", self._context.run_id, exc)

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """A session that has failed once is not ended well any more: that only takes time."""
        try:
            yield
        except SinkUnavailable:
            self._is_lost = True
            raise

    def _ask(self, now_ns: int) -> None:
        try:
            view = self._server.view()
        except SinkUnavailable as exc:
            silent_s = (now_ns - self._answered_ns) / 1e9
            if silent_s >= AWAY_S:
                raise Away(f"{exc}, for {silent_s:.0f} s") from exc
            log.info("sink=wandb run=%s not confirmed: %s", self._context.run_id, exc)
            return
        self._answered_ns = now_ns
        self._heed(view, is_open=True)

    def _heed(self, view: View, *, is_open: bool) -> None:
        """Take note of what the server shows. It is never taken for less than it has shown."""
        if view.last_row <= self._last_row and is_open:
            return
        self._last_row = max(self._last_row, view.last_row)
        shown = bisect_right(self._sent, self._last_row)
        expected = self._base.row_count + shown
        self._base = View(True, expected, self._last_row, view.journal)
        del self._sent[:shown]
        if view.row_count != expected and not self._is_mismatch_said:
            self._is_mismatch_said = True
            log.warning(
                "sink=wandb run=%s: the server counts %d rows up to row %d, where %d were sent",
                self._context.run_id,
                view.row_count,
                view.last_row,
                expected,
            )
        link = self._link.value
        count = max(view.row_count, link.count)
        self._link.set(link.worked().shown(self._last_row, count, is_open=is_open))

    def _settle(self) -> None:
        while self._snapshots and self._snapshots[0].needed_row <= self._last_row:
            self._spot = self._snapshots.popleft().spot

    def _confirm(self) -> None:
        """Behind a clean finish, wait until the server shows the last row that was sent.

        A server that shows no rows at all, as some do, is believed for its clean finish.

        Raises:
            Refused: it shows less, and goes on to.
        """
        last_sent = self._sent[-1] if self._sent else self._base.last_row
        deadline_ns = self._clock.monotonic_ns() + int(CONFIRM_S * 1e9)
        view = self._server.view()
        while view.last_row < last_sent and self._clock.monotonic_ns() < deadline_ns:
            self._server.pause(CONFIRM_POLL_S)
            view = self._server.view()
        if view.last_row >= last_sent:
            self._heed(view, is_open=False)
            self._settle()
        elif view._replace(journal="") == View(exists=True):
            log.warning(
                "sink=wandb run=%s: the server does not tell what it has; nothing failed",
                self._context.run_id,
            )
            link = self._link.value
            self._link.set(link.worked().shown(link.last_row, link.count, is_open=False))
        else:
            raise client.Refused(
                f"the W&B server shows rows up to {view.last_row}, {last_sent} was sent"
            )

    def _running(self) -> client.Client:
        if self._client is None:
            raise SinkUnavailable("the run is not open on the server")
        return self._client
