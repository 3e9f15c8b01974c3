"""The trace of a run is one that the Trace Event format allows, however it came about."""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.events import (
    AlertChanged,
    Gap,
    MessageLogged,
    MetricsLogged,
    decode_envelope,
    encode_event,
)
from telemetry.__main__ import main
from telemetry.journal.rows import Row
from telemetry.run_dir import RunFile
from telemetry.sinks.base import START, Position, SinkContext, SinkUnavailable
from telemetry.sinks.perfetto import PerfettoSink
from telemetry.sinks.trace_events import PHASE_NAMES, STEP_SECONDS, TraceEvents, TraceState
from tests.shared.strategies import INT64, SCALARS, events
from tests.telemetry.journal.helpers import read_all
from tests.telemetry.views.journals import (
    Said,
    finished,
    started,
    steps,
    write_journal,
    write_run_file,
)

SOURCES = ("rank0", "rank1", "hardware:node1", "sidecar")
METADATA = {"process_name": str, "process_sort_index": int, "thread_name": str,
            "thread_sort_index": int}  # fmt: skip


def check(trace: list[dict[str, Any]]) -> None:
    """Check events by the Trace Event Format: the fields of each phase, and pairs of B and E."""
    open_spans: dict[tuple[int, int], list[float]] = {}
    for event in trace:
        phase, place = event["ph"], (event["pid"], event["tid"])
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert isinstance(event["ts"], int | float) and event["ts"] >= 0
        if phase != "E":
            assert isinstance(event["name"], str)
        match phase:
            case "X":
                assert event["dur"] >= 0
            case "B":
                open_spans.setdefault(place, []).append(event["ts"])
            case "E":
                open_spans[place].pop()
            case "C":
                numbers = event["args"].values()
                assert numbers and all(type(v) in (int, float) for v in numbers)
            case "i":
                assert event["s"] in ("g", "p", "t")
            case "b" | "e":
                assert isinstance(event["id"], str) and isinstance(event["cat"], str)
            case "M":
                [(key, value)] = event["args"].items()
                assert key == ("name" if event["name"].endswith("name") else "sort_index")
                assert isinstance(value, METADATA[event["name"]])
            case _:
                raise AssertionError(f"phase {phase}")
    assert not any(open_spans.values())
    spans = [(e["id"], e["ph"]) for e in trace if e["ph"] in "be"]
    for _, of_one in itertools.groupby(sorted(spans, key=lambda s: s[0]), lambda s: s[0]):
        phases = "".join(phase for _, phase in of_one)
        assert phases == "be" * (len(phases) // 2)


def context(out: Path, **options: str) -> SinkContext:
    return SinkContext("r", out, RunFile(run_id="r", name="n"), options)


def trace_of(out: Path) -> list[dict[str, Any]]:
    """The trace as a strict reader of JSON has it."""

    def refuse(text: str) -> None:
        raise AssertionError(text)  # NaN and Infinity are no JSON

    text = (out / "perfetto" / "trace.json").read_text()
    found: list[dict[str, Any]] = json.loads(text, parse_constant=refuse)
    check(found)
    return found


def written(out: Path, rows: Sequence[Row], **options: str) -> list[dict[str, Any]]:
    sink = PerfettoSink(context(out, **options))
    sink.open(START)
    sink.write(rows)
    sink.finish("finished", 0)
    sink.close()
    return trace_of(out)


def rows_of(place: Path, *said: Said) -> list[Row]:
    return read_all(write_journal(place / "r", said) / "journal")[0]


def spans(trace: list[dict[str, Any]], tid: int) -> list[tuple[str, float, float]]:
    """Name, begin and end in s of the spans of a thread of the first source."""
    found = [e for e in trace if e["ph"] == "X" and (e["pid"], e["tid"]) == (1, tid)]
    return [(e["name"], e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6) for e in found]


def test_steps_have_their_parts_and_begin_behind_a_phase(tmp_path: Path) -> None:
    """Logged every second step of 2 s; an evaluation of 4 s behind the second row."""
    parts = {"train/step_seconds": 2.0, "train/input_seconds": 0.5, "train/forward_seconds": 1.0}

    def row(step: int) -> MetricsLogged:
        return MetricsLogged(kind="train", step=step, values={"train/loss": 1.0, **parts})

    evaluation = MetricsLogged(kind="custom", step=4, values={"time/evaluation_seconds": 4.0})
    trace = written(
        tmp_path,
        rows_of(
            tmp_path,
            Said([started()]),
            Said([row(2)], 10),
            Said([row(4)], 14),
            Said([evaluation], 18),
            Said([row(6), finished()], 22),
        ),
    )

    assert spans(trace, 4) == [("evaluation", 14, 18)]
    assert spans(trace, 3) == [
        ("step 2", 8, 10), ("input", 8, 8.5), ("forward", 8.5, 9.5),
        ("steps 3 to 4", 10, 14), ("input", 10, 11), ("forward", 11, 13),
        ("steps 5 to 6", 18, 22), ("input", 18, 19), ("forward", 19, 21),
    ]  # fmt: skip


def test_everything_has_its_place(tmp_path: Path) -> None:
    """Sessions, stages, alerts, messages, gaps, counters: each source is a process."""
    stage = [
        MetricsLogged(kind="train", step=s, values={"train/training_stage": t, "train/loss": 1.0})
        for s, t in ((1, "warmup"), (2, "warmup"), (3, "full"))
    ]
    hot = AlertChanged(name="gpu_xid", subject="gpu/0", text="XID 79")
    sample = MetricsLogged(
        kind="hardware",
        values={"cpu_percent": 5.0, "gpu/0/power_watts": 9.0, "gpu/0/uuid": "G",
                "cpu/3/percent": 1.0, "gpu/0/memory_used_bytes": math.nan},
    )  # fmt: skip
    trace = written(
        tmp_path,
        rows_of(
            tmp_path,
            Said([started(), *stage, MessageLogged(level="info", text="hi\x1b"), finished()]),
            Said([sample, hot], 2, source="hardware:node1", session="h"),
            Said([started(2), *steps(3, 3), Gap(count=2, reason="full")], 60, session="s2"),
            Said([started(3)], 90, session="s3"),
        ),
    )

    named = [e for e in trace if e.get("name") == "process_name"]
    processes = {e["args"]["name"]: e["pid"] for e in named}
    assert processes == {"rank0": 1, "hardware:node1": 2}
    told = [(e["ph"], e.get("name"), e["tid"], e["ts"] / 1e6) for e in trace if e["ph"] in "BE"]
    assert told == [
        ("B", "session s1", 1, 0), ("B", "warmup", 2, 1), ("E", None, 2, 3), ("B", "full", 2, 3),
        ("E", None, 2, 5), ("E", None, 1, 5), ("B", "session s2", 1, 60), ("E", None, 1, 62),
        ("B", "session s3", 1, 90), ("E", None, 1, 90),
    ]  # fmt: skip
    assert [(e["ph"], e["name"], e["ts"] / 1e6) for e in trace if e["ph"] in "be"] == [
        ("b", "XID 79", 3), ("e", "XID 79", 90),
    ]  # fmt: skip
    instants = [e["name"] for e in trace if e["ph"] == "i"]
    assert instants == ["hi\\x1b", "ended: finished", "2 events are missing: full"]
    counters = [(e["pid"], e["name"], e["args"]) for e in trace if e["ph"] == "C" and e["pid"] == 2]
    assert counters == [(2, "hardware", {"cpu_percent": 5.0}), (2, "gpu/0", {"power_watts": 9.0})]


def test_processor_cores_are_counted_where_asked(tmp_path: Path) -> None:
    sample = MetricsLogged(kind="hardware", values={"cpu/3/percent": 1.0})
    rows = rows_of(tmp_path, Said([sample], source="hardware:n", session="h"))

    assert not [e for e in written(tmp_path / "a", rows) if e["ph"] == "C"]
    assert [e for e in written(tmp_path / "b", rows, per_core="1") if e["ph"] == "C"]


PARTS = st.lists(
    st.builds(
        Said,
        events=st.lists(events(), min_size=1, max_size=5),
        at_s=st.integers(-10, 1000).map(float),
        source=st.sampled_from(SOURCES),
        session=st.sampled_from(["s1", "s2"]),
        is_late=st.booleans(),
        apart_s=st.just(1.0),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(parts=PARTS, cuts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=3))
def test_a_crash_between_any_writes_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, parts: list[Said], cuts: list[tuple[int, int]]
) -> None:
    """The file of a sink that was killed and started again is that of one in one go, and valid."""
    place = tmp_path_factory.mktemp("p")
    rows = rows_of(place, *parts)
    whole = written(place / "whole", rows)

    position: Position = START
    for committed, lost in [*sorted(cuts), (len(rows), 0)]:
        sink = PerfettoSink(context(place / "torn"))
        first = sink.open(position)
        sink.write(rows[first:committed])
        position = sink.commit()
        # Written and not committed: gone with the crash.
        sink.write(rows[max(first, committed) : committed + lost])
        if committed == len(rows):
            sink.finish("finished", 0)
        sink.close()

    assert trace_of(place / "torn") == whole


def test_a_run_that_goes_on_continues_before_its_end(tmp_path: Path) -> None:
    """Late events reopen a run that was finished: the end is cut off and written again."""
    rows = rows_of(tmp_path, Said([started(), *steps(1, 5), finished()]), Said(steps(6, 8), 20))
    sink = PerfettoSink(context(tmp_path / "a"))
    sink.open(START)
    sink.write(rows[:4])
    position = sink.finish("finished", 0)
    sink.close()
    trace_of(tmp_path / "a")

    again = PerfettoSink(context(tmp_path / "a"))
    assert again.open(position) == 4
    again.write(rows[4:])
    again.finish("finished", 0)
    again.close()

    assert trace_of(tmp_path / "a") == written(tmp_path / "b", rows)


@pytest.mark.parametrize("size", [0, 10])
def test_a_file_that_is_shorter_than_its_position_is_made_anew(tmp_path: Path, size: int) -> None:
    rows = rows_of(tmp_path, Said([started(), *steps(1, 5)]))
    whole = written(tmp_path / "a", rows)
    sink = PerfettoSink(context(tmp_path / "a"))
    sink.open(START)
    sink.write(rows)
    position = sink.commit()
    sink.close()
    (tmp_path / "a" / "perfetto" / "trace.json").write_bytes(b"[" * size)

    again = PerfettoSink(context(tmp_path / "a"))
    assert again.open(position) == 0
    again.write(rows)
    again.finish(None, None)
    again.close()
    assert trace_of(tmp_path / "a") == whole


def test_a_full_disk_is_a_reason_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written of a row is overwritten by the next try."""
    rows = rows_of(tmp_path, Said([started(), *steps(1, 5)]))
    sink = PerfettoSink(context(tmp_path / "a"))
    sink.open(START)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("telemetry.sinks.perfetto.write_all", fail)
        with pytest.raises(SinkUnavailable, match="No space"):
            sink.write(rows)
    sink.close()
    assert written(tmp_path / "a", rows) == written(tmp_path / "b", rows)


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    """Ten times the rows take no more than the same memory; a million are ten seconds of work."""
    [row] = rows_of(tmp_path, Said(steps(1, 1)))

    def peak(count: int) -> int:
        sink = PerfettoSink(context(tmp_path / str(count)))
        sink.open(START)
        tracemalloc.start()
        for first in range(0, count, 500):
            sink.write([row._replace(row=n) for n in range(first, first + 500)])
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        sink.close()
        return found

    peak(500)
    assert peak(20_000) < 1.5 * peak(2_000)


def test_replay_writes_a_trace_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command; said again, it changes nothing."""
    run = write_journal(tmp_path / "r", [Said([started(), *steps(1, 5), finished()])])
    write_run_file(run, status="finished", exit_code=0)
    command = ["replay", str(run), "--to", "perfetto", "--out", str(tmp_path / "out")]

    assert main(command) == 0
    once = trace_of(tmp_path / "out" / "r")
    assert main(command) == 0
    assert trace_of(tmp_path / "out" / "r") == once and len(spans(once, 3)) == 5


@given(
    values=st.dictionaries(
        st.sampled_from(
            [
                *PHASE_NAMES,
                STEP_SECONDS,
                "train/input_seconds",
                "train/loss",
                "train/training_stage",
            ]
        ),
        SCALARS,
    ),
    step=st.none() | INT64,
)
def test_any_value_may_be_logged_by_the_names_of_times(
    values: dict[str, float | int | bool | str], step: int | None
) -> None:
    """By a script that means something else: 1e300 s, -1 s, NaN, a text."""
    trace, found = TraceEvents(TraceState()), []
    for n, event in enumerate(
        [started(), *[MetricsLogged(kind="train", step=step, values=values)] * 2]
    ):
        envelope = decode_envelope(encode_event(event, 10**18 + n, n))
        found += list(trace.of(Row(n, "rank0", "s", n, envelope)))

    check([*found, *trace.closing(10**18 + 3)])


def test_an_empty_trace_is_a_trace(tmp_path: Path) -> None:
    assert written(tmp_path, []) == []


def test_open_alerts_are_bounded(tmp_path: Path) -> None:
    alerts = [AlertChanged(name="a", subject=str(n)) for n in range(1_100)]
    rows = rows_of(tmp_path, Said(alerts[:600]), Said(alerts[600:], 700))
    trace = TraceEvents(TraceState())

    begun = [e for row in rows for e in trace.of(row) if e["ph"] == "b"]

    assert len(begun) == len(trace.state.alerts) == 1_000
