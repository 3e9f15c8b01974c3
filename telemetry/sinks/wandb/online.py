"""OnlineRun: a run on a server, each selected row once as far as the server can tell.

In: rows with the values selected for them, and the rows that the server shows.
Out: rows on the server, and the position up to which the server has confirmed them.
Never: takes a return value of wandb as a confirmation. The position moves only when the
server, asked, shows the row, or with a clean finish.

The link is set to open before the first row is sent, and to closed when the server has
shown all that was sent.
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
from telemetry.sinks.wandb.run_status import INTERRUPTED, Ending, say_ending
from telemetry.sinks.wandb.selection import Selected
from telemetry.sinks.wandb.server import Server, View
from telemetry.sinks.wandb.timeouts import TIMEOUTS, Timeouts

log = logging.getLogger(__name__)

AWAY_S: Final = 60.0
"""A server that does not answer for so long counts as away."""

CONFIRM_S: Final = 30.0
CONFIRM_POLL_S: Final = 1.0
CLOSE_LIMIT_S: Final = 15.0
"""Limit of the finish at close; less than the time that a sidecar has to shut down."""

MAX_SNAPSHOTS: Final = 1000


class Away(SinkUnavailable):
    """Error: the server has not answered for AWAY_S."""


class _Snapshot(NamedTuple):
    spot: Spot
    needed_row: int


class OnlineRun:
    """A run sent to a W&B server. Not thread-safe."""

    def __init__(
        self,
        context: SinkContext,
        clock: Clock,
        server: Server,
        link: LinkFile,
        spot: Spot,
        timeouts: Timeouts = TIMEOUTS,
    ) -> None:
        self._context = context
        self._clock = clock
        self._server = server
        self._link = link
        self._spot = spot
        self._timeouts = timeouts
        self._client: client.Client | None = None
        self._snapshots: deque[_Snapshot] = deque()
        self._sent = array("q")
        self._base = View()
        self._last_row = -1
        self._needed_row = -1
        self._asked_ns = self._answered_ns = clock.monotonic_ns()
        self._is_mismatch_said = False
        self._is_lost = False
        self._is_of_sweep = bool(context.run.wandb_sweep_id)

    def start(self, view: View) -> None:
        """Start behind the last row that the server shows; view must no longer be changing.

        Raises:
            SinkUnavailable: the server can't be reached, or has more rows by now.
            SinkRejected: the server will never accept this run.
            RefusedSettings: wandb refuses the identity or config of the run.
        """
        # 1. Record on disk that rows may be on their way.
        before = self._link.value
        self._link.set(before.shown(view.last_row, view.row_count, is_open=True))
        # 2. Start the run; the server must not have more rows than it showed.
        has_more = False
        try:
            self._client = client.start(self._context, "online", timeouts=self._timeouts)
            first_row = self._client.answer().first_row
            has_more = view.exists and first_row != view.last_row + 1
            if has_more:
                raise SinkUnavailable(f"the server has rows up to {first_row - 1} all of a sudden")
        except BaseException:
            # This process has sent nothing yet. But if the server has more rows than it
            # showed, another process is sending: the link stays open, so that fragments
            # written meanwhile are not offered to `wandb sync`.
            self._client = None
            core.let_go()
            self._link.set(before.shown(view.last_row, view.row_count, is_open=has_more))
            raise
        self._base, self._last_row = view, view.last_row
        self._asked_ns = self._answered_ns = self._clock.monotonic_ns()

    def take(self, row: int, selected: Selected) -> None:
        """Send a row that the server has not shown; config and summary may be sent repeatedly.

        Raises:
            Refused: the server has refused the upload.
            RowRefused: wandb refuses this row.
            SinkUnavailable: wandb-core has ended.
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
        """Return the spot that the server has confirmed. The server is asked every 30 s.

        Raises:
            Refused: the server has refused the upload.
            Away: the server has not answered for AWAY_S.
        """
        with self._losing():
            self._running().check()
        self._snapshots.append(_Snapshot(here, self._needed_row))
        if len(self._snapshots) > MAX_SNAPSHOTS:
            self._snapshots = deque(list(self._snapshots)[1::2])
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._asked_ns >= self._timeouts.ask_every_s * 1e9:
            self._asked_ns = now_ns
            with self._losing():
                self._ask(now_ns)
        self._settle()
        return self._spot

    def finish(self, here: Spot, ending: Ending) -> Spot:
        """End the run on the server, and wait until the server shows all of it.

        Raises:
            Refused: the server refused something, or does not show the last rows.
            SinkUnavailable: the run could not be finished in time.
        """
        running = self._running()
        self._context.wait(0)
        with self._losing():
            say_ending(running, ending, is_of_sweep=self._is_of_sweep)
            running.finish(ending.code)
        self._client = None
        self._confirm()
        return here

    def close(self) -> None:
        """End the session of a run that will continue; W&B shows it as preempted until then."""
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
        """Note a failure, so that close does not spend time on a clean end of a failed session."""
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
        """Store the rows that the server shows, in the link too; a smaller answer is ignored."""
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
        """Wait after a clean finish until the server shows the last row that was sent.

        Some servers show no rows at all; for those a clean finish is enough.

        Raises:
            Refused: the server still shows fewer rows after CONFIRM_S.
        """
        last_sent = self._sent[-1] if self._sent else self._base.last_row
        deadline_ns = self._clock.monotonic_ns() + int(CONFIRM_S * 1e9)
        view = self._server.view()
        while view.last_row < last_sent and self._clock.monotonic_ns() < deadline_ns:
            self._server.pause(CONFIRM_POLL_S)
            view = self._server.view()
        if view.last_row >= last_sent:
            self._heed(view, is_open=False)
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
