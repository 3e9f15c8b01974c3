"""The backlog at its bounds: exactly full, exactly one frame, exactly as much shed as said."""

from __future__ import annotations

from shared.emitter.backlog import QUEUE_FULL, Backlog
from shared.events import Gap, decode_envelope
from shared.wire import FRAME_MAX_EVENTS, FRAME_TARGET_BYTES
from tests.fakes import ManualClock

OVERHEAD = 120
COST = 1000
EVENT = bytes(COST - OVERHEAD)


def filled(max_bytes: int, kind: str, count: int) -> Backlog:
    backlog = Backlog(max_bytes, ManualClock())
    for _ in range(count):
        backlog.add(kind, EVENT)
    return backlog


def gaps_of(backlog: Backlog) -> list[Gap]:
    """Take everything; what is missing, and why."""
    taken: list[bytes] = []
    while frame := backlog.take_frame():
        taken += frame
    found = [decode_envelope(data).event() for data in taken if data != EVENT]
    return [event for event in found if isinstance(event, Gap)]


def test_a_backlog_that_is_exactly_full_drops_nothing() -> None:
    """And one event more makes it shed to nine tenths: not one event further."""
    backlog = filled(10 * COST, "train", 10)
    assert backlog.held_bytes == 10 * COST and backlog.dropped_events == 0

    backlog.add("train", EVENT)

    assert backlog.held_bytes == 9 * COST + OVERHEAD  # the Gap
    assert gaps_of(backlog) == [Gap(count=2, by_kind={"train": 2}, reason=QUEUE_FULL)]


def test_a_kind_worth_more_is_kept_once_the_rest_fits_exactly() -> None:
    """The Gap takes its place too."""
    for kind, less in (("val", "train"), ("message", "val")):
        backlog = filled(10 * COST + OVERHEAD, kind, 10)

        backlog.add(less, EVENT)

        assert backlog.held_bytes == 10 * COST + OVERHEAD
        assert gaps_of(backlog) == [Gap(count=1, by_kind={less: 1}, reason=QUEUE_FULL)]


def test_what_is_worth_most_is_dropped_last_but_for_the_runs_own_ends() -> None:
    """Messages are bounded; how a run began is always kept."""
    backlog = filled(10 * COST, "run_started", 12)
    assert backlog.dropped_events == 0

    backlog.add("message", EVENT)

    assert gaps_of(backlog) == [Gap(count=1, by_kind={"message": 1}, reason=QUEUE_FULL)]


def test_a_frame_takes_exactly_its_number_of_events() -> None:
    backlog = filled(10**9, "val", FRAME_MAX_EVENTS + 1)

    assert [len(backlog.take_frame()) for _ in range(2)] == [FRAME_MAX_EVENTS, 1]
    assert backlog.held_bytes == 0 and backlog.take_frame() == []


def test_a_frame_takes_exactly_its_number_of_bytes() -> None:
    """Larger events have frames of their own."""
    backlog = Backlog(10**9, ManualClock())
    half, larger = bytes(FRAME_TARGET_BYTES // 2), bytes(FRAME_TARGET_BYTES + 1)
    for data in (half, half, b"x", larger):
        backlog.add("val", data)

    assert [backlog.take_frame() for _ in range(3)] == [[half, half], [b"x"], [larger]]
    assert backlog.held_bytes == 0


def test_gaps_stay_in_their_place_when_more_is_shed_behind_them() -> None:
    """Each with its own reason, and with all that it counted."""
    backlog = Backlog(10 * COST, ManualClock())
    backlog.add_missing(QUEUE_FULL, {"train": 5})
    backlog.add("train", EVENT)
    backlog.add_missing("refused", {"val": 1})
    for _ in range(11):
        backlog.add("val", EVENT)

    dropped = backlog.dropped_events - 1
    assert dropped > 0 and gaps_of(backlog) == [
        Gap(count=6 + dropped, by_kind={"train": 6, "val": dropped}, reason=QUEUE_FULL),
        Gap(count=1, by_kind={"val": 1}, reason="refused"),
    ]
