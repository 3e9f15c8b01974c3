"""Alarms: what is out of range is said, what is in range is not."""

import pytest

from trainer.model.diagnostics.alarms import find_alarms

FINE = {
    "quant/zero_ratio": 0.45,
    "quant/plus_ratio": 0.28,
    "quant/minus_ratio": 0.27,
    "quant/weight_sqnr_db": 7.2,
    "quant/bypassed_ratio": 0.0,
    "quant/flip_rate_per_step": 0.001,
    "quant/activation_overload_rate": 0.004,
    "quant/gradient_missing_ratio": 0.0,
}


def test_a_healthy_model_raises_no_alarm():
    """Nor do metrics without a range."""
    assert find_alarms(FINE) == {}


@pytest.mark.parametrize(
    ("spoiled", "sentence"),
    [
        ({"quant/zero_ratio": 0.03}, "quant/zero_ratio is 0.03, outside of 0.10 to 0.80"),
        ({"quant/zero_ratio": 0.9}, "quant/zero_ratio is 0.90"),
        ({"quant/minus_ratio": 0.6}, "quant: the shares of +1 and -1 differ by 0.32"),
        (
            {"quant/layers.1.ffn.up/weight_sqnr_db": 3.6},
            "ffn.up/weight_sqnr_db is 3.6 dB, below 5.0",
        ),
        ({"quant/flip_rate_per_step": 0.2}, "flip_rate_per_step is 0.200, above 0.050"),
        ({"quant/flip_rate_per_step": 0.0}, "no code has changed"),
        ({"quant/oscillating_ratio": 0.06}, "oscillating_ratio is 0.060, above 0.050"),
        ({"quant/activation_overload_rate": 0.1}, "overload_rate is 0.100, above 0.050"),
        ({"quant/layers.0.ffn.up_input/overload_ratio": 0.1}, "up_input/overload_ratio is 0.100"),
        (
            {"quant/gradient_missing_ratio": 0.2},
            "0.200: this share of the parameters has no gradient",
        ),
    ],
)
def test_what_is_out_of_range_is_said_with_its_value(spoiled, sentence):
    """Aggregates and single layers alike, one sentence each."""
    found = find_alarms({**FINE, **spoiled})

    [(name, said)] = found.items()
    assert sentence in said
    assert name in {*FINE, *spoiled}


def test_a_bypassed_quantizer_may_leave_its_columns_without_gradient():
    """QDrop is meant to do that."""
    bypassed = {"quant/bypassed_ratio": 0.1, "quant/gradient_missing_ratio": 0.2}

    assert find_alarms({**FINE, **bypassed}) == {}
