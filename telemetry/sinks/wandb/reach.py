"""Reach: the server of one run as the sink knows it, and each failure to reach it, said once.

In: the answers of the server, and what goes wrong on the way to it.
Out: a complete view of the run, and the link on disk.
Never: sends anything. (That is online.py.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from shared.clock import Clock
from telemetry.sinks.base import SinkContext, SinkRejected, SinkUnavailable
from telemetry.sinks.wandb import client
from telemetry.sinks.wandb.link import LinkFile
from telemetry.sinks.wandb.online import Away
from telemetry.sinks.wandb.server import Server, View

log = logging.getLogger(__name__)


class Reach:
    """The server and the link of one run. Not thread-safe."""

    def __init__(self, context: SinkContext, clock: Clock, server: Server, link: LinkFile) -> None:
        self._context, self._clock = context, clock
        self.server, self.link = server, link

    def look(self, server_row: int) -> View:
        """Return the server's view of the run, once it is complete.

        server_row: the row before which the cursor says that the server has all.

        Raises:
            SinkUnavailable: the server can't be asked, or shows less than it did.
            SinkRejected: the server does not have the run any more, or has rows of another
                journal under its id.
        """
        link = self.link.value
        view = self.server.view()
        if link.is_open or (view.last_row, view.row_count) != (link.last_row, link.count):
            # Rows may still be on their way, or a user may have synced the fragments.
            self.link.set(link.shown(link.last_row, link.count, is_open=True))
            view = self.server.still_view()
        own = self._context.journal
        if own and view.journal and view.journal != own:
            raise SinkRejected(
                f"run {self._context.run_id} on the W&B server has rows of journal "
                f"{view.journal}, and this is journal {own}: give this run another id"
            )
        if not view.exists and (link.last_row >= 0 or server_row > 0):
            raise SinkRejected(
                f"run {self._context.run_id} is on the W&B server no more, which had rows of it; "
                "the journal has them all"
            )
        if view.last_row < link.last_row or view.row_count < link.count:
            raise SinkUnavailable(
                f"the W&B server shows {view.row_count} rows up to {view.last_row}, "
                f"and had {link.count} up to {link.last_row}"
            )
        self.link.set(link.shown(view.last_row, view.row_count, is_open=False))
        return view

    def note_failure(self, why: str, *, is_refused: bool = False) -> None:
        link = self.link.value
        # Log each reason only once: the tries may go on for days.
        say = log.debug if link.why == why else log.warning
        say("sink=wandb run=%s goes on offline: %s", self._context.run_id, why)
        self.link.set(link.failed(why, self._clock.wall_ns(), is_refused=is_refused))

    def try_again(self) -> None:
        """Ask the server again while writing fragments; if it answers, end this process.

        Raises:
            SinkUnavailable: the server answers; the next process sends the run to it.
        """
        try:
            self.server.view()
        except SinkUnavailable as exc:
            self.note_failure(str(exc))
            return
        raise SinkUnavailable("the W&B server answers again: the run is brought up to date")

    @contextmanager
    def noting_refusals(self) -> Iterator[None]:
        try:
            yield
        except (client.Refused, Away) as exc:
            self.note_failure(str(exc), is_refused=isinstance(exc, client.Refused))
            raise
