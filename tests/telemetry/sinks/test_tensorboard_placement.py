"""The subdirectory that a value goes to, against a model of TensorBoard's fast loader."""

from __future__ import annotations

import json
import math
from collections import defaultdict

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.sinks.tensorboard.bounds import BOUNDS, Bounds
from telemetry.sinks.tensorboard.placement import (
    TEXT,
    Change,
    LeftOut,
    LevelState,
    Placement,
)
from tests.telemetry.sinks.helpers_tensorboard import as_float32

VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.0, math.nan, math.inf, 1e300, 1 / 3, 0.33333334])
SAID = st.tuples(
    st.integers(0, 5) | st.sampled_from([-(2**63), -7, 2**53 + 1, 2**63 - 1]),
    st.dictionaries(st.sampled_from("abc"), VALUES, min_size=1),
)


class Loader:
    """The fast loader: all that it shows of a tag in a subdirectory, as it was measured."""

    def __init__(self) -> None:
        self.shown: defaultdict[tuple[int, str], dict[int, float]] = defaultdict(dict)

    def read(self, level: int, step: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            curve = self.shown[level, tag]
            for higher in [known for known in curve if known > step]:
                del curve[higher]  # a lower step wipes the higher ones
            curve[step] = value  # of equal steps the last is shown

    def points(self) -> set[tuple[str, int, str]]:
        return {
            (tag, step, repr(as_float32(value) + 0.0))
            for (_, tag), curve in self.shown.items()
            for step, value in curve.items()
        }


def place_all(said: list[tuple[int, dict[str, float]]]) -> tuple[Loader, Placement, LeftOut]:
    left_out, loader = LeftOut(), Loader()
    found = Placement([], left_out)
    for step, values in said:
        for level, placed in found.numbers(step, dict(values)).items():
            loader.read(level, step, placed)
    return loader, found, left_out


@settings(max_examples=300)
@given(said=st.lists(SAID, max_size=60))
def test_every_step_is_shown_with_the_last_value_said_of_it(
    said: list[tuple[int, dict[str, float]]],
) -> None:
    """Whatever the order: no step is hidden, moved or left out while there are levels."""
    loader, found, left_out = place_all(said)

    last = {(tag, step): value for step, values in said for tag, value in values.items()}
    if not left_out.total:
        shown = loader.points()
        assert {(tag, step) for tag, step, _ in shown} == set(last)
        for (tag, step), value in last.items():
            assert (tag, step, repr(as_float32(value) + 0.0)) in shown
    assert len(found.levels) <= BOUNDS.levels


@given(said=st.lists(SAID, max_size=40), cut=st.integers(0, 40))
def test_a_placement_that_was_restored_goes_on_alike(
    said: list[tuple[int, dict[str, float]]], cut: int
) -> None:
    """From what changed, commit by commit, through JSON and MessagePack."""
    whole, _, _ = place_all(said)
    left_out, loader = LeftOut(), Loader()
    found, log = Placement([], left_out), []
    for number, (step, values) in enumerate(said):
        if number == cut:
            log += found.take_changes()
            states = json.loads(msgspec.json.encode(found.levels))
            found = Placement(msgspec.convert(states, list[LevelState]), left_out)
            for change in msgspec.msgpack.decode(msgspec.msgpack.encode(log), type=list[Change]):
                found.restore(change)
        for level, placed in found.numbers(step, dict(values)).items():
            loader.read(level, step, placed)

    assert loader.points() == whole.points()


def test_the_same_value_again_at_the_same_step_is_one_point() -> None:
    """In 32 bits, which is what an event file has; NaN is the same as NaN."""
    found = Placement([], LeftOut())
    for value in (math.nan, 1 / 3, 1e300):
        assert found.numbers(1, {f"x{value}": value})
    again = {f"x{value}": value for value in (math.nan, 1 / 3, 1e300)}

    assert found.numbers(1, {**again, "x1e+300": math.inf}) == {}
    assert found.numbers(1, {"x0.3333333333333333": as_float32(1 / 3)}) == {}


def test_alternating_values_at_one_step_are_all_written_and_the_last_is_shown() -> None:
    """As three micro-batches of a step say them."""
    said = [(step, {"a": float(value)}) for step in range(3) for value in (1, 2, 3, 1, 2)]

    loader, found, left_out = place_all(said)

    assert len(found.levels) == 1 and left_out.total == 0
    assert loader.points() == {("a", step, "2.0") for step in range(3)}


def test_samples_are_written_even_where_they_repeat() -> None:
    """Each is a reading of its own."""
    found = Placement([], LeftOut())
    found.numbers(1, {"x": 5.0}, is_sampled=True)

    assert found.numbers(1, {"x": 5.0}, is_sampled=True) == {0: {"x": 5.0}}


def test_a_text_is_written_where_it_changes_and_a_histogram_once_a_step() -> None:
    """A stage lasts; two equal histograms of two steps are two."""
    found = Placement([], LeftOut())

    assert [found.other("t", step, f"{TEXT}warmup") for step in (1, 2, 0)] == [0, None, 1]
    assert found.other("t", 3, f"{TEXT}full") == 0
    assert [found.other("h", step, "histogram:1") for step in (1, 1, 2)] == [0, None, 0]


def test_beyond_the_levels_points_are_left_out_and_counted() -> None:
    """And those that fit one of them go on being placed."""
    left_out = LeftOut()
    found = Placement([], left_out, Bounds(levels=3))

    levels = [list(found.numbers(step, {"a": 1.0})) for step in (9, 8, 7, 6, 7, 8, 9, 10, 5)]

    assert levels == [[0], [1], [2], [], [], [], [], [0], []]
    assert (left_out.levels, left_out.tags) == (2, 0)


def test_beyond_the_tags_new_ones_are_left_out_and_known_ones_go_on() -> None:
    """Also where a text is the one too many, or a message."""
    left_out = LeftOut()
    found = Placement([], left_out, Bounds(tags=3))

    assert found.numbers(1, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0})[0].keys() == {"a", "b", "c"}
    assert found.other("t", 1, f"{TEXT}x") is None
    assert found.note("m", "message:") is False
    assert found.numbers(2, {"a": 1.0, "d": 1.0}) == {0: {"a": 1.0}}
    assert left_out.tags == 4
    assert found.tags == 3


def test_near_the_bound_of_tags_no_step_falls() -> None:
    """There the short way is taken by some rows and not by others."""
    found = Placement([], LeftOut(), Bounds(tags=3))
    found.numbers(1, {"a": 1.0, "b": 1.0})
    found.numbers(5, {"a": 5.0, "b": 5.0})

    assert list(found.numbers(4, {"a": 4.0})) == [1]


@given(said=st.lists(SAID, max_size=40))
def test_tags_are_counted_as_they_are_remembered(
    said: list[tuple[int, dict[str, float]]],
) -> None:
    """The bound on all sessions hangs on the count."""
    _, found, _ = place_all(said)

    assert found.tags == sum(len(change.lasts) for change in found.everything())
    found.fold()
    assert found.tags == 0 and list(found.everything()) == []


def test_what_was_forgotten_is_forgotten_after_a_restart_too() -> None:
    """Or a sink that was killed would place values other than one that was not."""
    found = Placement([], LeftOut())
    found.numbers(5, {"a": 1.0})
    log = found.take_changes()
    found.fold()
    found.numbers(7, {"b": 1.0})
    log += found.take_changes()
    assert found.take_changes() == []

    restored = Placement(found.levels, LeftOut())
    for change in log:
        restored.restore(change)

    assert list(restored.everything()) == list(found.everything())
    assert restored.tags == found.tags == 1


@given(said=st.lists(SAID, min_size=1, max_size=30), later=st.lists(SAID, max_size=30))
def test_what_was_forgotten_hides_nothing(
    said: list[tuple[int, dict[str, float]]], later: list[tuple[int, dict[str, float]]]
) -> None:
    """A session that speaks again after its tags were forgotten: no step falls where it goes."""
    loader, found, left_out = place_all(said)
    found.fold()
    for step, values in later:
        for level, placed in found.numbers(step, dict(values)).items():
            for tag in placed:
                assert all(known <= step for known in loader.shown[level, tag])
            loader.read(level, step, placed)

    assert left_out.tags == 0


def test_a_step_rises_only_above_the_last_one_of_its_tag() -> None:
    """For a tag that was forgotten, above all that were: its last step may be any of them."""
    found = Placement([], LeftOut())
    found.numbers(5, {"a": 1.0})

    assert found.rises("a", 6) and not found.rises("a", 5)
    assert found.rises("b", 0)
    found.fold()
    assert found.rises("b", 6) and not found.rises("b", 5)


def test_changes_are_what_another_process_needs_and_each_is_told_once() -> None:
    """Numbers, texts and messages; what was forgotten, too, also with nothing behind it."""
    found = Placement([], LeftOut())
    found.numbers(5, {"a": 1.0})
    assert found.other("t", 3, "text:x") == 0
    assert found.note("m", "text:said")
    assert found.tags == 3 and found.last_of("m") is not None

    assert found.take_changes() == [
        Change(0, False, {"a": (5, 1.0), "t": (3, "text:x"), "m": found.last_of("m")})
    ]
    assert found.take_changes() == []
    found.fold()
    assert found.take_changes() == [Change(0, True, {})]


def test_tags_are_counted_as_they_are_restored() -> None:
    """Of several records, one after the other; a tag that comes again is one tag."""
    restored = Placement([LevelState()], LeftOut())
    for tags in ("ab", "bc", "d"):
        restored.restore(Change(0, False, dict.fromkeys(tags, (1, 1.0))))

    assert restored.tags == 4
    assert LeftOut(levels=2, tags=3).total == 5


def test_a_tag_may_hold_a_text_and_then_a_number_at_one_step() -> None:
    """Another value is another value, whatever it is; only texts have a kind."""
    found = Placement([], LeftOut())
    found.numbers(5, {"a": 1.0})
    assert found.other("t", 5, "text:x") == 0
    assert found.kinds() == {"t": "text"}

    assert found.numbers(5, {"t": 2.0}) == {0: {"t": 2.0}}

    assert found.kinds() == {}
