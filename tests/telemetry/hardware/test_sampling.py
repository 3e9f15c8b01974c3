"""Sampling: on time, one event a tick, whatever a probe does."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.events import MessageLogged, MetricsLogged
from telemetry.hardware.sampling import (
    EXIT_PROBE_HANGS,
    EXIT_STOPPED,
    Sampler,
    next_tick,
    tick_ns,
)
from tests.fakes import ManualClock

START_S = 1000.0


class Probe:
    """Says what time it is, after taking as long as it is told to."""

    name = "probe"

    def __init__(self, clock, cost_s=0.0, failing=()):
        self.clock = clock
        self.cost_s = cost_s
        self.failing = failing
        self.read_at_s = []

    def read(self):
        self.read_at_s.append(round(self.clock.mono / 1e9 - START_S, 6))
        self.clock.advance(self.cost_s)
        if len(self.read_at_s) - 1 in self.failing:
            raise RuntimeError("sensor fell off")
        return {"probe/reads": len(self.read_at_s)}


class Waiter:
    """Waits on the manual clock, a few times, then says stop."""

    def __init__(self, clock, times):
        self.clock = clock
        self.left = times

    def __call__(self, seconds):
        assert seconds > 0
        self.clock.advance(seconds)
        self.left -= 1
        return self.left < 0


@pytest.fixture
def clock():
    return ManualClock(mono_ns=round(START_S * 1e9))


def samples(events):
    return [event for event in events if isinstance(event, MetricsLogged)]


def messages(events):
    return [event.text for event in events if isinstance(event, MessageLogged)]


def test_samples_are_due_at_whole_periods_from_the_start_however_long_each_takes(clock):
    """What a sample costs is not added to the period."""
    probe = Probe(clock, cost_s=0.3)

    Sampler("node1", [probe], lambda event: None, clock).run(1.0, Waiter(clock, 4))

    assert probe.read_at_s == [0, 1, 2, 3, 4]


def test_a_late_sample_skips_the_ticks_it_missed_and_never_bursts(clock):
    """They are counted, and the next sample is on the grid again."""
    events = []
    probe = Probe(clock, cost_s=2.5)

    Sampler("node1", [probe], events.append, clock).run(1.0, Waiter(clock, 2))

    assert probe.read_at_s == [0, 3, 6]
    skipped = [sample.values["sampler/skipped_ticks_total"] for sample in samples(events)]
    assert skipped == [0, 2, 4]


@given(
    hz=st.floats(0.05, 20),
    tick=st.integers(0, 10**7),
    start_ns=st.integers(0, 2**60),
    late_ns=st.integers(0, 10**12),
)
def test_the_next_tick_is_the_first_that_is_still_to_come(hz, tick, start_ns, late_ns):
    """At any rate and after any delay: in the future, and not further than one period."""
    now_ns = tick_ns(tick, start_ns, hz) + late_ns

    following = next_tick(tick, start_ns, now_ns, hz)

    assert following > tick
    assert tick_ns(following, start_ns, hz) > now_ns
    assert following == tick + 1 or tick_ns(following - 1, start_ns, hz) <= now_ns


def test_each_sample_is_one_event_of_kind_hardware_without_a_step(clock):
    """All probes together, since they describe one moment."""
    events = []

    Sampler("node1", [Probe(clock)], events.append, clock).run(2.0, Waiter(clock, 2))

    assert [(s.kind, s.step, s.values["probe/reads"]) for s in samples(events)] == [
        ("hardware", None, 1),
        ("hardware", None, 2),
        ("hardware", None, 3),
    ]


def test_the_first_event_says_what_is_monitored(clock):
    """GPUs are counted by what they answer."""

    class TwoGpus:
        name = "nvml"

        def read(self):
            return {"gpu/0/uuid": "GPU-a", "gpu/1/uuid": "GPU-b", "gpu/1/power_watts": 9.0}

    events = []

    Sampler("node1", [TwoGpus()], events.append, clock).run(1.0, Waiter(clock, 0))

    assert isinstance(events[0], MessageLogged)
    assert events[0].level == "info"
    assert events[0].text.startswith("sampler started: host node1, ")
    assert events[0].text.endswith(" CPUs, 2 GPUs")
    assert len(samples(events)) == 1


def test_gpus_that_have_not_answered_yet_are_not_counted_as_none(clock):
    """Zero would be a claim."""
    events = []
    sampler = Sampler("node1", [], events.append, clock, outstanding_s=lambda: 5.0)

    sampler.run(1.0, Waiter(clock, 0))

    assert messages(events)[0].endswith("GPUs not known yet")


def test_a_probe_that_raises_is_reported_once_and_tried_again(clock, caplog):
    """Its values are left out, the others stay, and its recovery is told too."""
    events = []
    bad, good = Probe(clock, failing={1, 2}), Probe(clock)
    bad.name = "bad"
    good.read = lambda: {"good": 1}
    with caplog.at_level(logging.INFO):
        code = Sampler("node1", [bad, good], events.append, clock).run(1.0, Waiter(clock, 4))

    found = [sample.values for sample in samples(events)]
    assert code == EXIT_STOPPED
    assert ["probe/reads" in values for values in found] == [True, False, False, True, True]
    assert all(values["good"] == 1 for values in found)
    assert messages(events)[1:] == [
        "node1: probe bad fails: RuntimeError('sensor fell off'); its values are left out",
        "node1: probe bad works again",
    ]
    assert caplog.text.count("Traceback") == 1


def test_a_probe_that_hangs_too_long_ends_the_process_to_be_started_again(clock):
    """Until then samples go on without it."""
    events = []
    sampler = Sampler(
        "node1",
        [],
        events.append,
        clock,
        outstanding_s=lambda: clock.mono / 1e9 - START_S,
    )

    code = sampler.run(1.0, Waiter(clock, 100), hang_restart_s=5.0)

    assert code == EXIT_PROBE_HANGS
    assert len(samples(events)) == 7
    assert isinstance(events[-1], MessageLogged)
    assert events[-1].level == "error"
