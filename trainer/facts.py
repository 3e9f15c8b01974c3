"""The facts of a prepared run, as its record and its checkpoints keep them.

In: Prepared, and the model once it is built.
Out: plain values by name.
Never: builds or loads anything.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from trainer.model import ModelConfig
from trainer.names import wandb_names
from trainer.prepare import Prepared
from trainer.reporting.observer import RunFacts
from trainer.training.compare import schedule_of
from trainer.training.device import gpu_uuids


def run_facts(prepared: Prepared) -> RunFacts:
    """Return the run's names and place, as RunStarted tells them."""
    args, device = prepared.args, prepared.device
    return RunFacts(
        **wandb_names(args, prepared.run_name),
        wandb_mode=args.effective_wandb_mode(),
        rank=prepared.processes.rank,
        world_size=prepared.processes.world_size,
        gpu_uuids=gpu_uuids(device),
        resumed_from_step=prepared.checkpoint["step"] if prepared.checkpoint else None,
    )


def start_config(prepared: Prepared) -> dict[str, Any]:
    """Return the run's config, without the part that needs the model to be built."""
    on_gpu = prepared.device.type == "cuda"
    return {
        **prepared.args.as_config(),
        # The tokenizer in use; the shipped one may have taken the default's place.
        "tokenizer": prepared.tokenizer_name,
        "tf32": on_gpu,
        "evaluation_precision": "fp32",
        **prepared.data_config,
        "device": str(prepared.device),
        "device_name": torch.cuda.get_device_name(prepared.device) if on_gpu else "cpu",
        "world_size": prepared.processes.world_size,
        "torch_version": torch.__version__,
    }


def describe_model(model: nn.Module, config: ModelConfig) -> dict[str, Any]:
    """Return the part of a run's config about the model: settings and parameter counts."""
    parameters = list(model.parameters())
    return {
        "total_parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        **{f"model/{name}": value for name, value in asdict(config).items()},
    }


def checkpoint_facts(prepared: Prepared) -> dict[str, Any]:
    """Return the part of a checkpoint that is the same after every step."""
    return {
        "run_id": prepared.run_id,
        "run_name": prepared.run_name,
        "total_steps": prepared.plan.total_steps,
        "identity": prepared.identity,
        "schedule": schedule_of(prepared.plan, prepared.model_config),
        "rows_per_step": prepared.plan.rows_per_step,
        "arguments": {**prepared.args.as_config(), "tokenizer": prepared.tokenizer_name},
        "model_config": asdict(prepared.model_config),
    }
