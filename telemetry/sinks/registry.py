"""Registry of the sinks by name; each is imported only when it is used."""

from __future__ import annotations

import importlib
from typing import Final

from telemetry.sinks.base import Sink, SinkContext

SINKS: Final = {
    "tensorboard": "telemetry.sinks.tensorboard:TensorBoardSink",
    "wandb": "telemetry.sinks.wandb:WandbSink",
    "parquet": "telemetry.sinks.parquet:ParquetSink",
    "perfetto": "telemetry.sinks.perfetto:PerfettoSink",
    "console": "telemetry.sinks.console:ConsoleSink",
}
"""Where the class of each sink is, by the name of the sink."""


def make_sink(name: str, context: SinkContext) -> Sink:
    """Make the sink of this name for one run.

    Raises:
        KeyError: there is no sink of this name.
        ImportError: the library that it needs is not installed.
    """
    module, _, attribute = SINKS[name].partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    sink: Sink = factory(context)
    return sink
