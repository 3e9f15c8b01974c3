"""Rates come from two readings of a counter, or not at all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from telemetry.hardware.rates import CounterRate, TotalRate

SECOND = 1_000_000_000


def test_the_first_reading_of_a_counter_has_no_rate():
    """What a counter held before we looked says nothing about now."""
    assert CounterRate().update(10**12, 5 * SECOND) is None


@given(
    start=st.integers(0, 2**60),
    growth=st.integers(0, 2**40),
    interval_ns=st.integers(1, 10**12),
)
def test_a_rate_is_growth_over_time(start, growth, interval_ns):
    """Whatever the counter's size, the rate is what it grew by, a second."""
    rate = CounterRate()
    rate.update(start, 0)

    assert rate.update(start + growth, interval_ns) == growth * 1e9 / interval_ns


def test_a_counter_that_went_backwards_has_no_rate_until_the_reading_after():
    """A reset or a wrap leaves one point out, and does not draw a spike."""
    rate = CounterRate()
    rate.update(1000, 0)

    assert rate.update(10, SECOND) is None
    assert rate.update(30, 2 * SECOND) == 20


def test_no_time_between_two_readings_means_no_rate():
    """A clock too coarse to tell them apart must not divide by zero."""
    rate = CounterRate()
    rate.update(1, SECOND)

    assert rate.update(2, SECOND) is None


def test_a_device_that_is_plugged_in_adds_only_what_it_does_from_then_on():
    """The total does not leap by all that the new device ever counted."""
    total = TotalRate()
    total.update({"sda": 100}, 0)

    assert total.update({"sda": 150, "sdb": 10**12}, SECOND) == 50
    assert total.update({"sda": 150, "sdb": 10**12 + 7}, 2 * SECOND) == 7


def test_a_device_that_is_pulled_out_leaves_the_rate_of_the_others():
    """The sum shrinks, but nothing that is still there went backwards."""
    total = TotalRate()
    total.update({"sda": 100, "sdb": 10**12}, 0)

    assert total.update({"sda": 150}, SECOND) == 50


def test_one_device_going_backwards_leaves_the_total_out():
    """A total without one of its parts would be a wrong number."""
    total = TotalRate()
    total.update({"sda": 100, "sdb": 100}, 0)

    assert total.update({"sda": 150, "sdb": 20}, SECOND) is None


def test_no_device_at_all_is_no_rate():
    """A machine without disks does not read zero bytes a second."""
    total = TotalRate()
    total.update({}, 0)

    assert total.update({}, SECOND) is None
