"""Status over HTTP: serves liveness, readiness and metrics of the sidecar.

In: a function that returns the present `Health`.
Out: /livez, /readyz and /metrics (Prometheus text format).
Never: touches the journal thread's state; it reads values that the thread publishes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from shared.text import clean
from telemetry.errors import CommandError
from telemetry.http_server import Answer, BoundedServer
from telemetry.watch.exposition import families
from telemetry.watch.facts import RunFacts, SinkStatus, Unrecorded
from telemetry.watch.latest import Latest

LOOP_MAX_AGE_S: Final = 10.0
STUCK_AGE_S: Final = 300.0
LABEL_MAX_CHARS: Final = 200

COUNTS: Final = {
    "events_total": "Events that were taken",
    "hardware_events_without_a_run_total": "Events of samplers that no run was open for",
    "overlapping_frames_total": "Frames that came again, in part or whole",
    "holes_total": "Gaps in the numbers of a stream",
    "full_disk_total": "Writes that the disk had no room for",
    "streams_told_to_wait_total": "Streams that were not opened at once",
    "frames_over_credit_total": "Frames that were read and asked for again, for want of room",
    "malformed_messages_total": "Messages that could not be read",
    "unexpected_messages_total": "Messages that no producer sends",
    "unsent_replies_total": "Answers that a peer did not take",
    "refused_connections_total": "Connections beyond the limit of open files",
    "refused_streams_total": "Streams that were refused",
    "quarantined_frames_total": "Frames that could not be decoded and were kept aside",
    "quarantined_events_total": "Events that could not be decoded and were kept aside",
    "failed_turns_total": "Polls of a loop that failed in a way that nobody expected",
    "watch_skipped_frames_total": "Frames that alerts and latest values did not see",
    "alerts_not_recorded_total": "Alerts that were over before a journal could have them",
    "alert_messages_dropped_total": "Messages to receivers of alerts that were given up",
}
"""Meanings of the counts of the sidecar; one that is not here is shown under its name."""


@dataclass(frozen=True)
class Health:
    """Health of the sidecar, published once a second by the journal thread."""

    loop_age_s: float = 0.0
    """Time since the reading thread last turned."""

    journal_age_s: float = 0.0
    """Time since the journal thread last turned; long while it waits for a disk."""

    is_writable: bool = True
    detail: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    gaps: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Events that are missing, by kind and reason."""
    active_runs: int = 0
    durable_rows: Mapping[str, int] = field(default_factory=dict)
    sinks: list[SinkStatus] = field(default_factory=list)
    runs: tuple[RunFacts, ...] = ()
    latest: Latest = field(default_factory=Latest)
    """The latest values of runs and hosts, as of now_ns."""
    now_ns: int = 0
    alerts: Mapping[str, int] = field(default_factory=dict)
    """Onsets of alerts, by name."""
    unrecorded: tuple[Unrecorded, ...] = ()
    """Alerts that are active and that no journal has, for want of room or of a run."""

    @property
    def is_live(self) -> bool:
        """True if peers are answered. A stalled disk counts only after STUCK_AGE_S: until then
        a restart of the sidecar would not help."""
        return self.loop_age_s < LOOP_MAX_AGE_S and self.journal_age_s < STUCK_AGE_S

    @property
    def unready(self) -> str:
        """Reason why no event can be acknowledged now, or "" if events can."""
        if not self.is_live:
            return "the sidecar's loop has stopped turning"
        if self.journal_age_s >= LOOP_MAX_AGE_S:
            return f"the disk has not answered for {self.journal_age_s:.0f} s"
        return "" if self.is_writable else self.detail or "nothing can be written"


class StatusServer:
    """An HTTP server on a thread of its own."""

    def __init__(self, address: str, health: Callable[[], Health]) -> None:
        """Bind and serve.

        Raises:
            CommandError: the address can't be had.
        """
        host, _, port = address.rpartition(":")
        registry = CollectorRegistry()
        registry.register(Collector(health))

        def answer(path: str) -> Answer:
            return _answer(path, health(), registry)

        try:
            self._server = BoundedServer((host.strip("[]") or "127.0.0.1", int(port)), answer)
        except OSError as exc:
            raise CommandError(
                f"--http {address}: {exc.strerror}; choose another address, or 'off'"
            ) from exc
        self.address = "{}:{}".format(*self._server.server_address[:2])
        threading.Thread(target=self._server.serve_forever, name="status", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _answer(path: str, health: Health, registry: CollectorRegistry) -> Answer:
    text = "text/plain; charset=utf-8"
    if path == "/livez":
        return (
            (200, text, b"ok\n")
            if health.is_live
            else (503, text, b"the sidecar's loop has stopped turning\n")
        )
    if path == "/readyz":
        if not health.unready:
            return 200, text, b"ok\n"
        return 503, text, f"{health.unready}\n".encode()
    if path == "/metrics":
        return 200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(registry)
    return 404, text, b"/livez, /readyz, /metrics\n"


class Collector:
    """The published state as metric families."""

    def __init__(self, health: Callable[[], Health]) -> None:
        self._health = health

    def collect(self) -> Iterable[Metric]:
        health = self._health()
        for name, count in sorted(health.counts.items()):
            base = name.removesuffix("_total")
            text = COUNTS.get(name, f"Count of {base}")
            yield CounterMetricFamily(f"telemetry_{base}", text, value=count)
        yield GaugeMetricFamily(
            "telemetry_active_runs", "Runs that have not ended", value=health.active_runs
        )
        yield GaugeMetricFamily(
            "telemetry_journal_writable",
            "1 if events can be made durable",
            value=int(health.is_writable),
        )
        missing = CounterMetricFamily(
            "telemetry_gap_events", "Events that are missing", labels=["kind", "reason"]
        )
        for (kind, reason), count in health.gaps.items():
            missing.add_metric(
                [clean(kind, LABEL_MAX_CHARS), clean(reason, LABEL_MAX_CHARS)], count
            )
        yield missing
        yield from self._per_run(health)
        onsets = CounterMetricFamily("telemetry_alerts", "Onsets of alerts", labels=["name"])
        for name, count in sorted(health.alerts.items()):
            onsets.add_metric([clean(name, LABEL_MAX_CHARS)], count)
        yield onsets
        yield from families(health.latest, health.runs, health.now_ns, health.unrecorded)

    def _per_run(self, health: Health) -> Iterable[Metric]:
        rows = GaugeMetricFamily("telemetry_journal_rows", "Durable rows", labels=["run_id"])
        for run_id, row in health.durable_rows.items():
            rows.add_metric([run_id], row)
        yield rows
        at = GaugeMetricFamily(
            "telemetry_sink_row", "Next row of a sink", labels=["run_id", "sink"]
        )
        restarts = CounterMetricFamily(
            "telemetry_sink_restarts", "Restarts of a sink", labels=["run_id", "sink"]
        )
        states = GaugeMetricFamily(
            "telemetry_sink_state",
            "1 for the state that a sink is in",
            labels=["run_id", "sink", "state"],
        )
        skipped = GaugeMetricFamily(
            "telemetry_sink_skipped_rows",
            "Rows that a sink steps over because it can't take them",
            labels=["run_id", "sink"],
        )
        left_out = GaugeMetricFamily(
            "telemetry_sink_left_out_values",
            "Values that a sink leaves out because it has no place for them",
            labels=["run_id", "sink"],
        )
        for sink in health.sinks:
            left_out.add_metric([sink.run_id, sink.sink], sink.left_out)
            skipped.add_metric([sink.run_id, sink.sink], sink.skipped)
            at.add_metric([sink.run_id, sink.sink], sink.row)
            restarts.add_metric([sink.run_id, sink.sink], sink.restarts)
            states.add_metric([sink.run_id, sink.sink, sink.state], 1)
        yield at
        yield restarts
        yield skipped
        yield left_out
        yield states
