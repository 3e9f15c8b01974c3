"""The policy: names, times, windows; and that live and replay can't differ."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.events import (
    ConfigUpdated,
    Envelope,
    Event,
    Gap,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
)
from telemetry.journal.rows import ELAPSED, STEP, Row
from telemetry.sinks.wandb.selection import NOTHING, WINDOW_NS, Histogram, Policy, Selected
from telemetry.sinks.wandb.values import plain
from tests.telemetry.sinks.helpers_rows import SECOND_NS, START_WALL_NS, RowMaker

from .journal import mixed_journal, select

ALIGNED_NS = START_WALL_NS // WINDOW_NS * WINDOW_NS

numbers = st.one_of(
    st.floats(), st.floats(0, 100), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.text()
)
values = st.dictionaries(st.sampled_from(["cpu_percent", "gpu/0/x", "_step", "y"]), numbers)
events = st.one_of(
    st.builds(MetricsLogged, kind=st.just("train"), step=st.integers(0, 99), values=values),
    st.builds(MetricsLogged, kind=st.just("hardware"), values=values),
    st.builds(Gap, count=st.integers(1, 9), reason=st.just("full")),
    st.builds(MessageLogged, level=st.sampled_from(["info", "error"]), text=st.text()),
    st.builds(RunStarted, project=st.just("p"), name=st.just("n"), host=st.just("a")),
    st.builds(ConfigUpdated, config=st.dictionaries(st.text(), st.integers(0, 9))),
    st.builds(RunFinished, status=st.just("finished")),
)
sources = st.sampled_from(["rank0", "rank1", "hardware:a", "hardware:b", "sidecar"])
walls_ns = st.integers(0, 10 * WINDOW_NS).map(lambda offset: ALIGNED_NS + offset)


@st.composite
def journals(draw: st.DrawFn) -> list[Row]:
    made = RowMaker()
    for event, source, wall_ns in draw(st.lists(st.tuples(events, sources, walls_ns))):
        made.append(event, source, wall_ns=wall_ns)
    return made.rows


def only(event: Event, source: str = "rank0", session: str = "s1") -> Selected:
    """What is selected for one event at the start of a journal."""
    made = RowMaker()
    made.append(event, source, session)
    return select(made.rows)[0][1]


@settings(deadline=None)
@given(rows=journals(), cut=st.integers(min_value=0))
def test_folding_from_any_saved_position_selects_the_same(rows: list[Row], cut: int) -> None:
    """A policy that went through JSON goes on as if nothing had happened."""
    cut %= len(rows) + 1
    policy = Policy()
    for row in rows[:cut]:
        policy, _ = policy.after(row)

    restored = msgspec.convert(
        json.loads(json.dumps(msgspec.to_builtins(policy), allow_nan=False)), Policy
    )

    # repr: in it a NaN equals itself.
    assert repr(select(rows[cut:], restored)) == repr(select(rows)[cut:])


@settings(deadline=None)
@given(rows=journals())
def test_every_selected_row_has_a_time_and_no_name_of_wandbs_own(rows: list[Row]) -> None:
    """`_step` and `_runtime` as metrics would move a row or vanish."""
    for _, selected in select(rows):
        if selected.history is not None:
            assert isinstance(selected.history["_timestamp"], float)
            assert not selected.history.keys() & {"_step", "_runtime", "_wandb", ""}


@settings(deadline=None)
@given(
    samples=st.lists(st.tuples(st.integers(0, 200), st.floats(-1e9, 1e9)), min_size=1),
)
def test_hardware_windows_are_the_means_of_their_samples(
    samples: list[tuple[int, float]],
) -> None:
    """Each stretch of samples with one wall_ns // 15 s becomes one row, at the row behind it."""
    made = RowMaker()
    for second, value in samples:
        made.hardware(
            {"load": value},
            wall_ns=ALIGNED_NS + second * SECOND_NS,
            mono_ns=second * SECOND_NS,
        )

    stretches: list[list[tuple[int, float]]] = []
    for second, value in samples:
        if not stretches or stretches[-1][0][0] // 15 != second // 15:
            stretches.append([])
        stretches[-1].append((second, value))

    found = [(row, s.history) for row, s in select(made.rows) if s.history is not None]
    assert len(found) == len(stretches) - 1
    row_behind = 0
    for stretch, (row, history) in zip(stretches, found, strict=False):
        row_behind += len(stretch)
        mean = sum(value for _, value in stretch) / len(stretch)
        mean_second = sum(second for second, _ in stretch) / len(stretch)
        assert row == row_behind
        assert history["hw/node1/load"] == pytest.approx(mean, abs=1e-6)
        assert history["_timestamp"] == pytest.approx(ALIGNED_NS / 1e9 + mean_second, abs=1e-5)
        assert history[ELAPSED] == pytest.approx(mean_second - samples[0][0], abs=1e-5)


def test_a_training_row_carries_its_step_session_and_time() -> None:
    selected = only(MetricsLogged(kind="train", step=7, values={"train/loss": 0.5, "stage": "a"}))

    assert selected == Selected(
        history={
            "train/loss": 0.5,
            "stage": "a",
            STEP: 7,
            "train/session": "s1",
            "_timestamp": START_WALL_NS / 1e9,
        }
    )


def test_hosts_have_windows_of_their_own_and_missing_stays_missing() -> None:
    """A host's sample closes that host's window only; a name has the mean of where it was."""
    made = RowMaker()
    made.start()
    for second, sample in ((0, {"a": 1}), (1, {"a": 3, "b": 5}), (15, {"b": 0})):
        made.hardware(sample, wall_ns=ALIGNED_NS + second * SECOND_NS)
        made.hardware({"a": 9}, host="node2", wall_ns=ALIGNED_NS + (second % 15) * SECOND_NS)

    found = {row: s.history for row, s in select(made.rows) if s.history is not None}

    assert list(found) == [5]
    assert {k: v for k, v in found[5].items() if k.startswith("hw/node1")} == {
        "hw/node1/a": 2,
        "hw/node1/b": 5,
    }
    assert "hw/node2/a" not in found[5]


def test_texts_and_values_that_are_no_numbers_have_no_mean() -> None:
    made = RowMaker()
    made.hardware({"uuid": "GPU-1", "x": math.nan, "y": math.inf, "z": 1}, wall_ns=ALIGNED_NS)
    made.hardware({"z": 2}, wall_ns=ALIGNED_NS + WINDOW_NS)

    history = select(made.rows)[1][1].history

    assert history is not None
    assert history.keys() == {"hw/node1/z", ELAPSED, "_timestamp"}


def test_the_end_of_the_run_sends_the_windows_still_open() -> None:
    """At rank 0's last row, or at the sidecar's word for a lost run; not at another rank's."""
    made = RowMaker()
    made.hardware({"x": 4}, wall_ns=ALIGNED_NS)
    made.append(RunFinished(status="finished"), source="rank1")
    made.append(RunFinished(status="lost", summary={"best": 1}), source="sidecar")
    made.append(RunFinished(status="finished"))

    _, other, lost, again = (selected for _, selected in select(made.rows))

    assert other == NOTHING
    assert lost.history is not None and lost.history["hw/node1/x"] == 4
    assert lost.summary == {"best": 1, "telemetry/run_status": "lost"}
    assert again.history is None


def test_a_histogram_keeps_its_edges_and_its_step() -> None:
    event = HistogramLogged(kind="quant", step=3, name="w", edges=[0.0, 1.0], counts=[5.0])

    history = only(event).history

    assert history is not None
    assert history["w"] == Histogram([0.0, 1.0], [5.0])
    assert history[STEP] == 3


def test_messages_are_text_columns_and_alerts_from_warning_up() -> None:
    info = only(MessageLogged(level="info", text="stage"))
    error = only(MessageLogged(level="error", text="boom"), "sidecar")

    assert info.history is not None and info.history["telemetry/message"] == "stage"
    assert info.alert is None
    assert error.alert is not None and error.alert.level == "ERROR"


def test_a_gap_is_a_count() -> None:
    history = only(Gap(count=9, reason="full"), "sidecar").history
    assert history == {"telemetry/gap_events": 9, "_timestamp": START_WALL_NS / 1e9}


def test_only_rank_0_says_the_config() -> None:
    """run.json is rank 0's word as well."""
    event = ConfigUpdated(config={"a": {"b": 1}, "_wandb": {}})

    assert only(event).config == {"a": {"b": 1}}
    assert only(event, "rank1") == NOTHING


def test_what_is_not_known_or_not_readable_selects_nothing() -> None:
    """An event of a newer producer, and one whose body is not what its tag says."""
    known = mixed_journal(5)[2]
    newer = known._replace(envelope=Envelope("of_tomorrow", 1, 1, known.envelope.body))
    wrong = known._replace(envelope=Envelope("gap", 1, 1, known.envelope.body))

    assert [selected for _, selected in select([newer, wrong])] == [NOTHING, NOTHING]


def test_a_config_becomes_what_json_can_hold() -> None:
    odd = {"a": (1, b"x"), "b": {1: None}}
    assert plain(odd) == {"a": [1, "b'x'"], "b": {"1": None}}


def test_what_a_former_session_says_late_changes_neither_config_nor_summary() -> None:
    """Its spool was sent when its successor had long begun; its metrics are shown all the same."""
    made = RowMaker()
    made.start(session="old", config={"lr": 1})
    made.start(session="new", config={"lr": 2})
    for event in (
        ConfigUpdated(config={"lr": 1}),
        MetricsLogged(kind="train", step=3, values={"late": 1.0}),
        RunFinished(status="failed", exit_code=1, summary={"best": 1}),
    ):
        made.append(event, session="old")
    made.rows.append(made.start(session="older", config={"lr": 0})._replace(is_late=True))
    del made.rows[-2]
    made.append(RunFinished(status="finished", exit_code=0, summary={"best": 2}), session="new")

    selected = [found for _, found in select(made.rows)]

    assert [found.config for found in selected if found.config] == [{"lr": 1}, {"lr": 2}]
    summaries = [found.summary for found in selected if found.summary]
    assert summaries == [{"best": 2, "telemetry/run_status": "finished"}]
    assert any(found.history and "late" in found.history for found in selected)


def test_a_sidecar_that_calls_a_run_lost_is_believed() -> None:
    """It speaks in place of a session that can't."""
    made = RowMaker()
    made.start()
    made.append(RunFinished(status="lost"), source="sidecar", session="sc")

    _, last = select(made.rows)[-1]

    assert last.summary == {"telemetry/run_status": "lost"}
