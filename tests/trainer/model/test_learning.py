"""A small problem that must improve, through all the stages."""

import torch

from trainer.model import BitNetQDyT, ModelConfig
from trainer.model.diagnostics.diagnostics import Diagnostics
from trainer.model.schedule import learning_rate

STEPS = 150


def make_copying_batch(generator: torch.Generator):
    """Two halves that are the same; what is masked in one is to be read in the other."""
    half = torch.randint(16, (16, 8), generator=generator)
    ids = torch.cat([half, half], dim=1)
    is_predicted = torch.zeros(16, 16, dtype=torch.bool)
    is_predicted[:, 2:6] = True
    labels = torch.where(is_predicted, ids, -100)
    return ids.masked_fill(is_predicted, 16), torch.ones_like(is_predicted), labels


def test_a_ternary_model_learns_a_batch_by_heart():
    """From above ln 16 = 2.77 to below half of it, with ternary weights at the end."""
    torch.manual_seed(0)
    config = ModelConfig.for_size(
        "tiny", 17, layers=2, d_model=64, heads=2, d_ffn=128, max_length=16
    )
    model = BitNetQDyT(config)
    batch = make_copying_batch(torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameter_groups(0.01), lr=3e-3, betas=(0.9, 0.98))
    losses = []

    for step in range(STEPS):
        state = model.apply_schedule(step, STEPS)
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * learning_rate(
                step,
                base=3e-3,
                warmup_steps=10,
                total_steps=STEPS,
                kind="cosine",
                factor=state.learning_rate_factor,
            )
        loss = model(*batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())

    first, last = losses[0].item(), torch.stack(losses[-10:]).mean().item()
    assert first > 2.5
    assert last < 1.4
    assert 0.1 < Diagnostics(model).collect()["quant/zero_ratio"].item() < 0.8
