"""A condition has an onset and an end, and each is said once."""

from __future__ import annotations

import pytest

from telemetry.hardware.conditions import Conditions


@pytest.fixture
def said():
    return []


@pytest.fixture
def conditions(said, clock):
    return Conditions("node1", said.append, clock)


def told(said):
    return [(event.name, event.subject, event.is_active) for event in said]


def test_a_state_is_said_when_it_begins_and_when_it_is_over(conditions, clock, said):
    """Not with each reading in which it lasts."""
    for is_present in (True, True, True, False, False):
        conditions.state("gpu_lost", "gpu/0", is_present, "gpu 0 is gone", severity="error")
        clock.advance(10)

    assert told(said) == [("gpu_lost", "gpu/0", True), ("gpu_lost", "gpu/0", False)]
    assert (said[0].text, said[0].severity, said[0].lasted_s) == (
        "node1: gpu 0 is gone",
        "error",
        None,
    )
    assert (said[1].text, said[1].lasted_s) == ("node1: over after 30 s: gpu 0 is gone", 30.0)


def test_a_state_at_its_border_does_not_come_and_go(conditions, clock, said):
    """One reading in two for half a minute: one onset, and one end when it is really gone."""
    for second in range(40):
        conditions.state("hot", "gpu/0", second < 30 and second % 2 == 0, "hot", end_s=5)
        clock.advance(1)

    assert told(said) == [("hot", "gpu/0", True), ("hot", "gpu/0", False)]


def test_a_state_that_is_too_short_is_not_said(conditions, clock, said):
    """A single reading of a throttled clock is an ordinary thing."""
    for is_present in (True, False, True, True, True):
        conditions.state("hot", "gpu/0", is_present, "hot", onset_s=2)
        clock.advance(1)

    assert told(said) == [("hot", "gpu/0", True)]


def test_a_pulse_is_over_after_a_quiet_time_and_another_one_makes_it_last(conditions, clock, said):
    """An XID has no end of its own."""
    conditions.pulse("xid", "gpu/0", "XID 13", quiet_s=60, value=13)
    clock.advance(50)
    conditions.pulse("xid", "gpu/0", "XID 13", quiet_s=60, value=13)
    clock.advance(50)
    conditions.expire()
    assert told(said) == [("xid", "gpu/0", True)]

    clock.advance(10)
    conditions.expire()

    assert told(said)[1:] == [("xid", "gpu/0", False)]
    assert said[1].lasted_s == 110.0


def test_a_new_text_of_a_condition_that_lasts_is_said_at_once(conditions, said):
    """XID 79 after XID 13 is news."""
    conditions.pulse("xid", "gpu/0", "XID 13", quiet_s=60, value=13)
    conditions.pulse("xid", "gpu/0", "XID 79", quiet_s=60, value=79, severity="error")

    assert [(event.is_active, event.value) for event in said] == [(True, 13), (True, 79)]


def test_subjects_have_their_own_onsets(conditions, said):
    """Eight GPUs, eight conditions."""
    conditions.state("hot", "gpu/0", True, "hot")
    conditions.state("hot", "gpu/1", True, "hot")
    conditions.state("hot", "gpu/0", False)

    assert told(said) == [
        ("hot", "gpu/0", True),
        ("hot", "gpu/1", True),
        ("hot", "gpu/0", False),
    ]
