"""Latest values: the newest of each name, bounded, and never in the way of recording."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shared.events import AlertChanged, Event, MetricsLogged, Scalar
from shared.ids import StreamId
from telemetry.http import Collector, Health
from telemetry.watch.exposition import SERIES_MAX, TRAINING, families, hardware_name
from telemetry.watch.facts import RunFacts, SinkStatus
from telemetry.watch.feed import ALERTS_MAX, Fed, Feed
from telemetry.watch.latest import HOST_STALE_NS, Latest
from tests.fakes import ManualClock
from tests.telemetry.sidecar_process import SidecarProcess, http_get
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import Producer, Station, metric, packed, started

RUN = RunFacts("r", name="a run", project="p", is_started=True)


def fed(values: dict[str, Scalar], source: str = "rank0", session: str = "s1", **more) -> Fed:
    event = MetricsLogged(
        kind="hardware" if source.startswith("hardware") else "train",
        step=more.get("step"),
        values=values,
    )
    return Fed(more.get("run", "r"), session, source, [event])


def put(feed: Feed, event: Event, source: str = "rank0") -> None:
    feed.put(StreamId("r", "s", source), packed(event), [event])


def taken(*frames: Fed, now_ns: int = 1) -> Latest:
    latest = Latest()
    latest.take(frames, now_ns)
    return latest


def scrape(latest: Latest, *runs: RunFacts, now_ns: int = 1) -> dict[str, dict]:
    """Every sample by its name, with its labels as a frozen set."""
    registry = CollectorRegistry()
    registry.register(Collector(lambda: Health(runs=runs, latest=latest, now_ns=now_ns)))
    text = generate_latest(registry).decode()
    found: dict[str, dict] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def test_the_newest_value_of_each_name_is_kept():
    """Of two frames the later, by source."""
    latest = taken(fed({"a": 1.0, "b": 1.0}), fed({"a": 2.0}), fed({"a": 9.0}, "rank1"))

    assert latest.runs["r"]["rank0"].values == {"a": 2.0, "b": 1.0}
    assert latest.runs["r"]["rank1"].values == {"a": 9.0}


def test_a_new_session_forgets_the_values_of_the_former_one():
    """What only the former one said is not the present any more."""
    latest = taken(fed({"a": 1.0, "b": 1.0}), fed({"a": 2.0}, session="s2"))

    assert latest.runs["r"]["rank0"].values == {"a": 2.0}


def test_readings_that_do_not_come_any_more_are_not_shown():
    """A GPU that is lost has no last temperature; a host without a sampler has no values."""
    latest = taken(fed({"x": 1.0, "y": 1.0}, "hardware:n1"), fed({"x": 1.0}, "hardware:n2"))
    later_ns = HOST_STALE_NS + 2
    latest.take([fed({"x": 2.0}, "hardware:n1")], later_ns)
    latest.keep_only(["r"], later_ns)

    assert {host: s.values for host, s in latest.hosts.items()} == {"n1": {"x": 2.0}}


def test_names_are_bounded_and_what_is_left_out_is_counted():
    """A producer that makes up a new name for each value; and room comes back with an end."""
    latest = Latest(names_max=10, total_max=15)
    latest.take([fed({f"n{i}": 1.0}) for i in range(12)], 1)
    latest.take([fed({f"n{i}": 1.0 for i in range(9)}, run="other")], 1)
    counted = latest.left_out
    latest.keep_only(["other"], 1)
    latest.take([fed({f"n{i}": 1.0 for i in range(9)}, run="other")], 1)

    assert counted == 2 + 4
    assert len(latest.runs["other"]["rank0"].values) == 9 and "r" not in latest.runs


def test_a_feed_that_nobody_reads_drops_the_oldest_and_stays_small():
    """A frozen watcher costs latest values, and neither memory nor a wait."""
    feed = Feed(bytes_max=10 * len(packed(metric(0))))
    for step in range(100):
        put(feed, metric(step))
    frames, _ = feed.take()

    assert [frame.events[0].step for frame in frames] == list(range(90, 100))
    assert feed.dropped_frames == 90


def test_alerts_are_kept_when_frames_are_dropped():
    """Up to a bound of their own."""
    feed = Feed(bytes_max=0)
    event = AlertChanged(name="gpu_lost")
    for _ in range(ALERTS_MAX + 5):
        put(feed, event, source="hardware:n1")
    _, alerts = feed.take()

    assert len(alerts) == ALERTS_MAX and feed.dropped_alerts == 5


def test_a_sampler_frame_that_goes_into_many_runs_is_fed_once():
    """It is the same payload in each."""
    feed = Feed()
    payload = packed(metric(0))
    for run in ("a", "b", "c"):
        feed.put(StreamId(run, "s", "hardware:n1"), payload, [metric(0)])

    assert len(feed.take()[0]) == 1


def test_what_is_journaled_is_fed_and_late_events_are_not(tmp_path):
    """A spool of a session that is over does not change the present."""
    feed = Feed()
    station = Station(tmp_path, ManualClock())
    station.runs._feed = feed
    producer = Producer(station)
    producer.hello()
    producer.emit(started(), metric(7))
    late = Producer(station, "s0", peer=b"late", late=True)
    late.hello()
    late.emit(metric(3))
    frames, _ = feed.take()
    station.killed()

    assert [(frame.session, len(frame.events)) for frame in frames] == [("s1", 2)]


# --- the names of Prometheus


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cpu_percent", ("hardware_cpu_utilization_ratio", {}, 0.01)),
        ("cpu/3/percent", ("hardware_cpu_core_utilization_ratio", {"core": "3"}, 0.01)),
        ("cpu/frequency_hertz", ("hardware_cpu_frequency_hertz", {}, 1.0)),
        ("load/1m", ("hardware_load_average", {"window": "1m"}, 1.0)),
        ("memory_percent", ("hardware_memory_used_ratio", {}, 0.01)),
        ("memory/used_bytes", ("hardware_memory_used_bytes", {}, 1.0)),
        ("gpu/0/power_watts", ("hardware_gpu_power_watts", {"gpu": "0"}, 1.0)),
        ("gpu/0/utilization_percent", ("hardware_gpu_utilization_ratio", {"gpu": "0"}, 0.01)),
        ("gpu/0/energy_joules", ("hardware_gpu_energy_joules_total", {"gpu": "0"}, 1.0)),
        ("gpu/1/throttle/hot", ("hardware_gpu_throttle_active", {"gpu": "1", "reason": "hot"}, 1)),
        (
            "gpu/0/mig/2/memory_used_bytes",
            ("hardware_gpu_mig_memory_used_bytes", {"gpu": "0", "instance": "2"}, 1.0),
        ),
        ("disk/read_bytes_per_second", ("hardware_disk_read_bytes_per_second", {}, 1.0)),
        (
            "disk/sda/read_bytes_per_second",
            ("hardware_disk_device_read_bytes_per_second", {"device": "sda"}, 1.0),
        ),
        (
            "process/r/rank0/rss_bytes",
            ("hardware_process_rss_bytes", {"run_id": "r", "source": "rank0"}, 1.0),
        ),
        (
            "infiniband/mlx5_0/1/sent_bytes_per_second",
            (
                "hardware_infiniband_device_sent_bytes_per_second",
                {"device": "mlx5_0", "port": "1"},
                1.0,
            ),
        ),
        (
            "sampler/probe/control_group_seconds",
            ("hardware_sampler_probe_seconds", {"probe": "control_group"}, 1.0),
        ),
        ("x\ny", None),
        ("gpu/0/Größe", None),
    ],
)
def test_a_reading_gets_a_conventional_name(name, expected):
    """Base units, and labels for the members of a group."""
    assert hardware_name(name) == expected


def test_a_scrape_has_true_values_with_their_labels():
    """Percent become ratios, GB bytes; the UUID of a GPU is a label."""
    hardware = {"gpu/0/uuid": "GPU-1", "gpu/0/utilization_percent": 50.0, "cpu_percent": 25.0}
    values = {"train/loss": 2.5, "torch_gpu_memory_allocated": 1.5, "my/own": 3, "stage": "x"}
    latest = taken(fed(hardware, "hardware:n1"), fed(values, step=7))

    found = scrape(latest, RUN)

    gpu = frozenset({("host", "n1"), ("gpu", "0"), ("uuid", "GPU-1")})
    run = frozenset({("run_id", "r"), ("source", "rank0")})
    assert found["hardware_gpu_utilization_ratio"] == {gpu: 0.5}
    assert found["hardware_cpu_utilization_ratio"] == {frozenset({("host", "n1")}): 0.25}
    assert found["training_loss"] == {run: 2.5} and found["training_step"] == {run: 7}
    assert found["training_torch_memory_allocated_bytes"] == {run: 1.5e9}
    assert found["training_value"] == {run | {("name", "my/own")}: 3}


def test_hostile_names_are_escaped_and_nan_stays_nan():
    """A quote, a line break and a backslash in a name, a run's name and a value's."""
    name = 'x"} 1\nfake_metric 2\\'
    latest = taken(fed({name: math.nan, "train/loss": math.inf}))

    found = scrape(latest, RunFacts("r", name=name, is_started=True))

    assert "fake_metric" not in found
    (value,) = found["training_value"].values()
    assert math.isnan(value) and list(found["training_loss"].values()) == [math.inf]


def test_a_scrape_has_a_bounded_number_of_series():
    """However many names there are; the rest is counted."""
    latest = Latest()
    for number in range(20):
        values = {f"n{i}": 1.0 for i in range(1000)}
        latest.take([fed(values, f"rank{number}")], 1)

    found = list(families(latest, [RUN], 1))

    assert sum(len(family.samples) for family in found) <= SERIES_MAX + 1
    assert found[-1].samples[0].value > 9_000


# --- the programs themselves

BOARD = Path(__file__).parents[3] / "docs/grafana/telemetry.json"


def whole_scrape() -> str:
    """A scrape with every family that the sidecar has on a machine with a GPU."""
    gpu = {
        "gpu/0/uuid": "GPU-1", "gpu/0/utilization_percent": 1.0, "gpu/0/memory_used_bytes": 1,
        "gpu/0/memory_total_bytes": 2, "gpu/0/temperature_celsius": 1, "gpu/0/power_watts": 1.0,
        "gpu/0/power_limit_watts": 2.0, "gpu/0/energy_joules": 5.0,
    }  # fmt: skip
    host = {
        "cpu_percent": 1.0, "cpu/0/percent": 1.0, "load/1m": 1.0, "memory_percent": 1.0,
        "memory/used_bytes": 1, "memory/available_bytes": 1, "swap/used_bytes": 0,
        "disk/read_bytes_per_second": 1.0, "disk/write_bytes_per_second": 1.0,
        "network/received_bytes_per_second": 1.0, "network/sent_bytes_per_second": 1.0,
        "sampler/skipped_ticks_total": 0,
    }  # fmt: skip
    alert = {"source": "sidecar", "name": "x", "subject": "", "severity": "error"}
    latest = taken(
        fed(gpu | host, "hardware:n1"), fed(dict.fromkeys([*TRAINING, "my/own"], 1.0), step=7)
    )
    health = Health(
        counts={"events_total": 3, "watch_skipped_frames_total": 0},
        gaps={("train", "full"): 1},
        durable_rows={"r": 4},
        sinks=[SinkStatus("r", "wandb", "following", 3, 0, "")],
        runs=(RunFacts("r", name="n", is_started=True, alerts=(alert,)),),
        latest=latest,
        now_ns=10**9,
    )
    registry = CollectorRegistry()
    registry.register(Collector(lambda: health))
    return generate_latest(registry).decode()


def test_every_query_of_the_board_asks_for_a_metric_that_there_is():
    """A board is JSON; a metric that was renamed leaves an empty panel."""
    board = json.loads(BOARD.read_text())
    known = set(re.findall(r"^([a-z_]+)(?:\{| )", whole_scrape(), re.MULTILINE))
    targets = [t["expr"] for panel in board["panels"] for t in panel.get("targets", [])]
    variables = [v["query"] for v in board["templating"]["list"] if v["type"] == "query"]
    used = {
        name
        for query in [*targets, *variables]
        for name in re.findall(r"\b(?:telemetry|training|hardware)_[a-z_]+", query)
    }

    assert len(used) > 20 and used - known == set()


def test_promtool_finds_nothing_wrong_with_a_scrape():
    """Debian's `prometheus` package has it."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")

    done = subprocess.run(
        [promtool, "check", "metrics"], input=whole_scrape(), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")


def test_a_real_prometheus_scrapes_the_sidecar(tmp_path):
    """Debian's `prometheus`, on loopback: its own target page says that the scrape is whole."""
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    flags = "--http=127.0.0.1:0", "--sample-hz=5", "--host-run"
    with SidecarProcess(tmp_path / "data", *flags) as sidecar:
        (found,) = wait_until(lambda: re.findall(r"http://(127\.0\.0\.1:\d+)", sidecar.log))
        scraped = {
            "job_name": "telemetry", "scrape_interval": "1s",
            "static_configs": [{"targets": [found]}],
        }  # fmt: skip
        (tmp_path / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scraped]}))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        server = subprocess.Popen(
            [prometheus, f"--config.file={tmp_path}/prometheus.yml",
             f"--storage.tsdb.path={tmp_path}/tsdb", f"--web.listen-address={address}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

        def stored() -> list[dict]:
            try:
                query = "/api/v1/query?query=hardware_memory_used_bytes"
                return json.loads(http_get(address, query)[1])["data"]["result"]
            except (OSError, KeyError, ValueError):
                return []

        try:
            (series,) = wait_until(stored, 60)
            targets = json.loads(http_get(address, "/api/v1/targets")[1])
        finally:
            server.kill()
            server.wait()

    (target,) = targets["data"]["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert series["metric"]["host"] and float(series["value"][1]) > 0
