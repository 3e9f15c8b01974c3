"""Conversion between a run's state in memory and the values of a checkpoint.

In: model, optimizer, scaler, teacher and position of a run; or a checkpoint.
Out: a checkpoint's values; or the same state again, to the bit; or the checkpoint's encoder alone.
Never: writes or reads a file.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from trainer.data.masking import EVALUATION_SEED
from trainer.errors import BadInput
from trainer.model import BitNetQDyT, ModelConfig
from trainer.model.schedule import last_trained
from trainer.training.checkpoint import FORMAT, Checkpoint
from trainer.training.distillation import Distillation
from trainer.training.random_states import restore_random_states, seed_noise
from trainer.training.step import Stepper


class Position(NamedTuple):
    """The progress of a run: steps done, rows read, best loss.

    The window fields are the sum and number of losses since the last logged step.
    """

    step: int
    rows: int
    best_val_loss: float | None
    window_loss_sum: float
    window_steps: int


def capture(
    stepper: Stepper,
    optimizer: torch.optim.Optimizer,
    distillation: Distillation,
    position: Position,
    random: list[Any],
) -> dict[str, Any]:
    """Return the part of a checkpoint that changes with every step; random is by rank."""
    return {
        "format": FORMAT,
        "step": position.step,
        "position": position.rows,
        "best_val_loss": position.best_val_loss,
        "evaluation_seed": EVALUATION_SEED,
        "model": stepper.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": stepper.scaler.state_dict(),
        "teacher": distillation.state(),
        "random": random,
        "window": {"loss_sum": position.window_loss_sum, "steps": position.window_steps},
    }


def restore(
    checkpoint: Checkpoint,
    stepper: Stepper,
    optimizer: torch.optim.Optimizer,
    distillation: Distillation,
    total_steps: int,
) -> Position:
    """Restore model, optimizer, teacher and noise; return the position of the run.

    The checkpoint is of a run with the same identity (see check_identity).
    """
    model: Any = stepper.model
    # The weights do not tell the stage of the last step done. Without it, a run that was
    # stopped between two stages would not initialize the ternary columns in the second.
    model.apply_schedule(last_trained(checkpoint["step"]), total_steps)
    model.load_state_dict(checkpoint["model"])
    # Optimizer: weight decay and kernel are those of this process's arguments and device.
    for ours, saved in zip(
        optimizer.param_groups, checkpoint["optimizer"]["param_groups"], strict=True
    ):
        saved |= {name: ours[name] for name in ("weight_decay", "fused")}
    optimizer.load_state_dict(checkpoint["optimizer"])
    if checkpoint["scaler"]:  # empty if the run was not in fp16 then
        stepper.scaler.load_state_dict(checkpoint["scaler"])
    distillation.load(checkpoint["teacher"], checkpoint["step"], total_steps)
    _restore_noise(checkpoint, stepper.processes.rank)
    window = checkpoint["window"]
    # Older versions had other masks, and losses on other masks can't be compared.
    is_comparable = checkpoint.get("evaluation_seed") == EVALUATION_SEED
    return Position(
        checkpoint["step"],
        checkpoint["position"],
        checkpoint["best_val_loss"] if is_comparable else None,
        window["loss_sum"],
        window["steps"],
    )


def rebuild_model(checkpoint: Checkpoint) -> BitNetQDyT:
    """Build the encoder of a checkpoint on the CPU, in evaluation mode.

    It has the bits of the last step that was trained.

    Raises:
        BadInput: the checkpoint does not hold a whole model.
    """
    try:
        model = BitNetQDyT(ModelConfig(**checkpoint["model_config"]))
        model.apply_schedule(last_trained(checkpoint["step"]), checkpoint["total_steps"])
        model.load_state_dict(checkpoint["model"])
    except (KeyError, TypeError, ValueError, RuntimeError) as exc:
        text = str(exc).splitlines()[0]
        raise BadInput(f"the checkpoint does not hold a whole model: {text}") from exc
    return model.eval()


def has_finite_state(model: nn.Module) -> bool:
    """True if all weights and ranges are finite. Waits for the device."""
    finite = [tensor.isfinite().all() for tensor in model.state_dict().values()]
    return bool(torch.stack(finite).all().item())


def _restore_noise(checkpoint: Checkpoint, rank: int) -> None:
    if rank < len(checkpoint["random"]):
        restore_random_states(checkpoint["random"][rank])
    else:  # the checkpoint was written by fewer processes
        seed_noise(checkpoint["step"], rank)
