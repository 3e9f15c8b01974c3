"""What is shown on a terminal and in a log file."""

from __future__ import annotations

import io

from trainer.reporting.progress import Progress

TRAIN = {
    "train/loss": 2.5,
    "train/training_stage": "warmup",
    "train/tokens_per_second": 12345.6,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class ManualClock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_log_file_gets_one_plain_line_a_logged_step():
    """With loss, stage, speed and the time that is left at this pace."""
    stream, clock = io.StringIO(), ManualClock()

    with Progress(stream, clock) as progress:
        progress.begin(100, 300)
        clock.now_s = 60.0
        progress.advance()
        progress.show("train", 110, TRAIN)

    assert stream.getvalue() == (
        "step 110/300: loss 2.5000, perplexity 12.2, warmup, 12,346 tokens/s, 19:00 left\n"
    )


def test_a_loss_that_is_no_number_is_shown_as_such():
    """Infinity has a perplexity too, and neither raises."""
    stream = io.StringIO()

    with Progress(stream, ManualClock()) as progress:
        progress.begin(0, 10)
        for loss in (float("nan"), float("inf")):
            progress.show("train", 1, TRAIN | {"train/loss": loss})

    assert "loss nan, perplexity nan" in stream.getvalue()
    assert "loss inf" in stream.getvalue()


def test_a_silent_one_shows_nothing():
    """All but the first of several processes."""
    stream = io.StringIO()

    with Progress(stream, is_silent=True) as progress:
        progress.begin(0, 10)
        progress.say("A sentence.")
        progress.show("train", 1, TRAIN)
        progress.advance()

    assert stream.getvalue() == ""


def test_the_bar_of_a_long_run_fits_into_80_columns():
    """With all of its numbers; it was their end that a narrow terminal cut."""
    stream = Terminal()
    slow = {"train/loss": 6.7398, "train/training_stage": "partial_ternary"}

    with Progress(stream) as progress:
        progress.begin(12_344, 99_999)
        progress.advance()
        progress.show("train", 12_345, TRAIN | slow | {"train/tokens_per_second": 1283.0})
        bar = str(progress._bar)

    assert bar.endswith("loss 6.7398, ppl 845.4, partial_ternary, 1,283 tok/s")
    # Where no terminal says how wide it is, as here, ten columns of it are the bar.
    assert len(bar) - 10 < 80


def test_a_terminal_gets_a_bar_and_sentences_above_it():
    """The bar goes away at the end; what was said stays."""
    stream = Terminal()

    with Progress(stream) as progress:
        progress.begin(0, 10)
        progress.advance()
        progress.show("train", 1, TRAIN)
        progress.say("A sentence.")
        progress.show("val", 1, {"val/loss": 2.0, "val/perplexity": 7.389, "val/accuracy": 0.25})

    shown = stream.getvalue()
    assert "1/10" in shown
    assert "left, loss 2.5000, ppl 12.2, warmup, 12,346 tok/s" in shown
    assert "A sentence.\n" in shown
    assert "step 1: validation loss 2.0000, perplexity 7.4, accuracy 25.0 %\n" in shown
