"""Reading event files back, with TensorBoard's own reader.

In: the directory that a TensorBoard sink wrote.
Out: every value in it, in the order of the files.
Never: trusts the code under test for anything.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from telemetry.journal.rows import Row
from telemetry.run_dir import RunFile
from telemetry.sinks.base import START, Position, SinkContext
from telemetry.sinks.tensorboard import TensorBoardSink
from telemetry.sinks.tensorboard.bounds import BOUNDS, Bounds


class Found(NamedTuple):
    """One value of one event file. value is a float, a text, or bins of (left, right, count)."""

    directory: str
    tag: str
    step: int
    wall_s: float
    value: Any


def sink_in(out_dir: Path, bounds: Bounds = BOUNDS) -> TensorBoardSink:
    return TensorBoardSink(SinkContext("run", out_dir, RunFile(), {}), bounds)


def through_json(position: Position) -> Position:
    """A position as a cursor file gives it back."""
    return Position(position.row, json.loads(json.dumps(position.state, allow_nan=False)))


def write_all(out_dir: Path, rows: Sequence[Row], bounds: Bounds = BOUNDS) -> Position:
    """What an uninterrupted sink makes of rows."""
    sink = sink_in(out_dir, bounds)
    sink.open(START)
    sink.write(rows)
    position = sink.finish("finished", 0)
    sink.close()
    return position


def read_all(out_dir: Path) -> list[Found]:
    """Every value, subdirectory by subdirectory, tag by tag, in the order of the files."""
    root = out_dir / "tensorboard"
    found: list[Found] = []
    for directory in sorted({path.parent for path in root.glob("*/events*")}):
        found += _read_directory(directory)
    return found


def scalars(found: list[Found]) -> list[Found]:
    """Those of them that are numbers, and not the repeated step."""
    return [each for each in found if isinstance(each.value, float)]


def by_tag(found: list[Found], tag: str, directory: str | None = None) -> list[tuple[int, Any]]:
    """Steps and values of a tag, in one subdirectory or all of them."""
    return [
        (each.step, each.value)
        for each in found
        if each.tag == tag and directory in (None, each.directory)
    ]


def as_float32(value: float) -> float:
    """A value as event files hold it."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _read_directory(directory: Path) -> list[Found]:
    reader = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    reader.Reload()
    name = directory.name
    tags = reader.Tags()
    found = [
        Found(name, tag, event.step, event.wall_time, float(event.value))
        for tag in tags["scalars"]
        for event in reader.Scalars(tag)
    ]
    for tag in tags["tensors"]:
        plugin = reader.SummaryMetadata(tag).plugin_data
        for event in reader.Tensors(tag):
            value = _tensor(event.tensor_proto, plugin)
            found.append(Found(name, tag, event.step, event.wall_time, value))
    return found


def _tensor(tensor: Any, plugin: Any) -> Any:
    if plugin.plugin_name == "text":
        return tensor.string_val[0].decode()
    if plugin.plugin_name == "histograms":
        values = list(tensor.double_val)
        shape = [dim.size for dim in tensor.tensor_shape.dim]
        assert shape == [len(values) // 3, 3]
        return [tuple(values[i : i + 3]) for i in range(0, len(values), 3)]
    return plugin.content or tensor.string_val[0]
