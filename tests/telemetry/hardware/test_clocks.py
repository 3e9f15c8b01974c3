"""Steps of the wall clock and suspensions are marked, and told apart."""

from __future__ import annotations

import pytest

from telemetry.hardware.clocks import ClockProbe


class Clocks:
    """The three clocks of a machine, each moved as it would move by itself."""

    def __init__(self):
        self.mono = self.boot = 10**12
        self.wall = 17 * 10**17

    def monotonic_ns(self):
        return self.mono

    def wall_ns(self):
        return self.wall

    def run(self, seconds):
        self.mono += round(seconds * 1e9)
        self.suspend(seconds)

    def suspend(self, seconds):
        self.boot += round(seconds * 1e9)
        self.wall += round(seconds * 1e9)


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def probe(clocks, reports):
    made = ClockProbe(clocks, lambda level, text: reports.append(text), lambda: clocks.boot)
    made.read()
    return made


def counts(suspended_s, steps):
    return {"clock/suspended_seconds_total": suspended_s, "clock/wall_steps_total": steps}


def test_time_that_passes_is_nothing_to_say(probe, clocks, reports):
    """Nor is a correction of NTP."""
    clocks.run(5)
    clocks.wall += 100_000_000

    assert probe.read() == counts(0.0, 0)
    assert reports == []


@pytest.mark.parametrize(("step_s", "shown"), [(-3599, "-3599.0 s"), (1_800_000_000, "+18")])
def test_a_step_of_the_wall_clock_is_marked_once(probe, clocks, reports, step_s, shown):
    """Back and forth; it is no suspension."""
    clocks.run(1)
    clocks.wall += step_s * 10**9

    assert probe.read() == counts(0.0, 1)
    assert probe.read() == counts(0.0, 1)
    assert len(reports) == 1
    assert shown in reports[0]


def test_a_suspension_is_marked_once_and_is_no_step(probe, clocks, reports):
    """The wall clock goes on while a machine sleeps."""
    clocks.run(1)
    clocks.suspend(3600)

    assert probe.read() == counts(3600.0, 0)
    assert reports == ["this machine was suspended for 3600.0 s"]
