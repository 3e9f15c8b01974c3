"""The step never asks the device for a number, whatever is logged."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.__main__ import main
from trainer.training.loop import Training
from trainer.training.scalar_copies import ScalarCopies

# What makes the host wait for an accelerator: a value read, or a shape that depends on values.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::equal",
    "aten::is_nonzero",
    "aten::bincount",
    "aten::histc",
    "aten::_linalg_check_errors",
}


class NoWaiting(TorchDispatchMode):
    """Raises at the first operation that would wait, and counts those that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        name = func._schema.name
        index_is_mask = name in ("aten::index", "aten::index_put_") and any(
            i is not None and i.dtype is torch.bool for i in args[1]
        )
        if name in WAITING or index_is_mask:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("extra", ["", "--bf16", "--teacher ema"])
def test_no_step_of_any_stage_waits_for_the_device(small_run, recorder, monkeypatch, extra):
    """With metrics, diagnostics of each layer, histograms and block times in every step."""
    mode = NoWaiting()
    train = Training.run

    def run_watched(training: Training) -> None:
        batches = training.batches_from(0)  # made on the host, which may ask itself
        made = iter([next(batches) for _ in range(12)])
        training.batches_from = lambda position: made
        with mode:
            train(training)

    # Arrival is after the step; validation and checkpoints may wait.
    monkeypatch.setattr(Training, "run", run_watched)
    monkeypatch.setattr(Training, "evaluate", lambda training: None)
    monkeypatch.setattr(Training, "save", lambda training: None)
    monkeypatch.setattr(ScalarCopies, "arrived", lambda copies: [])
    run = [*small_run, *extra.split(), "--max_steps", "6", "--gradient_accumulation_steps", "2"]

    code = main([*run, "--quant_interval", "1", "--quant_detail", "--profile_blocks"])

    stages = {message.text.split()[1] for message in recorder.events if hasattr(message, "text")}
    assert code == 0
    assert {"warmup", "partial_ternary", "full_ternary"} <= stages
    assert mode.operations > 10_000


def test_the_guard_notices_what_waits_also_in_a_backward():
    """Otherwise the test above would pass whatever the step does."""
    x = torch.ones(3, requires_grad=True)
    y = x.sum()
    x.register_hook(lambda grad: grad[grad > 0].sum())

    with NoWaiting():
        for waiting in (y.item, y.backward):
            with pytest.raises(AssertionError, match="waits for the device"):
                waiting()
