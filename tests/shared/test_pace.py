"""How often the sender thread looks for events, on a clock that stands still between steps."""

from __future__ import annotations

import pytest

from shared.emitter.pace import IDLE_PAUSE_S, QUIET_NS, Pace
from tests.fakes import ManualClock

FLUSH_S = 0.01


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def pace(clock: ManualClock) -> Pace:
    return Pace(clock, FLUSH_S)


def turn(pace: Pace, clock: ManualClock, *, has_taken: bool = False, is_quiet: bool = True) -> None:
    pace.on_poll(clock.monotonic_ns(), has_taken=has_taken, is_quiet=is_quiet)


def test_it_looks_often_until_a_second_without_events_is_over(pace, clock):
    turn(pace, clock, has_taken=True)
    clock.advance(0.999)
    turn(pace, clock)
    assert pace.pause_s == FLUSH_S

    clock.advance(0.001)
    assert pace.pause_s == IDLE_PAUSE_S

    turn(pace, clock, has_taken=True)
    assert pace.pause_s == FLUSH_S


def test_it_looks_often_while_anything_is_left_to_be_acknowledged(pace, clock):
    """Those frames have to be in the spool after their time, sidecar or not."""
    turn(pace, clock, has_taken=True, is_quiet=False)
    clock.advance(100)
    turn(pace, clock, is_quiet=False)
    assert pace.pause_s == FLUSH_S
    assert pace.is_due


def test_a_quiet_thread_takes_a_turn_now_and_then(pace, clock):
    turn(pace, clock)
    assert not pace.is_due
    clock.advance(QUIET_NS / 1e9)
    assert pace.is_due


def test_an_interval_that_was_chosen_longer_stays(clock):
    pace = Pace(clock, 0.2)
    turn(pace, clock)
    clock.advance(1)
    assert pace.pause_s == 0.2
