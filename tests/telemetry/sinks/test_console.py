"""What the console sink prints."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from shared.events import Gap, HistogramLogged, MessageLogged, MetricsLogged, RunFinished
from telemetry.run_dir import RunFile
from telemetry.sinks.base import START, SinkContext, SinkRejected, SinkUnavailable
from telemetry.sinks.console import ConsoleSink
from tests.telemetry.sinks.helpers_rows import SECOND_NS, START_WALL_NS, RowMaker

GIB = 1024**3


@pytest.fixture
def journal() -> RowMaker:
    return RowMaker()


def console(stream: io.TextIOBase) -> ConsoleSink:
    return ConsoleSink(SinkContext("run", Path(), RunFile(), {}), stream)  # type: ignore[arg-type]


def printed(journal: RowMaker) -> list[str]:
    stream = io.StringIO()
    sink = console(stream)
    sink.open(START)
    sink.write(journal.rows)
    sink.finish("finished", 0)
    sink.close()
    return stream.getvalue().splitlines()


def test_a_run_is_readable_as_text(journal: RowMaker) -> None:
    """One line for whatever happened, its time in UTC, its columns under each other."""
    journal.start(world_size=2, resumed_from_step=1000)
    journal.append(MessageLogged(level="info", text="entering full_ternary"))
    journal.metrics(1200, {"train/loss": 2.25, "train/epoch": 3, "train/training_stage": "warmup"})
    journal.metrics(1200, {"val/loss": 2.123456}, kind="val")
    journal.append(Gap(count=1200, reason="queue full"), "sidecar")
    journal.append(RunFinished(status="failed", exit_code=1))

    assert printed(journal) == [
        "2023-11-14 22:13:20.000  rank0           start    "
        "p/n, rank 0 of 2 on node1, resumed from step 1,000",
        "2023-11-14 22:13:21.000  rank0           info     entering full_ternary",
        "2023-11-14 22:13:22.000  rank0           train    "
        "step 1,200  loss 2.25  epoch 3  training_stage warmup",
        "2023-11-14 22:13:23.000  rank0           val      step 1,200  loss 2.123",
        "2023-11-14 22:13:24.000  sidecar         gap      1,200 events missing: queue full",
        "2023-11-14 22:13:25.000  rank0           end      failed, exit code 1",
    ]


def test_hardware_is_one_line_every_ten_seconds_of_event_time(journal: RowMaker) -> None:
    """Each host has its own ten seconds, and what could not be read is not there."""
    gpu = {"utilization_percent": 97, "memory_used_bytes": 40 * GIB, "temperature_celsius": 71}
    for second in range(21):
        values = {"cpu_percent": float(second)} | {f"gpu/0/{k}": v for k, v in gpu.items()}
        journal.hardware(values, wall_ns=START_WALL_NS + second * SECOND_NS)
    journal.hardware({"memory_percent": 5.0}, "node2", wall_ns=START_WALL_NS)

    lines = [line.split("hw", 1)[1].strip() for line in printed(journal)]

    assert lines == [
        "cpu 0%  gpu 0: 97% 40.0 GiB 71 °C",
        "cpu 10%  gpu 0: 97% 40.0 GiB 71 °C",
        "cpu 20%  gpu 0: 97% 40.0 GiB 71 °C",
        "memory 5%",
    ]


def test_a_position_remembers_when_hardware_was_shown(journal: RowMaker) -> None:
    """A restart within the ten seconds prints nothing twice."""
    for second in range(12):
        row = journal.hardware({"cpu_percent": 1.0})
        assert row.envelope.wall_ns == START_WALL_NS + second * SECOND_NS
    stream = io.StringIO()
    sink = console(stream)
    sink.open(START)
    sink.write(journal.rows[:4])
    position = sink.commit()
    sink.close()

    resumed = console(stream)
    assert resumed.open(position) == 4
    resumed.write(journal.rows[4:])

    assert len(stream.getvalue().splitlines()) == 2


def test_a_clock_that_was_set_back_does_not_silence_the_hardware(journal: RowMaker) -> None:
    """An hour back is another ten seconds over."""
    for wall_ns in (START_WALL_NS, START_WALL_NS - 3600 * SECOND_NS):
        journal.hardware({"cpu_percent": 1.0}, wall_ns=wall_ns)

    assert len(printed(journal)) == 2


def test_what_is_too_much_for_a_console_is_left_out(journal: RowMaker) -> None:
    """Histograms, quantization and custom metrics are for the other sinks."""
    journal.metrics(1, {"quant/zero_ratio": 0.5}, kind="quant")
    journal.metrics(1, {"x": 0.5}, kind="custom")
    journal.append(HistogramLogged(kind="quant", step=1, name="w", edges=[0.0], counts=[]))

    assert printed(journal) == []


def test_a_message_is_one_line_and_cannot_move_the_cursor(journal: RowMaker) -> None:
    """Text of a producer reaches a terminal, so it has to be harmless there."""
    journal.append(MessageLogged(level="in\nfo", text="a\x1b[2Jb\r\nc\x9b\u2028d"))

    (line,) = printed(journal)

    assert line.endswith(r"in\x0afo    a\x1b[2Jb\x0d\x0ac\x9b\u2028d")


def test_a_stream_that_knows_no_unicode_gets_escapes(journal: RowMaker) -> None:
    """As stdout does under LANG=C."""
    journal.append(MessageLogged(level="info", text="71 °C"))
    raw = io.BytesIO()
    sink = console(io.TextIOWrapper(raw, encoding="ascii"))
    sink.open(START)

    sink.write(journal.rows)
    sink.commit()

    assert raw.getvalue().endswith(b"71 \\xb0C\n")


def test_a_reader_that_went_away_is_final_and_a_full_disk_is_not(journal: RowMaker) -> None:
    """`replay --to console | head` ends; a log file on a full disk goes on later."""
    journal.start()
    for error, expected in (
        (BrokenPipeError(), SinkRejected),
        (OSError("disk full"), SinkUnavailable),
    ):
        sink = console(BrokenStream(error))
        sink.open(START)
        with pytest.raises(expected):
            sink.write(journal.rows)
        with pytest.raises(expected):
            sink.commit()


def test_the_last_time_that_an_event_can_have_is_shown(journal: RowMaker) -> None:
    """A producer's clock may say anything."""
    journal.append(MessageLogged(level="info", text="late"), wall_ns=2**63 - 1)

    (line,) = printed(journal)

    assert line.startswith("2262-04-11 23:47:16.854  rank0")


def test_a_run_that_nobody_introduced_begins_with_its_id(journal: RowMaker) -> None:
    """Once, and not again where the sink goes on."""
    journal.metrics(1, {"train/loss": 1.0})
    stream, position = io.StringIO(), START
    for _ in range(2):
        context = SinkContext("r\x1b", Path(), RunFile(is_introduced=False), {})
        sink = ConsoleSink(context, stream)
        sink.write(journal.rows[sink.open(position) :])
        position = sink.commit()

    lines = stream.getvalue().splitlines()
    assert lines[0] == "run r\\x1b: no RunStarted of it was seen"
    assert len(lines) == 2


def test_what_an_event_lacks_is_said_once_a_reason(journal: RowMaker) -> None:
    """Also of events that are too much for a console, and through a restart."""
    for step in range(3):
        journal.append(
            MetricsLogged(
                kind="custom",
                step=step,
                values={},
                left_out={"a": "None is not a number", "b\x1b": "None is not a number"},
                left_out_count=2,
            )
        )
    stream = io.StringIO()
    first = console(stream)
    first.open(START)
    first.write(journal.rows[:2])
    position = first.commit()
    second = console(stream)
    second.write(journal.rows[second.open(position) :])
    second.commit()

    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r"left out  a, b\x1b: None is not a number")


class BrokenStream(io.StringIO):
    """A stream whose other end is gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def write(self, text: str) -> int:
        raise self._error

    def flush(self) -> None:
        raise self._error
