"""The service: builds the parts of the sidecar, runs its journal thread, and shuts it down.

In: a configuration, and a request to stop.
Out: an exit code, after everything was drained or the grace time was over.

Data moves from the gateway, which the reading thread owns, through ingest into journals;
the processes of the sinks read the journals. Shutdown follows the data: sampler, ingest,
journal, sinks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final

import msgspec

from shared.clock import Clock, SystemClock
from shared.ids import new_session, sanitized_host
from shared.wire import Message
from telemetry.config import ServeConfig
from telemetry.datadir import DataDir
from telemetry.descriptors import Shares, shares_in_use
from telemetry.errors import EXIT_BACKLOG, EXIT_FAULT, EXIT_OK, EXIT_RUNNING, CommandError
from telemetry.http import Health, StatusServer
from telemetry.ingest.gateway import AddressInUse, Gateway
from telemetry.ingest.host_run import HostRun
from telemetry.ingest.inbox import Inbox
from telemetry.ingest.ingest import Ingest
from telemetry.ingest.orphan_spools import SpoolCarrier
from telemetry.ingest.reading import Reading
from telemetry.ingest.runs import Runs
from telemetry.journal.writer import JournalFault
from telemetry.summary import Commands, print_summary
from telemetry.supervise.retention import Retention
from telemetry.supervise.sampler_process import SamplerProcess
from telemetry.supervise.supervisor import Supervisor, sink_command
from telemetry.watch.facts import RunFacts
from telemetry.watch.feed import Feed
from telemetry.watch.watcher import Watcher

log = logging.getLogger("telemetry.service")

STDIN_KEPT_BYTES: Final = 4096
IDLE_WAIT_S: Final = 0.25
TICK_NS: Final = 1_000_000_000
SETTLE_S: Final = 0.3
"""After the last producer is gone: what is still in the socket arrives within this."""

PENDING_MAX_BYTES: Final = 8 * 1024 * 1024
"""Bytes received and not synced, above which nothing is taken while the disk has no room."""

OPENINGS_A_TURN: Final = 256
"""Streams that are opened at most between two looks at the frames."""

OPENED_AT_ONCE: Final = 64
"""Runs of a former sidecar that are opened before the first turn, and then in each second."""

LAST_WORDS_SHARE: Final = 0.5
"""Share of the grace time in which trainers may still send their last events."""


class Service:
    """The sidecar, from its start until it is drained.

    All methods run on the journal thread, but `health` and setting `stop`.
    """

    def __init__(
        self,
        config: ServeConfig,
        clock: Clock | None = None,
        shares: Shares | None = None,
        pid: int | None = None,
    ) -> None:
        """Bind the sockets and open the files that serving needs.

        pid: the process that a user sees, where this one is its child.

        Raises:
            CommandError: the data directory, an address or a port can't be used.
        """
        self.config = config
        self.stop = threading.Event()
        self.are_producers_gone = False
        self.exit_code: int | None = None
        """Exit code of the command that made the runs, where `telemetry run` has told it."""
        self._clock = clock or SystemClock()
        self._shares = shares or shares_in_use()
        self._host = sanitized_host(config.host or socket.gethostname())
        self._data_dir = DataDir(config.data_dir, pid)
        with contextlib.ExitStack() as undo:
            undo.callback(self._data_dir.close)
            self._gateway = _bound(config, self._shares.connections, pid)
            undo.callback(self._gateway.close)
            # With port 0 the system has chosen a port: the other parts need the real one.
            self.config = replace(config, bind=self._gateway.address)
            self._open_parts()
            undo.pop_all()

    def _open_parts(self) -> None:
        config = self.config
        self._feed = Feed()
        self._runs = Runs(config.data_dir, new_session(), self._clock, self._feed)
        self._host_run = HostRun(self._host, config.wandb_mode, is_enabled=config.host_run)
        self._ingest = Ingest(
            self._runs, self._clock, self._host_run, config.lost_after_s, self._shares.runs
        )
        self._inbox = Inbox()
        self._reading = Reading(self._gateway, self._inbox, self._clock)
        self._supervisor = Supervisor(
            self._runs.directory,
            config.sinks,
            self._clock,
            max_processes=config.max_sink_processes,
            sink_timeout_s=config.sink_timeout_s,
            command=partial(sink_command, per_core=config.per_core),
        )
        # `telemetry run` makes its command spool into the data directory, also where another
        # process started the sidecar.
        names = dict.fromkeys([*config.spool_dir, str(config.data_dir.absolute() / "spool")])
        spools = tuple(Path(name).expanduser() for name in names)
        self._carrier = SpoolCarrier(config.address, spools, self._clock)
        self._retention = Retention(self._runs.directory, config.sinks, config.retain_bytes)
        self._sampler = SamplerProcess(config.address, self._host, config.sample_hz, self._clock)
        self._turned_ns = self._clock.monotonic_ns()
        self._ticked_ns = 0
        self._failures = 0
        self._health = Health()
        self._watcher = Watcher(self._feed, lambda: self._health.runs, self._clock)
        self._status = None if config.http == "off" else StatusServer(config.http, self.health)

    def run(self) -> int:
        """Serve until `stop` is set, then drain. Returns the exit code of `serve`."""
        # 1. Answer peers: recovering many runs may take minutes, and they must not wait unheard.
        self._reading.start()
        # 2. Recover the runs of a former sidecar: some now, the rest once a second.
        self._runs.note_unfinished()
        self._runs.open_noted(OPENED_AT_ONCE)
        # 3. Look for room on disk, before the first event is taken and the first sink starts.
        self._tick()
        # 4. Start the threads that read the directories of runs and the spools.
        self._supervisor.start()
        self._carrier.start()
        self._retention.start()
        self._watcher.start()
        # 5. Publish the address last: who finds it in the data directory finds all at work.
        self._data_dir.publish(self.config.address)
        log.info("listening on %s, data in %s", self.config.address, self.config.data_dir)
        if self._status is not None:
            log.info("status on http://%s: /livez, /readyz, /metrics", self._status.address)
        # 6. Serve until asked to stop, then drain.
        try:
            while not self.stop.is_set():
                self._guarded_turn()
            return self._drain()
        except JournalFault as exc:
            log.error("journal fault, stopping: %s", exc)
            return EXIT_FAULT

    def health(self) -> Health:
        """Return the newest health of the sidecar. May be called from any thread."""
        now = self._clock.monotonic_ns()
        return replace(
            self._health,
            loop_age_s=(now - self._reading.turned_ns) / 1e9,
            journal_age_s=(now - self._turned_ns) / 1e9,
            sinks=self._supervisor.snapshot(),
            latest=self._watcher.latest,
            now_ns=now,
        )

    def close(self) -> None:
        """Stop every thread and process, and close every file. May be called twice.

        After a drain most of it has happened already; after a fault this is the whole end.
        """
        # 1. Readers of the journals, and the threads that send into the socket.
        self._supervisor.end(0)
        self._carrier.close()
        self._retention.close()
        self._watcher.close()
        self._sampler.end()
        if self._status is not None:
            self._status.close()
            self._status = None
        # 2. The socket, after the thread that owns it.
        self._reading.close()
        self._gateway.close()
        # 3. The journals; then the lock on the data directory, so that the next sidecar
        #    finds no file of it in use.
        self._runs.close()
        self._data_dir.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- serving

    def _guarded_turn(self) -> None:
        """Run one turn; log and count an exception in it, so that the next turn begins.

        Raises:
            JournalFault: a disk failed; going on would acknowledge what may not be on it.
        """
        try:
            self._turn()
        except JournalFault:
            raise
        except Exception:
            self._note_failure("a turn failed; the sidecar goes on")

    def _note_failure(self, text: str) -> None:
        self._failures += 1
        if self._failures == 1:
            log.exception(text)

    def _turn(self) -> None:
        """Run one turn of the journal thread: take in messages, commit, answer, tick.

        One sync then serves all messages of up to commit_interval_ms, of all streams.
        """
        commit_ns = int(self.config.commit_interval_ms * 1e6)
        due_ns: int | None = None
        # 1. Renew the leave to open runs: openings take a disk's time, and may not fill a turn.
        self._ingest.limits.begin_turn()
        # 2. Append what comes in, until a commit is due or nothing comes. The first message
        #    sets the time of the commit, so that an idle sidecar syncs nothing.
        while not self._is_commit_due(due_ns):
            now = self._clock.monotonic_ns()
            left_s = IDLE_WAIT_S if due_ns is None else (due_ns - now) / 1e9
            has_news = self._inbox.wait(left_s)
            # Before the disk is touched: the reading thread counts a stall from here.
            self._publish_turn()
            if not has_news:
                break
            due_ns = due_ns or self._turned_ns + commit_ns
            self._take_in()
        # 3. Sync the journals, and only then acknowledge: an ACK says "on disk".
        self._reading.answer(self._ingest.commit())
        self._publish_turn()
        # 4. Note who was heard of, after the sync: it may have taken minutes, in which the
        #    reading thread answered peers that otherwise would now count as silent.
        self._ingest.hear(self._reading.reception.taken_heard())
        # 5. Once a second, look at room and silence. Last: silence is judged by what the
        #    steps before have heard.
        if self._turned_ns - self._ticked_ns >= TICK_NS:
            self._ticked_ns = self._turned_ns
            self._tick()

    def _is_commit_due(self, due_ns: int | None) -> bool:
        if due_ns is None:
            return False
        # Openings that this turn has no more time for wait for the next turn: commit now.
        if self._ingest.limits.is_turn_spent or self._clock.monotonic_ns() >= due_ns:
            return True
        return self._ingest.pending_bytes >= self.config.commit_bytes

    def _take_in(self) -> None:
        """Take openings of streams, then frames: as many as may be pending."""
        # 1. Openings, within this turn's bounds: a frame is of use only in an open stream.
        for _ in range(OPENINGS_A_TURN):
            if self._ingest.limits.is_turn_spent or not (item := self._inbox.take_opening()):
                break
            self._handle(*item)
        # 2. With a full disk, leave the frames in the inbox: its size is bounded, and the
        #    memory of the journals is not. Waiting here keeps the loop from spinning.
        pending = self._ingest.pending_bytes
        if not self._ingest.is_writable and pending >= PENDING_MAX_BYTES:
            self.stop.wait(self.config.commit_interval_ms / 1e3)
            return
        # 3. Frames, up to the size at which a commit is due anyway.
        for peer, message in self._inbox.take(max(1, self.config.commit_bytes - pending)):
            self._handle(peer, message)

    def _handle(self, peer: bytes, message: Message) -> None:
        """Handle one message; log and count an exception, so that the next one is handled."""
        try:
            self._reading.answer(self._ingest.handle(peer, message))
        except JournalFault:
            raise
        except Exception:
            self._note_failure("a message could not be handled; the sidecar goes on")

    def _publish_turn(self) -> None:
        """Tell the reading thread that this thread is not stalled, and how much credit to give."""
        self._turned_ns = self._reading.reception.turned_ns = self._clock.monotonic_ns()
        self._reading.reception.credit_bytes = self._ingest.credit_bytes

    def _tick(self) -> None:
        """Do what is due once a second, and publish the health that results."""
        # 1. Room on disk first: the steps below open and write files.
        self._check_room()
        # 2. End the runs that are over, which makes place for others.
        self._ingest.tick()
        self._open_more()
        # 3. Restart a sampler that died, but not while draining.
        if not self.stop.is_set():
            self._sampler.keep()
        # 4. Publish, as one new value: other threads read it without a lock.
        active = [run for run in self._runs if not run.is_ended]
        self._health = Health(
            is_writable=self._ingest.is_writable,
            detail="" if self._ingest.is_writable else "no room on disk",
            counts={
                **self._ingest.counts,
                **self._reading.counts,
                "failed_turns_total": self._failures + self._reading.failures,
                "watch_skipped_frames_total": self._feed.dropped_frames,
            },
            gaps=dict(self._ingest.gaps),
            active_runs=len(active),
            durable_rows={run.run_id: run.writer.durable_row for run in self._runs},
            runs=tuple(self._facts()),
        )

    def _facts(self) -> Iterator[RunFacts]:
        now_ns = self._clock.monotonic_ns()
        for run in self._runs:
            yield run.facts(now_ns, is_host=run.run_id == self._host_run.run_id)

    def _open_more(self) -> None:
        """Open some more of the runs that a former sidecar left, within the limit of open runs."""
        room = min(OPENED_AT_ONCE, self._shares.runs - len(self._runs))
        if self._shares.has_spare():
            self._runs.open_noted(room)

    def _check_room(self) -> None:
        """Pause ingest and sinks while too little of the disk is free.

        Raises:
            JournalFault: the data directory is gone.
        """
        if not self._data_dir.is_there:
            # Writes would still succeed, into deleted files that nobody can open any more.
            raise JournalFault(f"the data directory {self.config.data_dir} was removed or moved")
        free = shutil.disk_usage(self.config.data_dir).free
        has_room = free >= self.config.min_free_bytes
        if has_room != self._ingest.has_room:
            level = logging.INFO if has_room else logging.ERROR
            log.log(level, "%d MB free: %s", free >> 20, "going on" if has_room else "pausing")
        self._ingest.has_room = has_room
        self._supervisor.pause(not self._ingest.is_writable)

    # --- draining

    def _drain(self) -> int:
        """Drain the sidecar in the order of the data, within the grace time.

        Returns the exit code of `serve`: EXIT_BACKLOG where a sink lacks rows of a run that
        has ended.
        """
        began_ns = self._clock.monotonic_ns()

        def left_s(share: float = 1.0) -> float:
            spent_s = (self._clock.monotonic_ns() - began_ns) / 1e9
            return max(0.0, self.config.drain_grace_s * share - spent_s)

        # 1. Ask the producers of our own to finish. First: they need time to send their last
        #    events, and the turns below take those in.
        self._sampler.ask_to_end()
        self._carrier.look_now()
        # 2. Go on taking in, at least for what is in the socket already, and up to half of
        #    the grace time while a trainer or a spool still has events. The other half is
        #    the sinks'.
        settle = min(SETTLE_S, self.config.drain_grace_s / 4)
        while True:
            self._guarded_turn()
            has_words = self._ingest.has_live_trainers and not self.are_producers_gone
            is_waited_for = has_words or not self._carrier.is_idle
            spent_s = self.config.drain_grace_s - left_s()
            if spent_s >= settle and not (is_waited_for and left_s(LAST_WORDS_SHARE)):
                break
        # 3. End those producers: from here on nothing new may come from them.
        self._carrier.close()
        self._sampler.end()
        # 4. Write the last events of runs, after all events of their producers: a run whose
        #    producers are known to be gone gets their exit code, the host's own run its end.
        if self.are_producers_gone:
            self._ingest.declare_abandoned(self.exit_code)
        self._host_run.finish(self._runs)
        # 5. Mark runs as ended that are over now; the turn syncs the journals and sends the
        #    last acknowledgements, and the tick ends the runs whose last event it synced.
        self._ingest.tick()
        self._guarded_turn()
        self._tick()
        # 6. Let the sinks finish, after the last sync: they read only what is on disk, and
        #    close a run in their service only where run.json says that it has ended.
        self._supervisor.end(left_s())
        # 7. Report what a sink still lacks. Runs that go on are not backlog: their trainers
        #    are alive, and a later sidecar continues them.
        told_of = self._runs.told_of
        backlog = {pair for pair in self._supervisor.backlog if pair[0] in told_of}
        open_runs = {run.run_id for run in self._runs if not run.is_ended}
        backlog = {pair for pair in backlog if pair[0] not in open_runs}
        commands = Commands(self.config.command_form, self.config.tensorboard_url)
        print_summary(self._runs.directory, sorted(told_of), backlog, commands)
        return EXIT_BACKLOG if backlog else EXIT_OK


def _bound(config: ServeConfig, connections_max: int, pid: int | None) -> Gateway:
    try:
        return Gateway(
            config.address,
            allow_insecure=config.insecure_network,
            connections_max=connections_max,
            pid=pid,
        )
    except AddressInUse as exc:
        raise CommandError(f"--bind: {exc}", EXIT_RUNNING) from exc
    except (ValueError, OSError) as exc:
        raise CommandError(f"--bind: {exc}") from exc


def watch_stdin(service: Service) -> None:
    """Stop the service when standard input closes: the process that started it is gone.

    A last line of JSON before that, `{"exit_code": N}`, tells how the command that made the
    runs has ended; N is 128 + n, or -n, for signal n. Starts a thread, "stdin".
    """

    def watch() -> None:
        said = b""
        while chunk := os.read(0, 1024):
            said = (said + chunk)[-STDIN_KEPT_BYTES:]
        service.exit_code = exit_code_in(said)
        service.are_producers_gone = True
        service.stop.set()

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def exit_code_in(said: bytes) -> int | None:
    """Return the exit code in the last line of `said`, or None where there is none."""
    lines = said.split(b"\n")
    try:
        return msgspec.json.decode(lines[-2 if said.endswith(b"\n") else -1], type=_Said).exit_code
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


class _Said(msgspec.Struct):
    """A line on standard input."""

    exit_code: Annotated[int, msgspec.Meta(ge=-255, le=2**31)]
