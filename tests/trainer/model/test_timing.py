"""The block timer, with a clock that says what each forward took."""

import itertools

from tests.trainer.model.test_encoder import make_batch, make_model
from trainer.model.timing import BlockTimer


def test_each_block_has_the_time_between_its_start_and_its_end():
    """The clock goes on by one second a reading, so every forward takes one."""
    model = make_model()
    clock = itertools.count()
    timer = BlockTimer(model, clock=lambda: float(next(clock)))

    with timer:
        model(*make_batch())
        model(*make_batch())

    assert timer.read() == {f"quant/layers.{n}/forward_seconds": 2.0 for n in range(4)}


def test_after_it_is_left_nothing_is_timed_any_more():
    """The hooks are gone from the model."""
    model = make_model()
    with BlockTimer(model) as timer:
        pass

    model(*make_batch())

    assert timer.read() == {}
