"""The screen: keys, narrow and wide, as pictures that are compared."""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from textual.widgets import ContentSwitcher, DataTable, Static

from telemetry.monitor.host_panels import host_lines
from telemetry.monitor.pieces import Room
from telemetry.monitor.processes import ProcessLine
from telemetry.monitor.screen import MonitorApp
from telemetry.monitor.snapshot import HostLine, RunLine, SinkLag, Snapshot
from telemetry.views.follow import Alert, Message
from telemetry.views.series import Sample

NOW_S = 1_700_000_600.0


def host() -> HostLine:
    values = {
        "cpu_percent": 63.5, "load/1m": 3.2, "load/5m": 2.5, "load/15m": 1.0,
        "memory_percent": 91.0, "memory/used_bytes": 9 * 2**30, "memory/available_bytes": 2**30,
        "swap/used_bytes": 0, "disk/read_bytes_per_second": 5e6, "disk/write_bytes_per_second": 0,
        "network/received_bytes_per_second": 1e3, "network/sent_bytes_per_second": 2e7,
        "gpu/0/utilization_percent": 99.0, "gpu/0/memory_percent": 40.0,
        "gpu/0/memory_used_bytes": 31 * 2**30, "gpu/0/temperature_celsius": 71.0,
        "gpu/0/power_watts": 301.0, "gpu/0/power_limit_watts": 350.0,
        "gpu/0/throttle/sw_power_cap": True, "gpu/0/throttle/hw_slowdown": False,
        "process/a/rank0/cpu_cores": 1.5, "process/a/rank0/rss_bytes": 3 * 2**30,
        "process/a/rank0/processes": 5, "process/a/rank0/threads": 40,
    }  # fmt: skip
    names = [name for name, value in values.items() if not isinstance(value, bool)]
    points = {
        name: [Sample(NOW_S - 300 + i, 50 + 50 * math.sin(i / 20)) for i in range(300)]
        for name in names
    }
    return HostLine("node1", NOW_S, values, points)


def run(run_id: str, name: str, loss: float, **more: object) -> RunLine:
    curve = tuple(Sample(i, loss + 8 * math.exp(-i / 100)) for i in range(400))
    line = RunLine(
        run_id=run_id, name=name, project="p", state="running", is_host=False, rows=1000,
        step=399, total_steps=1000, loss_name="train/loss", loss=loss, stage="full_ternary",
        tokens_per_second=45_678.0, seconds_left=1234.0, started_s=NOW_S - 500,
        sinks=(SinkLag("tensorboard", 0, False), SinkLag("wandb", 1500, False)), curve=curve,
        messages=(Message(NOW_S - 100, "info", "rank0", "stage is now full_ternary"),
                  Message(NOW_S - 50, "warning", "rank0", "codes flip often")),
    )  # fmt: skip
    return replace(line, **more)  # type: ignore[arg-type]


SNAPSHOT = Snapshot(
    wall_s=NOW_S,
    place="/data",
    sidecar="4242",
    hosts=(host(),),
    runs=(
        run("a", "tiny-one", 2.5, alerts=(
            Alert(NOW_S - 30, "critical", "hardware:node1", "gpu_throttled", "gpu/0",
                  "GPU 0 of node1 is throttled: power"),
        )),
        run("b", "tiny-two", 3.5),
        run("c", "other", math.nan, state="lost", gap_events=12),
    ),
)  # fmt: skip


class StillWatch:
    """A watch in which nothing changes."""

    def __init__(self, snapshot: Snapshot = SNAPSHOT) -> None:
        self._snapshot = snapshot

    def poll(self) -> bool:
        return True

    def snapshot(self) -> Snapshot:
        return self._snapshot


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


class StillProcesses:
    """Processes in which nothing changes."""

    def read(self, trainers: object) -> tuple[ProcessLine, ...]:
        of = "rank0 of a"
        return (
            ProcessLine(1, "root", 0.0, 12 * 2**20, 1, "/sbin/init splash"),
            ProcessLine(211, "root", 0.004, 0, 1, "[kworker/0:1-events]"),
            ProcessLine(4100, "anna", 7.93, 31 * 2**30, 88, "python -m trainer --size base", of),
            ProcessLine(4101, "anna", 0.97, 2 * 2**30, 4, "python -m trainer --size base", of),
            ProcessLine(4242, "anna", 0.02, 90 * 2**20, 12, "python -m telemetry serve"),
            ProcessLine(5511, "a-user-with-a-long-name", 1.25, 9 * 2**30, 402,
                        "/opt/browser --type=renderer --token=(secret) \x1b[31m " + "x" * 300),
            ProcessLine(5600, "1001", None, 5 * 2**20, 1, "sleep 60"),
        )  # fmt: skip


def app(watch: StillWatch | None = None, **options: bool) -> MonitorApp:
    still = watch or StillWatch(), StillProcesses()
    return MonitorApp(still[0], processes=still[1], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
@pytest.mark.parametrize(
    "keys",
    [[], ["2"], ["3"], ["4"], ["5"]],
    ids=["overview", "runs", "hosts", "processes", "events"],
)
def test_pictures(snap_compare, size, keys):
    assert snap_compare(app(), press=["wait:300", *keys, "wait:300"], terminal_size=size)


def played(keys: list[str], size: tuple[int, int] = (80, 24), **options: Any) -> MonitorApp:
    """Return the screen as keys leave it."""
    screen = app(**options)

    async def play() -> None:
        async with screen.run_test(size=size) as pilot:
            await pilot.pause(0.3)
            await pilot.press(*keys)
            await pilot.pause(0.2)
            screen.texts = {  # type: ignore[attr-defined]
                each.id: str(each.render()) for each in screen.query(Static)
            }
            screen.names = [  # type: ignore[attr-defined]
                str(row[0]) for row in map(screen.query_one(DataTable).get_row_at,
                                           range(screen.query_one(DataTable).row_count))
            ]  # fmt: skip
            screen.view = screen.query_one(ContentSwitcher).current  # type: ignore[attr-defined]

    asyncio.run(play())
    return screen


@pytest.mark.parametrize(
    ("key", "view"),
    [("1", "overview"), ("2", "runs"), ("3", "hosts"), ("4", "processes"), ("5", "events")],
)
def test_each_view_is_on_its_key(key, view):
    assert played([key]).view == view


def test_processes_are_shown_by_their_source():
    shown = played(["4"], (100, 30)).texts["processes-text"]

    assert "1.5" in shown and "3.0 GiB" in shown and "rank0 of a" in shown


def commands(screen: MonitorApp) -> list[str]:
    """The pids of the page of processes, from its top to its end."""
    return re.findall(r"^ +(\d+) +(?:\d+\.\d\d|-) ", screen.texts["processes-text"], re.MULTILINE)


def test_all_processes_of_the_machine_are_shown_by_cpu_and_sorted_by_a_key():
    """By CPU first; then by memory, threads, pid and command, and CPU again."""
    orders = [commands(played(["4", *["s"] * presses], (120, 40))) for presses in range(6)]

    assert orders[0] == ["4100", "5511", "4101", "4242", "211", "1", "5600"]
    assert orders[1][:3] == ["4100", "5511", "4101"] and orders[1][-1] == "211"
    assert orders[2][0] == "5511" and orders[3][0] == "1" and orders[4][0] == "5511"
    assert orders[5] == orders[0]


def test_processes_are_filtered_and_hostile_command_lines_are_made_safe():
    """A command line does not control the terminal."""
    screen = played(["4", "slash", *"browser", "enter"], (200, 40))

    text = screen.texts["processes-text"]
    assert commands(screen) == ["5511"] and "1 of 7 processes" in text
    assert "\x1b" not in text


def test_of_what_was_recorded_long_ago_no_process_of_this_machine_is_shown():
    """Nobody records here now: the processes of now have nothing to do with it."""
    watch = StillWatch(replace(SNAPSHOT, sidecar=""))
    screen = played(["4"], watch=watch)

    assert commands(screen) == [] and "rank0 of a" in screen.texts["processes-text"]


def test_the_container_and_the_waits_of_a_machine_have_lines_of_their_own():
    """With the limit where there is one."""
    held = {
        "cgroup/cpu_used_cores": 3.5, "cgroup/cpu_limit_cores": 4.0,
        "cgroup/cpu_throttled_seconds_per_second": 0.25, "cgroup/memory_used_bytes": 11 * 2**30,
        "cgroup/memory_limit_bytes": 16 * 2**30, "cgroup/oom_kills_total": 2,
        "pressure/cpu_some_ratio": 0.5, "pressure/io_some_ratio": 0.031,
    }  # fmt: skip
    free = {"cgroup/cpu_used_cores": 0.5, "cgroup/memory_used_bytes": 2**30}

    def shown(values):
        lines = host_lines(HostLine("n1", NOW_S, values, {}, False), Room(120))
        return ["".join(piece.text for piece in line) for line in lines]

    assert shown(held)[-2:] == [
        " container cpu 3.50 of 4 cores  throttled 0.25 s/s  memory 11.0 GiB of 16.0 GiB"
        "  killed for memory 2",
        " waits for cpu 50 %  disk 3 %",
    ]
    assert shown(free)[-1] == " container cpu 0.50 cores  memory 1.0 GiB"


def test_a_filter_leaves_what_it_names_and_escape_clears_it():
    screen = played(["2", "slash", *"tiny", "enter"])
    assert screen.names == ["tiny-one", "tiny-two"] and "filter: tiny" in screen.texts["head"]

    screen = played(["2", "slash", *"tiny", "enter", "slash", "escape"])
    assert len(screen.names) == 3


def test_runs_are_sorted_by_name_loss_and_step():
    assert played(["2", "s"]).names == ["other", "tiny-one", "tiny-two"]
    assert played(["2", "s", "s"]).names == ["tiny-one", "tiny-two", "other"]


def test_the_chosen_run_is_the_one_that_is_drawn():
    assert "tiny-two" in played(["2", "down"]).texts["detail"]


def test_zoom_changes_the_time_that_is_shown():
    assert "last 150 s" in played(["plus"]).texts["head"]
    assert "last 3600 s" in played(["minus"] * 9).texts["head"]


@pytest.mark.parametrize("keys", [[], ["4"]])
@pytest.mark.parametrize("size", [(39, 24), (80, 9), (20, 24), (1, 1)])
def test_a_terminal_that_is_too_small_says_so(size, keys):
    """In one line that fits 20 columns, on every page."""
    head = played(keys, size).texts["head"]

    assert head == "{}x{}: needs 40x10".format(*size)
    assert size[0] < 20 or len(head) <= size[0]


def test_without_unicode_all_is_ascii():
    screen = played([], is_ascii=True)

    assert screen.texts["overview-text"].isascii()


def test_alerts_are_on_top_of_the_overview():
    first = played([]).texts["overview-text"].split("\n")[0]

    assert "GPU 0 of node1 is throttled: power" in first and "30 s" in first
