"""What goes into a checkpoint beside the weights, and comes back out of one."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.trainer.model.test_encoder import make_batch, make_model
from trainer.training.checkpoint import CheckpointDirectory, read_checkpoint
from trainer.training.distillation import Distillation
from trainer.training.processes import Place, Processes
from trainer.training.random_states import random_states
from trainer.training.resume import Position, capture, restore
from trainer.training.step import Stepper

POSITION = Position(step=1, rows=8, best_val_loss=None, window_loss_sum=2.5, window_steps=1)


def make_parts() -> tuple[Stepper, torch.optim.Optimizer]:
    """In half precision, whose gradients are scaled."""
    model = make_model()
    stepper = Stepper(model, torch.device("cpu"), torch.float16, Processes(Place()))
    return stepper, torch.optim.AdamW(model.parameter_groups(0.01), lr=1e-3, fused=True)


def test_the_loss_scale_and_the_moments_come_back(tmp_path: Path):
    """A run in fp16 goes on with the scale that it had found, not with that of the start."""
    stepper, optimizer = make_parts()
    stepper.scaler.scale(stepper.model(*make_batch()).loss).backward()
    stepper.scaler.step(optimizer)
    stepper.scaler.update(1234.0)
    saved = capture(stepper, optimizer, Distillation(), POSITION, [random_states()])
    path = CheckpointDirectory(tmp_path).save(saved)
    again, its_optimizer = make_parts()

    position = restore(read_checkpoint(path), again, its_optimizer, Distillation(), total_steps=10)

    assert position == POSITION
    assert again.scaler.state_dict() == stepper.scaler.state_dict()
    assert again.scaler.get_scale() == 1234.0
    theirs = optimizer.state_dict()["state"]
    assert theirs
    for number, state in its_optimizer.state_dict()["state"].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, theirs[number][name]), (number, name)
