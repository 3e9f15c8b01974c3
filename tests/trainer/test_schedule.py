"""What the step number decides, at the edges of its spans."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.model import ModelConfig
from trainer.model.schedule import learning_rate, resolve_steps, schedule_state, teacher_weight

CONFIG = ModelConfig.for_size("small", 100, stage1=0.1, stage2=0.4, qdrop_anneal_steps=50)


def test_the_three_stages_begin_at_their_fractions_of_all_steps():
    """Each stage's first step is its fraction of the training, to the step."""
    stages = [schedule_state(CONFIG, step, 100).stage for step in (0, 9, 10, 39, 40, 99, 100, 500)]

    assert stages == ["warmup"] * 2 + ["partial_ternary"] * 2 + ["full_ternary"] * 4


def test_only_full_ternary_lowers_the_learning_rate():
    """The factor is 0.7 in the last stage and 1 before it."""
    factors = [schedule_state(CONFIG, step, 100).learning_rate_factor for step in (0, 10, 40)]

    assert factors == [1.0, 1.0, 0.7]


def test_qdrop_falls_linearly_from_its_start_to_exactly_zero():
    """Half of the way down at half of the span, and 0 from its end on."""
    found = [schedule_state(CONFIG, step, 100).qdrop_probability for step in (0, 25, 50, 99)]

    assert found == pytest.approx([0.1, 0.05, 0.0, 0.0])
    assert found[2] == 0.0


def test_alpha_rises_from_its_initial_value_to_the_learned_one():
    """The ramp multiplies the learned alpha, which starts at alpha_target."""
    config = ModelConfig.for_size("small", 100, qdyt_warmup_steps=20)

    ramps = [schedule_state(config, step, 100).alpha_ramp for step in (0, 10, 20, 80)]

    assert ramps == pytest.approx([0.1, 0.55, 1.0, 1.0])


def test_dither_acts_in_the_warmup_stage_only():
    """Dither belongs to the int8 weights of the first stage."""
    assert [schedule_state(CONFIG, step, 100).dither for step in (0, 9, 10, 40)] == [
        True, True, False, False,
    ]  # fmt: skip


def test_ternary_dropout_starts_with_the_first_ternary_weight():
    """Its span is not used up while there are only int8 weights."""
    config = ModelConfig.for_size("small", 100, ternary_dropout=0.1, ternary_dropout_steps=5)

    found = [schedule_state(config, step, 100).ternary_dropout for step in (0, 9, 10, 14, 15)]

    assert found == [0.0, 0.0, 0.1, 0.1, 0.0]


def test_spans_of_zero_steps_are_over_before_the_first_step():
    """A span of 0 turns its feature off, rather than dividing by 0."""
    config = ModelConfig.for_size(
        "small", 100, qdrop_anneal_steps=0, qdyt_warmup_steps=0, ternary_dropout_steps=0
    )

    state = schedule_state(config, 10, 100)

    assert (state.qdrop_probability, state.alpha_ramp, state.ternary_dropout) == (0.0, 1.0, 0.0)


def test_a_float_span_is_a_fraction_and_an_int_span_is_steps():
    """The tiny size gives its spans as fractions of a training of unknown length."""
    assert (resolve_steps(0.3, 1000), resolve_steps(30, 1000)) == (300, 30)


@pytest.mark.parametrize(("step", "total"), [(-1, 10), (0, 0)])
def test_a_step_outside_of_any_training_is_refused(step, total):
    """Negative steps and trainings of no steps are mistakes of the caller."""
    with pytest.raises(ValueError, match="outside of any training"):
        schedule_state(CONFIG, step, total)


@settings(deadline=None)
@given(total=st.integers(1, 5000), data=st.data())
def test_every_state_of_every_training_is_within_its_bounds(total, data):
    """Probabilities and ramps stay in their ranges, and stages only move forward."""
    order = ["warmup", "partial_ternary", "full_ternary"]
    step = data.draw(st.integers(0, total + 10))

    now, later = (schedule_state(CONFIG, s, total) for s in (step, step + 1))

    assert 0.0 <= later.qdrop_probability <= now.qdrop_probability <= 0.1
    assert 0.1 <= now.alpha_ramp <= later.alpha_ramp <= 1.0
    assert order.index(now.stage) <= order.index(later.stage)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_the_rate_rises_to_base_and_falls_to_zero(kind):
    """It is above 0 at the first step, base after the warmup and 0 at the horizon."""
    rates = [
        learning_rate(step, base=2.0, warmup_steps=10, total_steps=110, kind=kind, factor=1.0)
        for step in range(112)
    ]

    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(1.0)
    assert rates[110] == rates[111] == pytest.approx(0.0, abs=1e-12)


def test_the_cosine_is_a_cosine_and_the_factor_multiplies_it():
    """A quarter of the way down, by the formula."""
    rate = learning_rate(25, base=1.0, warmup_steps=0, total_steps=100, kind="cosine", factor=0.7)

    assert rate == pytest.approx(0.7 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_a_warmup_longer_than_the_training_only_rises():
    """Nothing breaks; the caller who wants the peak shortens the warmup."""
    rates = [
        learning_rate(step, base=1.0, warmup_steps=100, total_steps=10, kind="linear", factor=1.0)
        for step in range(10)
    ]

    assert rates == pytest.approx([0.01 * (step + 1) for step in range(10)])


def test_an_unknown_scheduler_is_named_in_the_error():
    """The message has the word that was given."""
    with pytest.raises(ValueError, match="'step' is not one of"):
        learning_rate(0, base=1.0, warmup_steps=0, total_steps=1, kind="step", factor=1.0)


def test_a_teachers_weight_rises_as_a_cosine_from_zero_to_its_final_value():
    """0 at first, half at half, all at the last step and after it."""
    weights = [teacher_weight(step, 101) for step in (0, 25, 50, 100, 200)]

    quarter = 0.25 * (1 - math.cos(math.pi / 4))
    assert weights == pytest.approx([0.0, quarter, 0.25, 0.5, 0.5])
