"""Which sinks there are, each imported only where it is used."""

from __future__ import annotations

import importlib
from typing import Final

from telemetry.sinks.base import Sink, SinkContext

_SINKS: Final = {
    "tensorboard": "telemetry.sinks.tensorboard:TensorBoardSink",
    "wandb": "telemetry.sinks.wandb:WandbSink",
    "console": "telemetry.sinks.console:ConsoleSink",
}
SINK_NAMES: Final = tuple(_SINKS)


def make_sink(name: str, context: SinkContext) -> Sink:
    """The sink of this name for one run.

    Raises:
        KeyError: there is none.
        ImportError: what it stands on is not installed.
    """
    module, _, attribute = _SINKS[name].partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    sink: Sink = factory(context)
    return sink
