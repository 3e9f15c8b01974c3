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
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from shared.clock import Clock, SystemClock
from shared.closing import Closing
from shared.ids import new_session, sanitized_host
from telemetry.alerts.recording import record
from telemetry.alerts.rules import read_rules
from telemetry.alerts.telling import Telling
from telemetry.alerts.watcher import Watcher
from telemetry.alerts.webhook import senders_of
from telemetry.config import ServeConfig
from telemetry.datadir import DataDir
from telemetry.descriptors import Shares, shares_in_use
from telemetry.drain import Drain, Parts, Producers
from telemetry.errors import EXIT_FAULT, EXIT_RUNNING, CommandError
from telemetry.http import Health, StatusServer
from telemetry.ingest.gateway import AddressInUse, Gateway
from telemetry.ingest.host_run import HostRun
from telemetry.ingest.inbox import Inbox
from telemetry.ingest.ingest import Ingest
from telemetry.ingest.orphan_spools import SpoolCarrier
from telemetry.ingest.reading import Reading
from telemetry.ingest.runs import Runs
from telemetry.journal.writer import JournalFault
from telemetry.journal_loop import JournalLoop
from telemetry.room import Room
from telemetry.supervise.page_process import PageProcess
from telemetry.supervise.process_ends import ProcessEnds, kill_counter
from telemetry.supervise.retention import Retention
from telemetry.supervise.sampler_process import SamplerProcess, processes_on
from telemetry.supervise.supervisor import Supervisor, sink_command
from telemetry.watch.facts import RunFacts, Situation
from telemetry.watch.feed import Feed

log = logging.getLogger("telemetry.service")

OPENED_AT_ONCE: Final = 64
"""Runs of a former sidecar that are opened before the first poll, and then in each second."""


class Service(Closing):
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
        self.producers = Producers()
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
        self._room = Room(self._data_dir, config.data_dir, config.min_free_bytes)
        self._feed = Feed()
        self._runs = Runs(config.data_dir, new_session(), self._clock, self._feed)
        self._host_run = HostRun(self._host, config.wandb_mode, is_enabled=config.host_run)
        self._ends = ProcessEnds(self._host, kill_counter(self._clock))
        self._ingest = Ingest(
            self._runs,
            self._clock,
            self._host_run,
            config.lost_after_s,
            self._shares.runs,
            ends=self._ends,
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
            open_runs=self._runs.open_ids,
        )
        # `telemetry run` makes its command spool into the data directory, also where another
        # process started the sidecar.
        names = dict.fromkeys([*config.spool_dir, str(config.data_dir.absolute() / "spool")])
        spools = tuple(Path(name).expanduser() for name in names)
        self._carrier = SpoolCarrier(config.address, spools, self._clock)
        self._retention = Retention(self._runs.directory, config.sinks, config.retain_bytes)
        self._sampler = SamplerProcess(config.address, self._host, config.sample_hz, self._clock)
        self._page = PageProcess(
            config.data_dir, config.page, config.page_host, config.page_token, self._clock
        )
        self._loop = JournalLoop(
            config, self._clock, self._inbox, self._reading, self._ingest, self._tick, self.stop
        )
        self._health = Health()
        rules = read_rules(config.alerts)
        for complaint in rules.complaints:
            log.warning("%s", complaint)
        self._senders = senders_of(config.alert_webhook, config.alert_apprise)
        telling = Telling([sender.put for sender in self._senders])
        self._watcher = Watcher(self._feed, self._situation, self._clock, rules, telling)
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
                self._loop.poll()
            parts = Parts(
                self._loop, self._ingest, self._runs, self._host_run, self._sampler,
                self._carrier, self._supervisor,
            )  # fmt: skip
            return Drain(self.config, self._clock, parts, self.producers, self._tick).run()
        except JournalFault as exc:
            log.error("journal fault, stopping: %s", exc)
            return EXIT_FAULT

    def health(self) -> Health:
        """Return the newest health of the sidecar. May be called from any thread."""
        now = self._clock.monotonic_ns()
        return replace(
            self._health,
            loop_age_s=(now - self._reading.polled_ns) / 1e9,
            journal_age_s=(now - self._loop.polled_ns) / 1e9,
            sinks=self._supervisor.snapshot(),
            latest=self._watcher.latest,
            alerts=self._watcher.counts,
            unrecorded=self._watcher.unrecorded,
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
        for sender in self._senders:
            sender.close()
        self._page.end()
        self._sampler.end()
        if self._status is not None:
            self._status.close()
            self._status = None
        # 2. The socket, after the thread that owns it.
        self._reading.close()
        self._gateway.close()
        # 3. The processes of trainers, and the journals; then the lock on the data directory,
        #    so that the next sidecar finds no file of it in use.
        self._ends.close()
        self._runs.close()
        self._data_dir.close()

    # --- once a second

    def _tick(self) -> None:
        """Do what is due once a second, and publish the health that results."""
        # 1. Room on disk first: the steps below open and write files. Without it, ingest and
        #    sinks pause.
        self._ingest.has_room = self._room.look()
        self._supervisor.pause(not self._ingest.is_writable)
        # 2. End the runs that are over, which makes place for others.
        self._ingest.tick()
        self._open_more()
        # 3. Restart a sampler or a page that died, but not while draining.
        if not self.stop.is_set():
            self._sampler.keep()
            self._page.keep()
            active_here = self._runs.active(self._host_run.run_id)
            self._sampler.watch(processes_on(self._host, active_here))
        # 4. Record alerts, where there is room for them, and a commit still follows.
        if self._ingest.is_writable and not self.stop.is_set():
            self._record_alerts()
        # 5. Publish, as one new value: other threads read it without a lock.
        active = [run for run in self._runs if not run.is_ended]
        self._health = Health(
            is_writable=self._ingest.is_writable,
            detail="" if self._ingest.is_writable else "no room on disk",
            counts={
                # Both threads count some of the same things.
                **(self._ingest.counts + Counter(self._reading.counts)),
                "failed_turns_total": self._loop.failures + self._reading.failures,
                "watch_skipped_frames_total": self._feed.dropped_frames,
                "alerts_not_recorded_total": self._watcher.not_recorded,
                "alert_messages_dropped_total": sum(s.dropped for s in self._senders),
            },
            gaps=dict(self._ingest.gaps),
            active_runs=len(active),
            durable_rows={run.run_id: run.writer.durable_row for run in self._runs},
            runs=tuple(self._facts()),
        )

    def _record_alerts(self) -> None:
        """Write the onsets and ends of conditions into the runs that they concern."""
        host_id = self._host_run.run_id
        records = {run.run_id for run in self._runs.active(host_id)} or {host_id}
        published = self._watcher.published
        wall_s = self._clock.wall_ns() / 1e9
        record(published, self._runs, lambda run: run.run_id in records, wall_s)

    def _situation(self) -> Situation:
        """Return what the rules of alerts look at. Called from the watching thread."""
        return Situation(
            self._health.runs,
            self._supervisor.snapshot(),
            self._room.free_bytes,
            self._health.is_writable,
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
