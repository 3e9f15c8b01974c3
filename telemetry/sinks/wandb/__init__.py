"""The Weights & Biases sink: one run's journal as one W&B run.

Names in here are relative to nothing: `import wandb` always means the library.
"""

from telemetry.sinks.wandb.sink import WandbSink

__all__ = ["WandbSink"]
