"""A probe that hangs costs its own values, and nobody's time."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from telemetry.hardware.guarded import GuardedProbe

PATIENCE_S = 10.0


class StallingProbe:
    """Answers with a count, unless told to hang; then when it is released."""

    name = "stalling"

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.answered = threading.Event()
        self.reads = 0

    def read(self):
        self.free.wait()
        self.reads += 1
        self.answered.set()
        return {"reads": self.reads}


@pytest.fixture
def probe():
    stalling = StallingProbe()
    yield stalling
    stalling.free.set()


def test_a_probe_that_answers_is_read_as_if_it_were_not_guarded(probe, clock):
    """One question, one answer."""
    with closing(GuardedProbe(probe, clock, PATIENCE_S, PATIENCE_S)) as guarded:
        assert [guarded.read()["reads"], guarded.read()["reads"]] == [1, 2]
        assert guarded.outstanding_s() == 0.0
        assert guarded.name == "stalling"


def test_a_probe_that_hangs_has_no_values_and_is_not_asked_again(probe, clock):
    """Only the first reading waits; how long it has been silent is known."""
    probe.free.clear()
    with closing(GuardedProbe(probe, clock, PATIENCE_S, first_timeout_s=0.01)) as guarded:
        assert guarded.read() == {}
        clock.advance(7)
        assert [guarded.read() for _ in range(1000)] == [{}] * 1000
        assert guarded.outstanding_s() == 7.0


def test_each_reading_is_timed_apart_from_the_values(clock):
    """A metric of the tool's own: what the probe itself took, on its own thread."""

    class SlowProbe:
        name = "cpu frequency"

        def read(self):
            clock.advance(0.25)
            return {}

    with closing(GuardedProbe(SlowProbe(), clock, PATIENCE_S, PATIENCE_S)) as guarded:
        assert guarded.read() == {"sampler/probe/cpu_frequency_seconds": 0.25}


def test_a_thread_that_waits_for_a_lock_can_still_be_ended(probe, clock):
    """Only a call that the kernel holds survives a kill."""
    probe.free.clear()
    with closing(GuardedProbe(probe, clock, PATIENCE_S, first_timeout_s=0.01)) as guarded:
        guarded.read()
        assert not guarded.is_uninterruptible()


def test_a_late_answer_comes_with_the_next_reading(probe, clock):
    """A slow driver gives fewer readings, not none."""
    probe.free.clear()
    with closing(GuardedProbe(probe, clock, PATIENCE_S, first_timeout_s=0.01)) as guarded:
        guarded.read()
        probe.free.set()
        late = _first_values(guarded)

        assert late["reads"] == 1
        assert guarded.read()["reads"] == 2
        assert guarded.outstanding_s() == 0.0


def test_what_the_probe_raises_is_raised_here(clock):
    """So that it is handled where all probes' failures are."""

    class BrokenProbe:
        name = "broken"

        def read(self):
            raise OSError("no such thing")

    with closing(GuardedProbe(BrokenProbe(), clock, PATIENCE_S, PATIENCE_S)) as guarded:
        for _ in range(2):
            with pytest.raises(OSError, match="no such thing"):
                guarded.read()


def test_the_thread_ends_with_the_guard(probe, clock):
    """Nothing is left behind, and closing twice does no harm."""
    guarded = GuardedProbe(probe, clock, PATIENCE_S, PATIENCE_S)
    guarded.read()

    guarded.close()
    guarded.close()

    assert not any(thread.name == "probe stalling" for thread in threading.enumerate())


def _first_values(guarded):
    for _ in range(1_000_000):
        if values := guarded.read():
            return values
    raise AssertionError("the late answer never came")
