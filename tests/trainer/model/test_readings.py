"""Readings against plain loops: codebooks, heads, histograms."""

import math

import pytest
import torch

from tests.trainer.model.test_encoder import HostReads, make_batch, make_model
from trainer.model.diagnostics.diagnostics import Diagnostics
from trainer.model.diagnostics.histograms import histogram
from trainer.model.readings import attention_readings, metric_path, quantizer_readings


def test_a_sites_readings_are_those_of_its_codes():
    """Overload, noise, entropy and use of levels, one value at a time."""
    torch.manual_seed(0)
    x = torch.randn(40, 6, dtype=torch.float64) * torch.linspace(0.2, 2.0, 6)
    rho = torch.tensor([0.5, 0.5, 1.0, 1.5, 1.5, 2.0], dtype=torch.float64)
    steps = rho / 3

    found = quantizer_readings(x, steps, 3, rho, rho / torch.tensor([1, 1, 2, 1, 1, 1.0]))

    counts, signal, noise, over = dict.fromkeys(range(-3, 4), 0), 0.0, 0.0, 0
    for row in x.tolist():
        for value, step in zip(row, steps.tolist(), strict=True):
            code = max(-3, min(3, round(value / step)))
            counts[code] += 1
            signal += value**2
            noise += (value - code * step) ** 2
            over += abs(value / step) > 3
    shares = [count / 240 for count in counts.values() if count]
    entropy = -sum(p * math.log2(p) for p in shares)
    assert found["overload_ratio"].item() == pytest.approx(over / 240)
    assert found["sqnr_db"].item() == pytest.approx(10 * math.log10(signal / noise))
    assert found["codebook_utilization_ratio"].item() == pytest.approx(entropy / math.log2(7))
    assert found["levels_used_ratio"].item() == pytest.approx(len(shares) / 7)
    assert found["range_drift"].item() == pytest.approx(math.log(2))


def test_a_channel_without_range_is_dead():
    """One of four, against the mean of the others."""
    rho = torch.tensor([1.0, 1e-6, 2.0, 1.0])

    found = quantizer_readings(torch.ones(3, 4), rho.clamp(min=1e-3) / 7, 7, rho, rho)

    assert found["dead_channels_ratio"] == 0.25


def test_a_heads_readings_are_those_of_its_softmax():
    """Root mean squares, the largest logit and the mean entropy over the visible keys."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, 5, 4)
    mask = torch.tensor([True, True, True, True, False]).expand(2, 1, 1, 5)

    found = attention_readings(q, k, mask)

    for head in range(3):
        entropies, largest = [], -math.inf
        for query in q[0, head].tolist():
            logits = [
                sum(a * b for a, b in zip(query, key, strict=True)) / 2
                for key in k[0, head, :4].tolist()
            ]
            largest = max(largest, *logits)
            total = sum(math.exp(logit) for logit in logits)
            shares = [math.exp(logit) / total for logit in logits]
            entropies.append(-sum(p * math.log(p) for p in shares))
        squares = [value**2 for query in q[0, head].tolist() for value in query]
        assert found["logit_max"][head].item() == pytest.approx(largest, rel=1e-5)
        assert found["entropy_nats"][head].item() == pytest.approx(sum(entropies) / 5, rel=1e-5)
        assert found["q_scale"][head].item() == pytest.approx(
            math.sqrt(sum(squares) / len(squares)), rel=1e-5
        )


def test_a_histogram_counts_all_parts_between_their_extremes():
    """Equal widths, and nothing is lost at the edges."""
    parts = [torch.linspace(-1.0, 1.0, 101), torch.tensor([[3.0], [3.0]])]

    edges, counts = histogram(parts, bins=8)

    torch.testing.assert_close(edges, torch.linspace(-1.0, 3.0, 9))
    expected = torch.histc(torch.cat([part.flatten() for part in parts]), 8, -1.0, 3.0)
    assert torch.equal(counts, expected)


def test_values_that_are_all_equal_fall_into_one_bin():
    """A width of 0 would divide by it."""
    edges, counts = histogram([torch.full((7,), 2.0)], bins=4)

    assert counts.tolist() == [7, 0, 0, 0]
    assert (edges[1:] > edges[:-1]).all()


def test_a_model_has_histograms_of_its_weights_and_of_scales_once_they_act():
    """All layers as one, or each by name; they fit into one vector."""
    model = make_model()
    model.apply_schedule(0, 100)
    assert set(Diagnostics(model).histograms()) == {"quant/latent_weights"}
    model.apply_schedule(60, 100)

    found = Diagnostics(model).histograms(detail=True)

    assert {"quant/scales", "quant/layers.1.ffn.up/scales"} <= set(found)
    rows = sum(m.codes()[0].shape[0] for m in model.modules() if getattr(m, "is_ternary", False))
    assert found["quant/scales"].counts.sum() == rows
    vector = torch.cat([part for one in found.values() for part in one])
    assert vector.shape == (len(found) * (65 + 64),)


def test_readings_and_histograms_never_wait_for_the_device():
    """Observed forward, detail, flips and histograms, without one value read by the host."""
    model = make_model()
    ids, mask, labels = make_batch()
    predicted = (labels.flatten() != -100).nonzero().squeeze(1)
    diagnostics = Diagnostics(model)
    diagnostics.observe(True)

    with HostReads() as reads:
        for step in (20, 60, 61):
            model.apply_schedule(step, 100)
            diagnostics.watch_codes(step)
            model(ids, mask, labels, predicted).loss.backward()
            diagnostics.collect(detail=True)
            diagnostics.histograms(detail=True)

    assert reads.seen == []


@pytest.mark.parametrize(
    ("module", "path"),
    [("blocks.3.ffn.up", "layers.3.ffn.up"), ("head.input", "head.input"), ("blocks", "layers")],
)
def test_a_block_is_called_a_layer_in_metrics(module, path):
    """As users of the charts know it."""
    assert metric_path(module) == path
