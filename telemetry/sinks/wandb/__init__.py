"""The Weights & Biases sink: one run's journal as one W&B run.

Imports in this package are absolute: `import wandb` always means the library.
"""

from telemetry.sinks.wandb.wandb_sink import WandbSink

__all__ = ["WandbSink"]
