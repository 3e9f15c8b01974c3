"""Scalars as bytes: what the protobuf library makes of the same values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tensorboard.compat.proto import event_pb2

from telemetry.sinks.tensorboard.entries import Entry
from telemetry.sinks.tensorboard.scalars import encode_scalars
from telemetry.sinks.tensorboard.summaries import encode_entry

STEPS = st.integers(-(2**63), 2**63 - 1) | st.integers(-200, 200)
TAGS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)


@given(
    wall_s=st.floats(0, 2e10),
    step=STEPS,
    scalars=st.dictionaries(TAGS, st.floats(width=32), min_size=1, max_size=30),
)
def test_the_bytes_are_those_of_the_library(
    wall_s: float, step: int, scalars: dict[str, float]
) -> None:
    """Any tag, step and number, byte for byte: NaN and infinity, 0, and steps below it."""
    expected = event_pb2.Event(wall_time=wall_s, step=step)
    for tag, value in scalars.items():
        expected.summary.value.add(tag=tag, simple_value=value)

    assert encode_scalars(wall_s, step, scalars) == expected.SerializeToString()


@given(scalars=st.dictionaries(st.sampled_from("abc"), st.floats(), min_size=1))
def test_a_number_too_large_for_32_bits_is_infinity(scalars: dict[str, float]) -> None:
    """As the library has it; its neighbours stay what they are."""
    expected = event_pb2.Event(wall_time=1.0, step=5)
    for tag, value in scalars.items():
        expected.summary.value.add(tag=tag, simple_value=value)

    encoded = encode_entry(Entry("rank0", 5, 10**9, scalars, []))

    assert encoded == expected.SerializeToString()
