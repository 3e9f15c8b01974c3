"""Names, values and configurations that wandb was not asked about, with the real wandb."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import wandb

from shared.events import ConfigUpdated, MessageLogged, MetricsLogged, RunFinished, RunStarted
from telemetry.journal.rows import Row
from telemetry.sinks.base import START, SinkContext, SinkRejected, SinkUnavailable
from telemetry.sinks.skips import Skips
from telemetry.sinks.wandb import WandbSink, wandb_file
from telemetry.sinks.wandb import wandb_sink as sink_module
from telemetry.sinks.wandb.run_identity import GIVEN, JOURNAL, LEFT_OUT
from telemetry.sinks.wandb.selection import versions_of
from telemetry.sinks.wandb.values import DEPTH_MAX, TOO_DEEP, exit_code, plain
from tests import wandb_contents
from tests.fake_wandb import FakeWandb
from tests.telemetry.sinks.helpers_rows import RowMaker

from .journal import expected_history, written_history
from .surroundings import RUN_ID, PausingClock, make_context
from .test_offline_sink import fragments, run_whole

NAMES = [
    "f1*macro", "*", "a*", "train/*", "*a", " ", "_x", "a.b", "a.b.c", "..", ".", "a\\b", "a`b",
    "a\nb", "a\x1bb", "é", "a/b/c", "/", "//", "a:b", "a[0]", "system/x", "n" * 250, "%s", "a{b}",
]  # fmt: skip
RESERVED = ["_step", "_timestamp", "_runtime", "_wandb", ""]
VALUES: list[Any] = [
    True, False, 2**63 - 1, -(2**63), 10**18 + 1, math.nan, math.inf, -math.inf, -0.0, 1e308,
    5e-324, "", "x" * 150_000, "a\x00b", "\u202e", "Infinity",
]  # fmt: skip


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"leaf": 1}
    for _ in range(depth):
        value = {"n": value}
    return value


def rows_of(*events: Any) -> list[Row]:
    made = RowMaker()
    for event in events:
        made.append(event)
    return made.rows


def skipping(context: SinkContext, directory: Path) -> tuple[SinkContext, Skips]:
    """A context whose skips are kept as the runner keeps them."""
    skips = Skips(directory / "wandb.skipped")
    return context._replace(skipped=skips, skip=skips.add), skips


def test_every_name_and_every_value_arrives_and_so_do_the_rows_behind(
    context: SinkContext,
) -> None:
    """A star in a name once stopped the sink for ever."""
    names = [MetricsLogged(kind="train", step=i, values={n: 1.5}) for i, n in enumerate(NAMES)]
    values = [MetricsLogged(kind="val", step=i, values={"v": v}) for i, v in enumerate(VALUES)]
    rows = rows_of(*names, *values, MetricsLogged(kind="train", step=9, values={"last": 1.0}))

    run_whole(context, rows)

    assert written_history(context.out_dir) == expected_history(rows)


def test_names_that_are_wandbs_own_are_left_out_by_name(context: SinkContext) -> None:
    """They would move a row, or vanish; the rest of their row arrives."""
    events = [
        MetricsLogged(kind="train", step=i, values={name: 7.0, "fine": i})
        for i, name in enumerate(RESERVED)
    ]
    rows = rows_of(*events)

    run_whole(context, rows)

    written = written_history(context.out_dir)
    assert [row["fine"] for row in written] == list(range(len(RESERVED)))
    assert [row["_step"] for row in written] == list(range(len(RESERVED)))
    told = wandb_contents.summary(fragments(context)[0])[LEFT_OUT]
    assert all(name in told for name in ("_step", "_timestamp", "_runtime", "_wandb", "(empty)"))


def test_what_a_producer_had_to_leave_out_is_shown(context: SinkContext) -> None:
    """By name and reason, kept small."""
    rows = rows_of(
        MetricsLogged(kind="train", step=1, values={"a": 1.0}, left_out={"b": "None is no number"}),
        MetricsLogged(
            kind="train", step=2, values={"a": 2.0},
            left_out={f"n{i}": "x" * 500 for i in range(64)}, left_out_count=64,
        ),
    )  # fmt: skip

    run_whole(context, rows)

    told = wandb_contents.summary(fragments(context)[0])[LEFT_OUT]
    assert told.startswith("b: None is no number; n0: ") and len(told) <= 8000


def test_configs_and_summaries_of_any_shape_arrive(context: SinkContext) -> None:
    """Nested 900 deep, with names that wandb has for itself, with values that JSON has not."""
    odd = {
        "deep": nested(900), "": 1, "_wandb": {"x": 1}, "a.b": 1, "a": {"b": 2, "": 3},
        "nan": math.nan, "list": [[[{"x": math.inf}]]], "long": "y" * 50_000, "none": None,
        "k" * 300: 1, "nul\x00": "\x00",
    }  # fmt: skip
    rows = rows_of(
        RunStarted(project="p", name="n", config=odd),
        ConfigUpdated(config=odd),
        MetricsLogged(kind="train", step=1, values={"a": 1.0}),
        RunFinished(status="failed", exit_code=0xC0000005, summary=odd),
    )
    odd_context = context._replace(run=msgspec.structs.replace(context.run, config=odd))

    run_whole(odd_context, rows)

    assert written_history(context.out_dir) == expected_history(rows)
    config = wandb_contents.config(fragments(context)[0])
    assert (config["nan"], config["(empty)"], config["none"]) == ("nan", 1, None)
    assert json.dumps(config["deep"]).count("{") == DEPTH_MAX - 1
    assert TOO_DEEP in json.dumps(config["deep"])


@pytest.mark.parametrize("code", [0xC0000005, 2**32, 2**63 - 1, -(2**40), 2**31])
def test_an_exit_code_beyond_32_bits_is_a_failure_and_is_told(
    context: SinkContext, code: int
) -> None:
    """Windows has such; a multiple of 2**32 must not become 0."""
    sink = WandbSink(context)
    sink.open(START)
    sink.write(rows_of(MetricsLogged(kind="train", step=1, values={"a": 1.0})))
    sink.finish("failed", code)
    sink.close()

    (path,) = fragments(context)
    assert wandb_file.exit_code(path) == 1
    assert wandb_contents.summary(path)["telemetry/exit_code"] == code


def test_ordinary_exit_codes_stay() -> None:
    assert [exit_code(code) for code in (0, 1, 255, -9, 2**31 - 1)] == [0, 1, 255, -9, 2**31 - 1]


def test_a_million_levels_cost_no_more_than_a_few() -> None:
    """Nothing is walked that is not kept."""
    value: Any = []
    for _ in range(100_000):
        value = [value]

    assert TOO_DEEP in json.dumps(plain({"deep": value}))


def test_a_run_whose_names_wandb_does_not_take_keeps_them_in_its_config(tmp_path: Path) -> None:
    """What became of them is said once, at the first start."""
    said = {
        "project": "a/b:c", "name": "n" * 300, "tags": ["", "x" * 70, "x" * 70],
        "group": "g\n", "notes": "N" * 70_000, "entity": "no/body", "job_type": "j" * 200,
    }  # fmt: skip
    context = make_context(tmp_path / "run", **said)

    run_whole(context, rows_of(MetricsLogged(kind="train", step=1, values={"a": 1.0})))

    (path,) = fragments(context)
    run = next(r.run for r in wandb_file.clean_records(path) if r.HasField("run"))
    assert (run.project, list(run.tags), run.run_group) == ("a-b-c", ["x" * 64], "g\\x0a")
    given = wandb_contents.config(path)[GIVEN]
    assert {name: given[name] for name in said} == said


def test_changes_are_said_once_and_not_at_every_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = make_context(tmp_path / "run", project="a/b", tags=[])
    for _ in range(3):
        sink = WandbSink(context)
        sink.open(START)
        sink.close()

    assert caplog.text.count("'a/b' is 'a-b' in W&B") == 1


def test_a_row_that_wandb_raises_at_costs_that_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the rows behind it; it is on record, and a second start agrees."""
    context, skips = skipping(make_context(tmp_path / "run"), tmp_path)
    rows = rows_of(*[MetricsLogged(kind="train", step=i, values={"a": i}) for i in range(30)])
    raising(monkeypatch, {7: TypeError("what is that"), 8: RecursionError(), 20: KeyError("x")})

    final = run_whole(context, rows)
    again = run_whole(context, [row for row in rows if row.row not in skips], final)

    kept = [row for row in rows if row.row not in (7, 8, 20)]
    assert written_history(context.out_dir) == expected_history(kept)
    assert again.row == final.row == 30 and len(skips) == 3


def test_a_wandb_that_takes_no_row_is_away_and_does_not_cost_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can't be the rows."""
    context, skips = skipping(make_context(tmp_path / "run"), tmp_path)
    rows = rows_of(*[MetricsLogged(kind="train", step=i, values={"a": i}) for i in range(100)])
    raising(monkeypatch, dict.fromkeys(range(100), TypeError("broken")))
    sink = WandbSink(context)
    sink.open(START)

    with pytest.raises(SinkUnavailable, match="takes no row"):
        sink.write(rows)
    sink.close()

    assert len(skips) == sink_module.REFUSED_IN_A_ROW_MAX


def raising(monkeypatch: pytest.MonkeyPatch, errors: dict[int, Exception]) -> None:
    """From here on wandb raises these errors, by the value of `a` in a row."""
    real = wandb.Run.log

    def log(self: wandb.Run, data: dict[str, Any], **said: Any) -> None:
        if (number := data.get("a")) in errors:
            raise errors[number]
        real(self, data, **said)

    monkeypatch.setattr(wandb.Run, "log", log)


def test_a_row_at_which_a_process_died_may_be_in_a_file_all_the_same(tmp_path: Path) -> None:
    """wandb-core had it already: the run is whole, and not one row too many for ever."""
    context = make_context(tmp_path / "run")
    rows = rows_of(*[MetricsLogged(kind="train", step=i, values={"a": i}) for i in range(20)])
    sink = WandbSink(context)
    sink.open(START)
    sink.write(rows[:11])
    sink.close()
    skipping_10, skips = skipping(context, tmp_path)
    skips.add(10, "crashed 2 times")

    final = run_whole(skipping_10, [row for row in rows if row.row != 10])

    assert final.row == 20 and len(written_history(context.out_dir)) == 20


def test_rows_of_another_journal_are_refused_by_name_offline(tmp_path: Path) -> None:
    """A row number means nothing in another journal."""
    rows = rows_of(MetricsLogged(kind="train", step=1, values={"a": 1.0}))
    run_whole(make_context(tmp_path / "run")._replace(journal="a" * 32), rows)
    sink = WandbSink(make_context(tmp_path / "run")._replace(journal="b" * 32))

    with pytest.raises(SinkRejected, match=r"a{32}.*b{32}"):
        sink.open(START)

    (path,) = fragments(make_context(tmp_path / "run"))
    assert wandb_contents.config(path)[JOURNAL] == "a" * 32


def test_rows_of_another_journal_are_refused_by_name_online(
    tmp_path: Path, server: FakeWandb
) -> None:
    """The server's rows of that run came from elsewhere: ours would be taken for them."""
    rows = rows_of(*[MetricsLogged(kind="train", step=i, values={"a": 1.0}) for i in range(5)])
    run_whole(make_context(tmp_path / "one", "online")._replace(journal="a" * 32), rows)
    before = server.runs[RUN_ID].steps()
    clock = PausingClock()
    context = make_context(tmp_path / "two", "online")._replace(journal="b" * 32, wait=clock.pause)
    sink = WandbSink(context, clock, clock.pause)

    with pytest.raises(SinkRejected, match=r"a{32}.*b{32}"):
        sink.open(START)

    assert before == list(range(5)) and server.runs[RUN_ID].steps() == before
    assert server.runs[RUN_ID].config[JOURNAL]["value"] == "a" * 32


def test_the_version_of_the_policy_is_in_every_position(context: SinkContext) -> None:
    """A later one begins at the row where the sink is."""
    rows = rows_of(*[MetricsLogged(kind="train", step=i, values={"a": i}) for i in range(5)])
    final = run_whole(context, rows)

    assert final.state["policy_versions"] == [[0, 2]]
    older = {**final.state, "policy_versions": [[0, 0]]}
    assert versions_of(older, 5) == [[0, 0], [5, 2]]


def test_messages_of_any_text_arrive(context: SinkContext) -> None:
    """An alert of 150 kB, with control characters."""
    rows = rows_of(
        MessageLogged(level="error", text="x\x1b\x00\n" * 30_000),
        MessageLogged(level="", text=""),
        MetricsLogged(kind="train", step=1, values={"a": 1.0}),
    )

    run_whole(context, rows)

    assert written_history(context.out_dir) == expected_history(rows)
