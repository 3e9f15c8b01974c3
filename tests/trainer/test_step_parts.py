"""Block times, rank times, numbers with a shape, and what is said when memory ends."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from shared.events import HistogramLogged, MessageLogged, MetricsLogged
from tests.trainer.conftest import RecordingEmitter
from trainer.args import parse_args
from trainer.reporting.observer import VALUES_A_EVENT, Observer
from trainer.reporting.progress import Progress
from trainer.reporting.reports import Reading, Reporter
from trainer.training.block_profile import BlockProfile
from trainer.training.failures import explain_out_of_memory
from trainer.training.phases import (
    BACKWARD,
    EVALUATION,
    FORWARD,
    INPUT,
    OPTIMIZER,
    Spans,
    StepParts,
)
from trainer.training.scalar_copies import ScalarCopies
from trainer.training.work_clock import WorkClock

CPU = torch.device("cpu")


class Blocks(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x.sum()


def reporter_of(rank: int) -> tuple[Reporter, RecordingEmitter, io.StringIO]:
    emitter, stream = RecordingEmitter(), io.StringIO()
    return Reporter(Observer(emitter), Progress(stream), rank), emitter, stream


def test_each_block_is_timed_forward_and_backward_in_the_measured_step_only():
    """Two micro batches add up; hooks are gone afterwards."""
    model = Blocks(3)
    profile = BlockProfile(model.blocks, CPU)
    x = torch.ones(2, 4, requires_grad=True)

    with profile.step(7):
        for _ in range(2):
            model(x).backward()
    model(x).backward()

    [(step, seconds)] = profile.arrived()
    assert step == 7
    assert seconds.keys() == {
        f"time/layers.{layer}/{way}_seconds"
        for layer in range(3)
        for way in ("forward", "backward")
    }
    assert all(value > 0 for value in seconds.values())
    assert profile.arrived() == []
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.blocks)


def test_a_profile_waits_for_nothing_and_comes_when_its_last_moment_is_past():
    """On a GPU the moments are events; until they are past, later steps queue up behind."""
    profile = BlockProfile([], CPU)

    class Pending:
        is_past = False

        def query(self):
            return self.is_past

        def elapsed_time(self, other):
            return 5.0

    pending = Pending()
    profile._measured.append((1, {"time/layers.0/forward_seconds": [[pending, pending]]}))

    early = profile.arrived()
    pending.is_past = True

    assert early == []
    assert profile.arrived() == [(1, {"time/layers.0/forward_seconds": 0.005})]


def test_the_work_clock_gives_the_newest_step_that_is_known():
    """Nothing before the first, and the last one again where none is new."""
    clock = WorkClock(CPU)
    before = clock.seconds()

    clock.begin()
    clock.end()

    assert before == 0.0
    assert clock.seconds() == clock.seconds() > 0.0


def test_the_slowest_rank_shows_in_the_first_ones_metrics():
    """max / median of the time before ranks wait for each other; others tell their own."""
    first, first_told, _ = reporter_of(0)
    second, second_told, _ = reporter_of(1)
    work = [0.1, 0.4, 0.1]
    values = {"train/step_seconds": 0.5}

    first.work(10, values, work)
    second.work(10, {"train/step_seconds": 0.6}, work)

    assert values["train/straggler_ratio"] == pytest.approx(4.0)
    assert values["rank/0/work_seconds"] == 0.1
    assert first_told.events == []
    [event] = second_told.events
    assert event.values == {"rank/1/step_seconds": 0.6, "rank/1/work_seconds": 0.4}


def test_a_process_alone_has_no_ranks_to_tell_of():
    """Its metrics are as they were."""
    reporter, told, _ = reporter_of(0)
    values = {"train/step_seconds": 0.5}

    reporter.work(1, values, [])

    assert values == {"train/step_seconds": 0.5}
    assert told.events == []


def test_only_the_first_rank_reports_what_all_have_in_common():
    """A second one would double every point."""
    reporter, told, stream = reporter_of(1)

    reporter.report(Reading("val", 1), {"val/loss": 1.0, "val/perplexity": 2.7})
    reporter.tell("Stage x")

    assert told.events == []
    assert stream.getvalue() == ""


def test_histograms_come_with_the_scalars_of_one_copy():
    """One vector leaves the device; edges and counts become one event a histogram."""
    copies: ScalarCopies[Reading] = ScalarCopies(CPU)
    reporter, told, _ = reporter_of(0)

    copies.send(
        Reading("quant", 3),
        {
            "quant/zero_ratio": torch.tensor(0.5),
            "quant/scales/edges": torch.tensor([0.0, 1.0, 2.0]),
            "quant/scales/counts": torch.tensor([3.0, 4.0]),
        },
    )
    for reading, numbers in copies.arrived():
        reporter.report(reading, numbers)

    [metrics] = told.of(MetricsLogged)
    [histogram] = told.of(HistogramLogged)
    assert metrics.values == {"quant/zero_ratio": 0.5}
    assert (histogram.name, histogram.step) == ("quant/scales", 3)
    assert (histogram.edges, histogram.counts) == ([0.0, 1.0, 2.0], [3.0, 4.0])


def test_more_values_than_an_event_takes_are_several_events():
    """Diagnostics by layer of a large model would otherwise be refused."""
    told = RecordingEmitter()
    values = {f"quant/{number}": float(number) for number in range(2 * VALUES_A_EVENT + 1)}

    Observer(told).metrics("quant", 5, values)

    assert [len(event.values) for event in told.events] == [VALUES_A_EVENT, VALUES_A_EVENT, 1]
    assert {k: v for event in told.events for k, v in event.values.items()} == values


@pytest.mark.parametrize(
    ("error", "arguments", "named"),
    [
        (torch.OutOfMemoryError("CUDA"), "--batch_size 32", "--batch_size 16 --gradient_acc"),
        (MemoryError(), "--batch_size 3", "--batch_size 1 --gradient_accumulation_steps 3"),
        (MemoryError(), "--batch_size 9", "--batch_size 3 --gradient_accumulation_steps 3"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "--batch_size 1",
            "--max_length from 512",
        ),
        (RuntimeError("shapes differ"), "", None),
    ],
    ids=["gpu", "host", "odd", "cpu", "other"],
)
def test_without_memory_the_sentence_says_what_to_lower(error, arguments, named):
    """The batch for the same step by accumulation, or the rows; other errors are not touched."""
    found = explain_out_of_memory(error, parse_args(arguments.split(), environ={}), 512)

    if named is None:
        assert found is None
    else:
        assert named in str(found)
        assert "\n" not in str(found)


def test_messages_of_the_first_rank_reach_the_record_and_the_terminal():
    """Both have the same words."""
    reporter, told, stream = reporter_of(0)

    reporter.stage(10, "warmup", "full_ternary")

    [message] = told.of(MessageLogged)
    assert message.text == "Stage full_ternary from step 10 on, after warmup."
    assert message.text in stream.getvalue()


def test_an_alarm_is_told_once_when_it_begins_and_once_when_it_is_over():
    """Not at every reading in between, and not each of hundreds of layers."""
    reporter, told, stream = reporter_of(0)
    wrong = {"quant/zero_ratio": 0.95}
    many = {f"quant/layers.{layer}.ffn.up/zero_ratio": 0.95 for layer in range(9)}

    for step, values in enumerate((wrong, wrong, {"quant/zero_ratio": 0.4}, many)):
        reporter.report(Reading("quant", step), values)

    first, over, *layers = told.of(MessageLogged)
    assert first.text == "Step 0: quant/zero_ratio is 0.95, outside of 0.10 to 0.80."
    assert first.level == "warning"
    assert over.text == "Step 2: quant/zero_ratio is in range again."
    assert len(layers) == 6
    assert layers[-1].text == "Step 3: and 4 more like this."
    assert first.text in stream.getvalue()


def test_the_parts_of_a_step_are_means_of_the_steps_that_are_known():
    """Micro batches add up; a step whose end the device has not passed waits for its turn."""
    parts = StepParts(CPU)
    none = parts.take()

    class At:
        is_past = True

        def __init__(self, ms):
            self.ms = ms

        def query(self):
            return self.is_past

        def elapsed_time(self, other):
            return other.ms - self.ms

    def step(*ended):
        names = ("", INPUT, FORWARD, BACKWARD, FORWARD, BACKWARD, OPTIMIZER)
        return list(zip(names, map(At, ended), strict=True))

    late = step(0, 9, 9, 9, 9, 9, 9)
    parts._steps.extend([step(0, 1, 3, 6, 8, 11, 12), step(0, 3, 5, 8, 10, 13, 16), late])
    late[-1][1].is_past = False

    assert none == {}
    assert parts.take() == {
        INPUT: pytest.approx(0.002),
        FORWARD: pytest.approx(0.004),
        BACKWARD: pytest.approx(0.006),
        OPTIMIZER: pytest.approx(0.002),
    }
    assert parts.take() == {}


def test_spans_are_told_when_they_are_past_and_not_where_they_fail():
    """By the first process alone."""
    spans = Spans(CPU)
    with spans.of(EVALUATION, 3):
        pass
    with pytest.raises(OSError), spans.of(EVALUATION, 4):
        raise OSError

    [span] = spans.arrived()
    for rank in (0, 1):
        reporter, told, _ = reporter_of(rank)
        reporter.spans([span])
        assert [(e.kind, e.step, list(e.values)) for e in told.events] == (
            [("custom", 3, [EVALUATION])] if rank == 0 else []
        )
    assert spans.arrived(wait=True) == []
