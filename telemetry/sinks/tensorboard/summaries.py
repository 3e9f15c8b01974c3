"""Summaries: encodes entries as the bytes of TensorBoard events.

In: entries.
Out: serialized `Event` messages.
Never: holds more than one event.

A scalar is a `simple_value`, a 32-bit float that every reader of event files accepts.
Everything else is a tensor with the metadata of the plugin that shows it; the HPARAMS
tab reads only the metadata.
"""

from __future__ import annotations

from typing import Any, Final

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from shared.events import FAILED, FINISHED, LOST, Scalar
from telemetry.sinks.tensorboard.entries import (
    ConfigEnd,
    ConfigStart,
    Entry,
    Extra,
    Histogram,
    PanelLayout,
    Text,
)
from telemetry.sinks.tensorboard.scalars import encode_scalars

FILE_VERSION: Final = "brain.Event:2"

PANELS: Final = {
    "Loss": {
        "loss": [r"train/loss", r"val/loss"],
        "perplexity": [r"val/perplexity"],
    },
    "Quantization": {
        "weight codes": [r"quant/(.*/)?(zero|plus|minus)_ratio"],
        "dead rows": [r"quant/(.*/)?dead_rows_ratio"],
        "bits": [r"quant/(.*/)?(weight|activation)_bits_mean"],
        "weight signal to noise": [r"quant/(.*/)?weight_sqnr_db"],
        "weight scale": [r"quant/(.*/)?scale_mean"],
        "activations out of range": [
            r"quant/(.*/)?activation_overload_rate",
            r"quant/(.*/)?tanh_saturation_ratio",
        ],
        "quantizers dropped": [r"quant/(.*/)?bypassed_ratio", r"train/qdrop_probability"],
    },
}
"""Categories of panels, each panel with regular expressions for the whole tags it draws."""

_STATUSES: Final = {
    FINISHED: api_pb2.STATUS_SUCCESS,
    FAILED: api_pb2.STATUS_FAILURE,
    LOST: api_pb2.STATUS_FAILURE,
}


def version_event(wall_ns: int) -> bytes:
    """Encode the event that every file starts with."""
    event = event_pb2.Event(wall_time=wall_ns / 1e9, file_version=FILE_VERSION)
    return bytes(event.SerializeToString())


def encode_entry(entry: Entry) -> bytes:
    """Encode an entry as one event."""
    if not entry.extras and entry.scalars:
        try:
            return encode_scalars(entry.wall_ns / 1e9, entry.step, entry.scalars)
        except OverflowError:
            pass  # too large for 32 bits: the library below writes infinity
    event = event_pb2.Event(wall_time=entry.wall_ns / 1e9, step=entry.step)
    add = event.summary.value.add
    for tag, value in entry.scalars.items():
        add(tag=tag, simple_value=value)
    for tag, extra in entry.extras:
        _fill(add(tag=tag), extra, entry.wall_ns / 1e9)
    return bytes(event.SerializeToString())


def _fill(value: Any, extra: Extra, wall_s: float) -> None:
    match extra:
        case Text(text):
            _set_text(value, "text", text.encode())
        case Histogram():
            _set_histogram(value, extra)
        case ConfigStart(config):
            _set_hparams(value, session_start_info=_session_start(config, wall_s))
        case ConfigEnd(status):
            end = plugin_data_pb2.SessionEndInfo(
                status=_STATUSES.get(status, api_pb2.STATUS_UNKNOWN), end_time_secs=wall_s
            )
            _set_hparams(value, session_end_info=end)
        case PanelLayout():
            _set_text(value, "custom_scalars", _layout().SerializeToString())


def _set_text(value: Any, plugin: str, content: bytes) -> None:
    value.metadata.plugin_data.plugin_name = plugin
    value.metadata.data_class = summary_pb2.DATA_CLASS_TENSOR
    value.tensor.CopyFrom(tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[content]))
    value.tensor.tensor_shape.SetInParent()


def _set_histogram(value: Any, histogram: Histogram) -> None:
    """Set value to a tensor of (left, right, count), shape (bins, 3)."""
    value.metadata.plugin_data.plugin_name = "histograms"
    value.metadata.data_class = summary_pb2.DATA_CLASS_TENSOR
    tensor = value.tensor
    tensor.dtype = types_pb2.DT_DOUBLE
    tensor.tensor_shape.dim.add(size=len(histogram.counts))
    tensor.tensor_shape.dim.add(size=3)
    edges = histogram.edges
    for line in zip(edges, edges[1:], histogram.counts, strict=False):
        tensor.double_val.extend(line)


def _set_hparams(value: Any, **content: Any) -> None:
    data = plugin_data_pb2.HParamsPluginData(version=0, **content)
    value.metadata.plugin_data.plugin_name = "hparams"
    # Maps have no fixed order, but a replay must equal the live run byte for byte.
    value.metadata.plugin_data.content = data.SerializeToString(deterministic=True)
    value.metadata.data_class = summary_pb2.DATA_CLASS_TENSOR
    # No reader accepts a value without a tensor, so an empty one is added.
    value.tensor.dtype = types_pb2.DT_FLOAT
    value.tensor.tensor_shape.dim.add(size=0)


def _session_start(config: dict[str, Scalar], wall_s: float) -> Any:
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=wall_s)
    for name, value in config.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, str):
            start.hparams[name].string_value = value
        else:
            start.hparams[name].number_value = value
    return start


def _layout() -> Any:
    layout = layout_pb2.Layout()
    for title, panels in PANELS.items():
        category = layout.category.add(title=title)
        for panel, tags in panels.items():
            category.chart.add(title=panel).multiline.tag.extend(tags)
    return layout
