"""What the TensorBoard sink shows of each event, read back with TensorBoard's own reader."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from shared.events import (
    ConfigUpdated,
    Envelope,
    Gap,
    HistogramLogged,
    MessageLogged,
    RunFinished,
)
from telemetry.journal.rows import Row
from tests.telemetry.sinks.helpers_rows import SECOND_NS, START_WALL_NS, RowMaker
from tests.telemetry.sinks.helpers_tensorboard import (
    as_float32,
    by_tag,
    read_all,
    sink_in,
    write_all,
)


@pytest.fixture
def journal() -> RowMaker:
    return RowMaker()


def test_a_training_metric_keeps_its_name_value_step_and_exact_time(
    tmp_path: Path, journal: RowMaker
) -> None:
    """The tag is the name as it is, and the time is the event's own."""
    journal.metrics(100, {"train/loss": 2.25}, wall_ns=1_700_000_000_123_456_789)

    write_all(tmp_path, journal.rows)

    (found,) = [each for each in read_all(tmp_path) if each.tag == "train/loss"]
    assert found == ("rank0", "train/loss", 100, 1_700_000_000_123_456_789 / 1e9, 2.25)


def test_every_legal_number_is_written(tmp_path: Path, journal: RowMaker) -> None:
    """Truth values are 0 and 1, and numbers are rounded to what event files can hold."""
    values = {
        "yes": True,
        "no": False,
        "big": 2**60 + 1,
        "huge": -1e300,
        "inf": math.inf,
        "nan": math.nan,
    }
    journal.metrics(1, values, kind="custom")

    write_all(tmp_path, journal.rows)

    found = {each.tag: each.value for each in read_all(tmp_path)}
    assert math.isnan(found.pop("nan"))
    assert found == {
        "yes": 1.0,
        "no": 0.0,
        "big": as_float32(2.0**60),
        "huge": -math.inf,
        "inf": math.inf,
        "train/global_step": 1.0,
    }


def test_the_training_step_is_written_once_a_step(tmp_path: Path, journal: RowMaker) -> None:
    """Training and validation at one step both carry it, and that is no step that fails to rise."""
    journal.metrics(10, {"train/loss": 3.0})
    journal.metrics(10, {"val/loss": 3.5}, kind="val")
    journal.metrics(5, {"quant/zero_ratio": 0.5}, kind="quant")
    journal.metrics(20, {"train/loss": 2.0})

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    assert by_tag(found, "train/global_step") == [(10, 10.0), (20, 20.0)]
    assert {each.directory for each in found} == {"rank0"}


def test_a_text_is_written_where_it_changes(tmp_path: Path, journal: RowMaker) -> None:
    """A stage that lasts for a million steps is one text and not a million."""
    for step, stage in enumerate(["warmup", "warmup", "full_ternary", "full_ternary", "warmup"]):
        journal.metrics(step, {"train/training_stage": stage, "train/loss": 1.0})

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    stages = by_tag(found, "train/training_stage")
    assert stages == [(0, "warmup"), (2, "full_ternary"), (4, "warmup")]
    assert len(by_tag(found, "train/loss")) == 5


def test_a_text_alone_is_a_point_too(tmp_path: Path, journal: RowMaker) -> None:
    """Where the step is told already, a text may be all that is left of a row."""
    journal.metrics(1, {"train/loss": 1.0})
    journal.metrics(1, {"train/training_stage": "warmup"})

    write_all(tmp_path, journal.rows)

    assert by_tag(read_all(tmp_path), "train/training_stage", "rank0") == [(1, "warmup")]


def test_a_name_that_is_a_number_and_then_a_text_keeps_both(
    tmp_path: Path, journal: RowMaker
) -> None:
    """TensorBoard shows only the first kind of a tag, so another kind gets a tag of its own."""
    journal.metrics(1, {"x": 1.0, "y": "a"}, kind="custom")
    journal.metrics(2, {"x": "b", "y": 2.0}, kind="custom")
    journal.append(HistogramLogged(kind="custom", step=3, name="x", edges=[0.0, 1.0], counts=[2.0]))

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    assert by_tag(found, "x") == [(1, 1.0)]
    assert by_tag(found, "x/text") == [(2, "b")]
    assert by_tag(found, "x/histogram") == [(3, [(0.0, 1.0, 2.0)])]
    assert by_tag(found, "y") == [(1, "a")]
    assert by_tag(found, "y/scalar") == [(2, 2.0)]


def test_the_step_of_hardware_is_the_second_of_the_run(tmp_path: Path, journal: RowMaker) -> None:
    """On the monotonic clock that rank 0 shares, whatever the wall clock does; gaps stay gaps."""
    boot_ns = 7000 * SECOND_NS
    journal.start(mono_ns=boot_ns)
    for second, value in ((2.4, 10.0), (3.6, 20.0), (4.4, 25.0), (7.4, 30.0)):
        mono_ns = boot_ns + int(second * SECOND_NS)
        wall_ns = START_WALL_NS - int(value) * 3600 * SECOND_NS
        journal.hardware({"cpu_percent": value}, mono_ns=mono_ns, wall_ns=wall_ns)

    write_all(tmp_path, journal.rows)

    found = by_tag(read_all(tmp_path), "~hw/cpu_percent", "hardware")
    assert found == [(2, 10), (3, 20), (4, 25), (7, 30)]


def test_samples_of_one_second_are_all_written(tmp_path: Path, journal: RowMaker) -> None:
    """Ten samples a second are ten points, even of one value; the loader shows the last."""
    journal.start()
    for tenth in range(30):
        journal.hardware({"cpu_percent": 5.0}, mono_ns=tenth * SECOND_NS // 10)

    write_all(tmp_path, journal.rows)

    found = by_tag(read_all(tmp_path), "~hw/cpu_percent", "hardware")
    assert len(found) == 30
    assert [step for step, _ in found] == sorted(step for step, _ in found)
    assert {step for step, _ in found} == {0, 1, 2, 3}


def test_what_has_no_step_is_numbered_by_its_place_in_its_session(
    tmp_path: Path, journal: RowMaker
) -> None:
    """Custom metrics without a step still make a curve."""
    journal.metrics(1, {"train/loss": 1.0})
    for value in (4.0, 5.0):
        journal.metrics(None, {"temperature": value}, kind="custom")

    write_all(tmp_path, journal.rows)

    assert by_tag(read_all(tmp_path), "temperature") == [(1, 4.0), (2, 5.0)]


def test_a_histogram_is_its_bins(tmp_path: Path, journal: RowMaker) -> None:
    """Bins of uneven width stay as they are."""
    edges, counts = [-1.0, 0.0, 0.5, 4.0], [3.0, 0.0, 1.0]
    journal.append(
        HistogramLogged(kind="quant", step=7, name="weights", edges=edges, counts=counts)
    )

    write_all(tmp_path, journal.rows)

    bins = [(-1.0, 0.0, 3.0), (0.0, 0.5, 0.0), (0.5, 4.0, 1.0)]
    assert by_tag(read_all(tmp_path), "weights") == [(7, bins)]


def test_messages_gaps_starts_and_ends_are_texts(tmp_path: Path, journal: RowMaker) -> None:
    """Whatever has no value still has a line that people can read."""
    journal.start(rank=0, world_size=2, resumed_from_step=1000)
    journal.append(MessageLogged(level="alert", text="loss | spiked"))
    journal.append(
        Gap(count=1200, by_kind={"val": 2, "train": 1198}, reason="queue full", unknown_ms=30.0)
    )
    journal.append(RunFinished(status="failed", exit_code=1, summary={"best": {"loss": 2.5}}))

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    assert by_tag(found, "messages/alert") == [(1, "loss | spiked")]
    gap = "1,200 events missing (train 1,198, val 2): queue full; up to 30 ms unknown"
    assert by_tag(found, "messages/gap") == [(2, gap)]
    assert by_tag(found, "telemetry/gap_events") == [(2, 1200.0)]
    assert by_tag(found, "messages/run") == [
        (0, "started: rank 0 of 2 on node1, pid 7, resumed from step 1,000"),
        (3, "failed, exit code 1; best.loss 2.5"),
    ]


def test_a_metric_called_like_a_message_does_not_hide_it(tmp_path: Path, journal: RowMaker) -> None:
    """Messages are numbered unlike metrics, so they never share a tag."""
    journal.append(MessageLogged(level="info", text="said"))
    journal.metrics(0, {"messages/info": "measured"}, kind="custom")
    journal.append(MessageLogged(level="info", text="said again"))

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    assert by_tag(found, "messages/info") == [(0, "said"), (2, "said again")]
    assert by_tag(found, "messages/info/text") == [(0, "measured")]


def test_the_hparams_tab_gets_the_whole_configuration_with_the_first_metrics(
    tmp_path: Path, journal: RowMaker
) -> None:
    """Nested names are joined by dots; what is known only after the model is built is in it."""
    config = {"lr": 0.5, "fp16": False, "model": {"size": "base"}, "betas": [0.9, 1], "x": math.nan}
    journal.start(config=config)
    journal.metrics(None, {"telemetry/emitted_total": 1}, kind="custom")
    journal.append(ConfigUpdated(config={"model": {"parameters": 12}}))
    first = journal.metrics(1, {"train/loss": 1.0})
    journal.metrics(2, {"train/loss": 1.0})
    journal.append(RunFinished(status="finished", exit_code=0))

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    ((_, content),) = by_tag(found, "_hparams_/session_start_info")
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.start_time_secs == first.envelope.wall_ns / 1e9
    assert {name: _plain(value) for name, value in start.hparams.items()} == {
        "run.project": "p",
        "run.name": "n",
        "lr": 0.5,
        "fp16": False,
        "model.size": "base",
        "betas": "[0.9, 1]",
        "x": "nan",
        "model.parameters": 12.0,
    }
    # TensorBoard compares the runs and shows first what differs, unless it is told otherwise.
    assert by_tag(found, "_hparams_/experiment") == []
    ((_, content),) = by_tag(found, "_hparams_/session_end_info")
    end = plugin_data_pb2.HParamsPluginData.FromString(content).session_end_info
    assert end.status == api_pb2.STATUS_SUCCESS


def test_the_configuration_is_a_text_that_grows(tmp_path: Path, journal: RowMaker) -> None:
    """The last text is the whole of it; ranks above 0 would only repeat it."""
    journal.start(config={"a|b": "x\ny"})
    journal.start("rank1", config={"a": 1})
    journal.append(ConfigUpdated(config={"late": 2}))

    write_all(tmp_path, journal.rows)

    (_, first), (_, last) = by_tag(read_all(tmp_path), "config")
    assert "| a\\|b | x y |" in first
    assert last == first + "\n| late | 2 |"


def test_a_configuration_of_any_depth_and_kind_is_shown(tmp_path: Path, journal: RowMaker) -> None:
    """A configuration is whatever a producer says, and none of it stops the sink."""
    deep: dict[str, object] = {}
    for _ in range(100):
        deep = {"inner": [{"inner": deep}]}
    journal.start(config={"deep": deep, "none": None, "empty": {}, "bytes": b"x", "big": 2**64 - 1})
    journal.metrics(1, {"train/loss": 1.0})

    write_all(tmp_path, journal.rows)

    ((_, text),) = by_tag(read_all(tmp_path), "config")
    assert "| none | None |" in text
    assert "| big | 18446744073709551615 |" in text


def test_the_custom_scalars_tab_has_panels_for_quantization(
    tmp_path: Path, journal: RowMaker
) -> None:
    """Loss of training and validation share a panel; quantization has a category."""
    journal.start()

    write_all(tmp_path, journal.rows)

    ((_, content),) = by_tag(read_all(tmp_path), "custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(content)
    assert [category.title for category in layout.category] == ["Loss", "Quantization"]
    assert list(layout.category[0].chart[0].multiline.tag) == ["train/loss", "val/loss"]


def test_events_that_are_not_understood_become_nothing(tmp_path: Path, journal: RowMaker) -> None:
    """A row of a newer producer, or a damaged one, takes nothing else along."""
    good = journal.metrics(1, {"train/loss": 1.0})
    newer = good._replace(row=1, seq=1, envelope=_retagged(good, "of_the_future"))
    wrong = good._replace(row=2, seq=2, envelope=_retagged(good, "message"))
    last = journal.metrics(2, {"train/loss": 0.5})._replace(row=3, seq=3)

    write_all(tmp_path, [good, newer, wrong, last])

    assert by_tag(read_all(tmp_path), "train/loss") == [(1, 1.0), (2, 0.5)]


def test_files_are_named_by_their_first_row_and_the_start_of_the_sink(
    tmp_path: Path, journal: RowMaker
) -> None:
    """In the order of names they are in the order of rows."""
    journal.start()
    journal.hardware({"cpu_percent": 1.0})
    sink = sink_in(tmp_path)
    position = write_all(tmp_path, journal.rows)
    journal.metrics(1, {"train/loss": 1.0})

    sink.open(position)
    sink.write(journal.rows[2:])
    sink.commit()
    sink.close()

    names = sorted(
        str(path.relative_to(tmp_path / "tensorboard")) for path in tmp_path.rglob("events*")
    )
    assert names == [
        "hardware/events.out.tfevents.00000000000000000001.000001.telemetry",
        "rank0/events.out.tfevents.00000000000000000000.000001.telemetry",
        "rank0/events.out.tfevents.00000000000000000002.000002.telemetry",
    ]


def test_time_may_go_back_between_sessions(tmp_path: Path, journal: RowMaker) -> None:
    """Fault 34: after the clock was set back an hour, each point has the time it was given."""
    journal.metrics(1, {"train/loss": 1.0}, wall_ns=START_WALL_NS)
    journal.metrics(2, {"train/loss": 0.9}, session="s2", wall_ns=START_WALL_NS - 3600 * SECOND_NS)

    write_all(tmp_path, journal.rows)

    walls = [(e.directory, e.wall_s) for e in read_all(tmp_path) if e.tag == "train/loss"]
    assert walls == [("rank0", START_WALL_NS / 1e9), ("rank0.2", START_WALL_NS / 1e9 - 3600)]


def _plain(value: object) -> object:
    return getattr(value, str(value.WhichOneof("kind")))  # type: ignore[attr-defined]


def _retagged(row: Row, tag: str) -> Envelope:
    return Envelope(tag, row.envelope.wall_ns, row.envelope.mono_ns, row.envelope.body)
