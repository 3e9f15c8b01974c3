"""Strangers' names, and values that break something: each costs itself at most."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.events import HistogramLogged, MessageLogged, MetricsLogged, RunFinished, RunStarted
from shared.text import clean
from telemetry.sinks.base import START
from telemetry.sinks.tensorboard import summaries
from telemetry.sinks.tensorboard.names import RESERVED, cleaned_tag
from telemetry.sinks.tensorboard.run_config import hparams_of
from telemetry.sinks.tensorboard.units import shown_hardware
from tests.telemetry.sinks.helpers_rows import RowMaker
from tests.telemetry.sinks.helpers_tensorboard import by_tag, read_all, sink_in, write_all

HOSTILE = [
    "", " ", "/", "..", "../../x", "a\x00b", "a\x1b[31m", "a\nb", "\u202egpj", "é" * 150, "x" * 256,
    "custom_scalars__config__", "_hparams_/experiment", "_hparams_/session_start_info",
    "messages/info", "config", "train/loss/", "/train/loss", "a\u2028b", "名前/損失", "f1*macro",
]  # fmt: skip


@pytest.fixture
def journal() -> RowMaker:
    return RowMaker()


def test_names_of_every_kind_are_curves_of_their_own(tmp_path: Path, journal: RowMaker) -> None:
    """Empty, with slashes, control characters and bidi marks, too long, or a tab's own."""
    journal.start(config={"lr": 1.0})
    journal.append(MessageLogged(level="info", text="said"))
    for step in (1, 2):
        values = {name: float(number) for number, name in enumerate(HOSTILE)}
        journal.metrics(step, values, kind="custom")
    journal.append(RunFinished(status="finished"))

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    curves: dict[float, list[int]] = {}
    for each in found:
        if isinstance(each.value, float) and each.tag != "train/global_step":
            curves.setdefault(each.value, []).append(each.step)
            assert each.tag.isprintable() and 0 < len(each.tag) <= 220
    assert curves == {float(number): [1, 2] for number in range(len(HOSTILE))}
    assert by_tag(found, "messages/info") == [(1, "said")]
    assert len(by_tag(found, "custom_scalars__config__")) == 1
    assert {each.directory for each in found} == {"rank0"}
    assert {path.name for path in tmp_path.iterdir()} == {"cursors", "tensorboard"}


@given(names=st.sets(st.text(max_size=300), max_size=20))
def test_two_names_never_have_one_tag(names: set[str]) -> None:
    """And a tag is always one line of text that can be written."""
    tags = {cleaned_tag(name) for name in names}

    assert len(tags) == len(names)
    assert not tags & RESERVED
    assert all(tag.encode() and clean(tag) == tag for tag in tags)


@pytest.mark.parametrize("name", ["/train/loss", "train/loss/", " train/loss "])
def test_a_tag_has_no_empty_group(name: str) -> None:
    """TensorBoard would show it under a heading without a name."""
    assert cleaned_tag(name).startswith("train/loss-")


@pytest.mark.parametrize("name", ["train/loss", "val/f1*macro", "损失", "a.b_c-d/e", "50 %", "x:0"])
def test_a_name_that_is_fine_is_its_tag(name: str) -> None:
    """Also where W&B would not take it."""
    assert cleaned_tag(name) == name


def test_levels_and_histograms_with_hostile_names_are_cleaned_too(
    tmp_path: Path, journal: RowMaker
) -> None:
    """A message's level is a stranger's word as well."""
    journal.append(MessageLogged(level="a\x1b\n/..", text="said"))
    journal.append(HistogramLogged(kind="quant", step=1, name="", edges=[0.0, 1.0], counts=[1.0]))

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    assert len(found) == 2 and all(each.tag.isprintable() and each.tag for each in found)


def test_texts_keep_their_lines_and_lose_what_acts(tmp_path: Path, journal: RowMaker) -> None:
    """Messages, stages and the configuration, in a browser as in a terminal."""
    journal.start(config={"a\x1b": "b\u202ec"})
    journal.append(MessageLogged(level="info", text="one\n\x1b[2Jtwo\u202e"))
    journal.metrics(1, {"stage": "warm\x07up"})

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    assert by_tag(found, "messages/info") == [(1, "one\n\\x1b[2Jtwo\\u202e")]
    assert by_tag(found, "stage") == [(1, "warm\\x07up")]
    ((_, config),) = by_tag(found, "config")
    assert "| a\\x1b | b\\u202ec |" in config and config.count("\n") > 2


def test_what_breaks_in_one_entry_costs_only_that(
    tmp_path: Path,
    journal: RowMaker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever the library raises at it; it is counted, and said once."""

    def broken(*_: object) -> None:
        raise RuntimeError("no such tensor")

    monkeypatch.setattr(summaries, "_set_histogram", broken)
    journal.start()
    for step in (1, 2):
        event = HistogramLogged(kind="quant", step=step, name="w", edges=[0.0, 1.0], counts=[1.0])
        journal.append(event)
        journal.metrics(step, {"train/loss": float(step)})
    sink = sink_in(tmp_path)
    sink.open(START)
    sink.write(journal.rows)
    position = sink.commit()
    sink.close()

    assert by_tag(read_all(tmp_path), "train/loss") == [(1, 1.0), (2, 2.0)]
    assert (position.row, position.state["left_out"], position.state["broken"]) == (5, 2, 2)
    assert len([r for r in caplog.records if "left out" in r.getMessage()]) == 1


def test_what_finds_no_place_is_in_the_position_and_said_once(
    tmp_path: Path, journal: RowMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """For `inspect` and /metrics."""
    for step in range(30, 0, -1):
        journal.metrics(step, {"x": 1.0}, kind="custom")
    sink = sink_in(tmp_path)
    sink.open(START)
    sink.write(journal.rows)
    position = sink.commit()
    sink.commit()
    sink.close()

    assert position.state["left_out"] == 14
    assert len([r for r in caplog.records if "went back" in r.getMessage()]) == 1


def test_what_an_event_lacks_is_said_once_a_reason(tmp_path: Path, journal: RowMaker) -> None:
    """By its names, in each session."""
    for step in range(3):
        journal.append(
            MetricsLogged(
                kind="train",
                step=step,
                values={"train/loss": 1.0},
                left_out={"a": "None is not a number", "b": "None is not a number", "c": "a list"},
                left_out_count=70,
            )
        )
    journal.append(
        RunStarted(project="p", name="n", left_out={"config": "too deep"}, left_out_count=1)
    )

    write_all(tmp_path, journal.rows)

    texts = [text for _, text in by_tag(read_all(tmp_path), "messages/left_out")]
    assert texts == [
        "left out: a, b (None is not a number), and 67 more without their names",
        "left out: c (a list), and 67 more without their names",
        "left out: config (too deep)",
    ]


def test_reasons_are_told_up_to_a_bound(tmp_path: Path, journal: RowMaker) -> None:
    """A producer with ever new words does not fill the position."""
    for number in range(200):
        event = MetricsLogged(
            kind="train", values={}, left_out={"a": f"reason {number}"}, left_out_count=1
        )
        journal.append(event)

    write_all(tmp_path, journal.rows)

    assert len(by_tag(read_all(tmp_path), "messages/left_out")) == 64


def test_a_run_that_nobody_introduced_is_shown_like_any_other(
    tmp_path: Path, journal: RowMaker
) -> None:
    """It has no configuration, and all its points."""
    journal.metrics(1, {"train/loss": 1.0})
    journal.hardware({"cpu_percent": 3.0})

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    assert by_tag(found, "train/loss", "rank0") == [(1, 1.0)]
    assert by_tag(found, "~hw/cpu_percent", "hardware") == [(1, 3.0)]


def test_what_the_telemetry_counts_of_itself_stands_apart(
    tmp_path: Path, journal: RowMaker
) -> None:
    """In a subdirectory of its own, whoever says it, and through every restart."""
    for session in ("s1", "s2"):
        journal.metrics(None, {"telemetry/dropped_total": 0}, session=session, kind="custom")
        journal.metrics(1, {"train/loss": 1.0, "telemetry/x": 2.0}, session=session)
        journal.hardware({"sampler/skipped_ticks_total": 0, "cpu_percent": 1.0})

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    own = [each for each in found if each.tag.startswith("telemetry/")]
    assert {each.directory for each in own} == {"telemetry"}
    assert by_tag(found, "telemetry/dropped_total") == [(0, 0.0), (3, 0.0)]
    assert by_tag(found, "telemetry/node1/sampler/skipped_ticks_total") == [(2, 0.0), (5, 0.0)]
    assert {each.directory for each in found} == {"rank0", "rank0.2", "hardware", "telemetry"}


def test_hardware_has_units_that_people_read() -> None:
    """And comes behind training: TensorBoard sorts by name."""
    values = {
        "cpu_percent": 5.0,
        "gpu_memory_used": 1024,
        "hw/n/memory/used_bytes": 3 * 2**30,
        "hw/n/disk/read_bytes_per_second": 5 * 2**20,
        "hw/n/gpu/0/clock_sm_hertz": 1.5e9,
        "hw/n/gpu/0/energy_joules": 7.2e6,
        "hw/n/gpu/0/uuid": "GPU-a_bytes",
        "hw/n/cpu/3/percent": 50.0,
        "hw/n/cpu/frequency_hertz": 2e9,
        "hw/n/gpu/0/percent": 50.0,
        "hw/elapsed_seconds": 17.0,
    }

    shown = shown_hardware(values, has_cores=False)

    assert shown == {
        "~hw/cpu_percent": 5.0,
        "~hw/gpu_memory_used": 1024,
        "~hw/n/memory/used_gib": 3.0,
        "~hw/n/disk/read_mib_per_second": 5.0,
        "~hw/n/gpu/0/clock_sm_ghz": 1.5,
        "~hw/n/gpu/0/energy_kwh": 2.0,
        "~hw/n/gpu/0/uuid": "GPU-a_bytes",
        "~hw/n/cpu/frequency_ghz": 2.0,
        "~hw/n/gpu/0/percent": 50.0,
    }
    assert shown_hardware(values, has_cores=True)["~hw/n/cpu/3/percent"] == 50.0
    assert all(name > "val/loss" for name in shown)


def test_hardware_of_who_is_no_sampler_is_under_its_source(
    tmp_path: Path, journal: RowMaker
) -> None:
    """An own script may call its readings so."""
    journal.metrics(None, {"fan/rpm": 900.0}, kind="hardware")

    write_all(tmp_path, journal.rows)

    assert by_tag(read_all(tmp_path), "~hw/rank0/fan/rpm", "rank0") == [(0, 900.0)]


def test_hparams_are_what_can_be_compared() -> None:
    """Not what differs between any two runs; the whole is in the text beside."""
    kept = {
        "lr": 0.1, "dataset": "wikitext-2-v1", "tokenizer": "org/bert-base", "optimizer": "adamw",
        "betas": "[0.9, 0.95]", "fp16": False, "seed": 7, "run.name": "a", "width": 16,
        "schedule": "cosine", "deadbeef": "cafe", "valid": True, "ratio": "1/3",
    }  # fmt: skip
    dropped = {
        "output_dir": "outputs", "data.path": "x", "resume_from": "/a/b.pt", "cache": "./cache",
        "home": "~/x", "url": "x", "remote": "https://host/x", "dataset_sha256": "x",
        "commit": "abc", "weights": "a" * 40, "digest": "sha256:" + "0" * 64,
        "wandb_id": "x", "job": "123e4567-e89b-12d3-a456-426614174000", "file": "C:\\x\\y",
        "text": "long " * 100, "deep": "a/b/c", "hostname": "n1", "pid": 17,
    }  # fmt: skip

    assert hparams_of(kept | dropped) == kept
