"""Spans: one rule for short runs, continuous, and shown before the first step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.args import parse_args
from trainer.configure import build_model_config, build_plan
from trainer.errors import BadInput
from trainer.first_lines import describe_schedule
from trainer.model import ModelConfig
from trainer.model.config import MODEL_SIZES
from trainer.model.schedule import schedule_state
from trainer.model.spans import FULL_LENGTH_STEPS, SPANS, fit_spans, shorten


def plan_of(arguments: str, rows: int = 1000):
    return build_plan(parse_args(arguments.split(), environ={}), rows)


def test_base_on_a_small_corpus_ends_with_a_whole_schedule():
    """1,500 steps, as wikitext-2 for 10 epochs: alpha is at its own, nothing is dropped."""
    total = 1500
    config = fit_spans(ModelConfig.for_size("base", 100), total, chosen=())

    last = schedule_state(config, total - 1, total)

    assert (last.alpha_ramp, last.qdrop_probability, last.ternary_dropout) == (1.0, 0.0, 0.0)
    assert schedule_state(config, 160, total).ternary_dropout > 0


@pytest.mark.parametrize("size", MODEL_SIZES)
@pytest.mark.parametrize("total", [60_000, 72_000, 193_000])
def test_a_run_of_full_length_has_the_published_spans(size, total):
    """And the default warmup of the learning rate."""
    config = ModelConfig.for_size(size, 100)

    assert fit_spans(config, total, chosen=()) == config
    assert plan_of(f"--max_steps {total}").warmup_steps == 10_000


@given(st.integers(1, 2 * FULL_LENGTH_STEPS), st.sampled_from([2_000, 10_000, 50_000]))
@settings(deadline=None)
def test_a_step_more_makes_a_span_a_step_longer_at_most(total, span):
    """No length of a run at which the schedule jumps."""
    now, later = shorten(span, total), shorten(span, total + 1)

    assert 0 <= later - now <= 1
    assert now <= total


def test_the_warmup_does_not_jump_between_neighbouring_lengths():
    """From 19,999 to 20,000 steps it once went from 2,000 to 10,000."""
    shorter, longer = (plan_of(f"--max_steps {n}").warmup_steps for n in (19_999, 20_000))

    assert abs(longer - shorter) <= 1


def test_what_is_chosen_stays():
    """A span by --model_option, fractions of a size, and the user's own warmup."""
    config = ModelConfig.for_size("small", 100, qdrop_anneal_steps=77)
    tiny = ModelConfig.for_size("tiny", 100)

    fitted = fit_spans(config, 600, chosen=["qdrop_anneal_steps"])

    assert fitted.qdrop_anneal_steps == 77
    assert fitted.qdyt_warmup_steps == 20
    assert fit_spans(tiny, 600, chosen=()) == tiny
    assert plan_of("--max_steps 600 --warmup_steps 300").warmup_steps == 300


def test_a_run_that_goes_on_has_the_spans_of_its_checkpoint():
    """Also where the rule was another one when it began."""
    config = ModelConfig.for_size("base", 100)
    before = dict.fromkeys(SPANS, 11)

    fitted = fit_spans(config, 600, chosen=["qdyt_warmup_steps"], before=before)

    assert fitted.qdrop_anneal_steps == fitted.ternary_dropout_steps == 11
    assert fitted.qdyt_warmup_steps == config.qdyt_warmup_steps


def test_the_schedule_is_said_with_the_step_at_which_each_part_ends():
    """With the rule where it acted, and with what this run does not come to the end of."""
    plan = plan_of("--model_size base --max_steps 1500")
    config = fit_spans(ModelConfig.for_size("base", 100, qdrop_anneal_steps=9000), 1500,
                       chosen=["qdrop_anneal_steps"])  # fmt: skip

    schedule, unfinished, rule = describe_schedule(config, plan)

    for part in ("rises to step 250, cosine", "times 0.7 from step 450", "before step 150",
                 "ramp of alpha to step 125", "QDrop to step 9,000",
                 "ternary dropout to step 650"):  # fmt: skip
        assert part in schedule
    assert "Not over at this run's last step 1,500: QDrop" in unfinished
    assert "60,000 steps, in proportion to this run's 1,500" in rule


def test_a_float_model_has_no_stages_to_speak_of():
    """Nothing is ternary in it."""
    config = ModelConfig.for_size("tiny", 100).as_dense()

    [schedule, _] = describe_schedule(config, plan_of("--max_steps 300"))

    assert "ternary" not in schedule and "QDrop" not in schedule and "alpha" not in schedule


def test_no_text_is_no_plan():
    """A run of 0 steps would divide by them."""
    with pytest.raises(BadInput, match="no text to learn from"):
        plan_of("", rows=0)


def test_the_models_configuration_is_checked_before_its_spans_are_fitted():
    """A chosen span out of its range is named."""
    with pytest.raises(BadInput, match="qdrop_anneal_steps"):
        build_model_config(parse_args(["--model_option", "qdrop_anneal_steps=-1"], environ={}), 100)
