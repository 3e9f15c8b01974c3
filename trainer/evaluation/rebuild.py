"""Rebuilding of a checkpoint's encoder, for evaluation, export and distillation.

In: a checkpoint.
Out: its encoder on the CPU, in evaluation mode.
Never: needs text, a run, or the arguments of one.
"""

from __future__ import annotations

from trainer.errors import BadInput
from trainer.model import BitNetQDyT, ModelConfig
from trainer.model.schedule import last_trained
from trainer.training.checkpoint import Checkpoint


def rebuild_model(checkpoint: Checkpoint) -> BitNetQDyT:
    """Build the model of a checkpoint, with the bits of the last step that was trained.

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
