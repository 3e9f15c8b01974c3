"""The backlog: bounded, in order, and nothing given up uncounted."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.emitter.backlog import DROPPED_NEVER, QUEUE_FULL, Backlog
from shared.emitter.packing import pack_event
from shared.events import Gap, MessageLogged, decode_envelope
from shared.wire import FRAME_MAX_EVENTS, FRAME_TARGET_BYTES
from tests.fakes import ManualClock

KINDS = ["train", "hardware", "custom", "quant", "val", "message", "config_updated"]
NEVER = ["run_started", "run_finished"]
OVERHEAD = 120
MAX_BYTES = 40 * 200


def packed(number: int, size: int = 80) -> bytes:
    """An event that can be told apart, of about this size."""
    return pack_event(MessageLogged(level=f"{number:06d}", text="x" * size), 1, 2).pieces[0]


def number_of(data: bytes) -> int | None:
    event = decode_envelope(data).event()
    return int(event.level) if isinstance(event, MessageLogged) else None


def drained(backlog: Backlog) -> list[bytes]:
    taken: list[bytes] = []
    while frame := backlog.take_frame():
        taken += frame
    return taken


def gaps_in(taken: list[bytes]) -> list[Gap]:
    found = [decode_envelope(data).event() for data in taken]
    return [event for event in found if isinstance(event, Gap)]


ADDS = st.tuples(st.just("add"), st.sampled_from(KINDS + NEVER), st.integers(0, 300))
MISSES = st.tuples(st.just("miss"), st.sampled_from(KINDS), st.sampled_from([QUEUE_FULL, "other"]))
TAKES = st.tuples(st.just("take"), st.just(""), st.just(0))


@given(acts=st.lists(st.one_of(ADDS, ADDS, ADDS, MISSES, TAKES), max_size=150))
def test_kept_and_counted_events_are_all_that_were_given(acts):
    """Promise 4: by kind, exactly; and what is kept keeps its order."""
    backlog = Backlog(MAX_BYTES // 4, ManualClock())
    given_kinds: Counter[str] = Counter()
    kind_by_number: dict[int, str] = {}
    taken: list[bytes] = []
    for number, (act, kind, argument) in enumerate(acts):
        if act == "add":
            backlog.add(kind, packed(number, argument))
            kind_by_number[number] = kind
            given_kinds[kind] += 1
        elif act == "miss":
            backlog.add_missing(argument, [kind])
            given_kinds[kind] += 1
        else:
            taken += backlog.take_frame()

    taken += drained(backlog)

    numbers = [n for data in taken if (n := number_of(data)) is not None]
    gaps = gaps_in(taken)
    counted = sum((Counter(gap.by_kind) for gap in gaps), Counter())
    assert numbers == sorted(numbers)
    assert counted + Counter(kind_by_number[n] for n in numbers) == given_kinds
    assert all(gap.count == sum(gap.by_kind.values()) > 0 for gap in gaps)
    assert backlog.gaps == len(gaps)
    assert len(backlog) == 0


@given(adds=st.lists(st.tuples(st.sampled_from(KINDS + NEVER), st.integers(0, 300)), max_size=150))
def test_the_bound_holds_but_for_what_is_never_dropped(adds):
    """Row 5 of the fault catalogue: memory is bounded however long the sidecar is away."""
    backlog = Backlog(MAX_BYTES // 4, ManualClock())

    for number, (kind, size) in enumerate(adds):
        backlog.add(kind, packed(number, size))

    never = sum(kind in DROPPED_NEVER for kind, _ in adds)
    kept = drained(backlog)
    droppable = sum(
        len(data) + OVERHEAD
        for data in kept
        if (n := number_of(data)) is not None and adds[n][0] not in DROPPED_NEVER
    )
    assert droppable <= MAX_BYTES // 4
    assert sum(n is not None and adds[n][0] in DROPPED_NEVER for n in map(number_of, kept)) == never


def test_the_oldest_train_events_go_first_and_one_gap_stands_in_their_place():
    """Row 5: RunStarted, val, messages and RunFinished are kept."""
    backlog = Backlog(MAX_BYTES, ManualClock(wall_ns=77))
    backlog.add("run_started", packed(0))
    backlog.add("val", packed(1))
    backlog.add("message", packed(2))

    for number in range(3, 100):
        backlog.add("train", packed(number))
    backlog.add("run_finished", packed(100))

    taken = drained(backlog)
    numbers = [number_of(data) for data in taken]
    (gap,) = gaps_in(taken)
    assert numbers[:3] == [0, 1, 2] and numbers[3] is None
    assert numbers[4:] == list(range(101 - len(numbers) + 4, 101))
    assert gap == Gap(
        count=97 - (len(numbers) - 5), by_kind={"train": 97 - (len(numbers) - 5)}, reason=QUEUE_FULL
    )
    assert backlog.dropped_events == gap.count
    assert decode_envelope(taken[3]).wall_ns == 77


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("train", "val"),
        ("val", "message"),
        ("hardware", "message"),
    ],
)
def test_what_is_worth_less_is_dropped_before_what_is_worth_more(less, more):
    """train and hardware, then val, then messages; whoever was first."""
    backlog = Backlog(MAX_BYTES, ManualClock())

    for number in range(20):
        backlog.add(more, packed(number))
    for number in range(20, 200):
        backlog.add(less, packed(number))

    (gap,) = gaps_in(drained(backlog))
    assert gap.by_kind[less] == backlog.dropped_events > 100 and gap.by_kind.keys() == {less}


def test_the_backlog_is_within_its_bound_after_every_event():
    """The one that came last counts, too."""
    backlog = Backlog(MAX_BYTES, ManualClock())

    for number in range(200):
        backlog.add("train", packed(number))
        assert backlog.held_bytes <= MAX_BYTES


def test_a_gap_moves_forward_to_the_first_event_that_is_missing():
    """What overflowed before stood behind; what is dropped now stood in front of it."""
    backlog = Backlog(MAX_BYTES, ManualClock())
    backlog.add("val", packed(0))
    for number in range(1, 30):
        backlog.add("train", packed(number))
    backlog.add_missing(QUEUE_FULL, {"train": 5})

    for number in range(30, 60):
        backlog.add("val", packed(number))

    taken = drained(backlog)
    (gap,) = gaps_in(taken)
    assert number_of(taken[0]) == 0 and number_of(taken[1]) is None
    assert gap.count == 5 + backlog.dropped_events and backlog.dropped_events > 0


def test_gaps_of_different_reasons_stay_apart():
    """Each in the place of its first event."""
    backlog = Backlog(MAX_BYTES, ManualClock())

    backlog.add_missing("refused: bad name", ["train"])
    backlog.add("val", packed(1))
    backlog.add_missing(QUEUE_FULL, ["train", "val"])
    backlog.add_missing("refused: bad name", ["custom"])
    backlog.add_missing("nothing", [])

    taken = drained(backlog)
    assert [number_of(data) for data in taken] == [None, 1, None]
    assert gaps_in(taken) == [
        Gap(count=2, by_kind={"train": 1, "custom": 1}, reason="refused: bad name"),
        Gap(count=2, by_kind={"train": 1, "val": 1}, reason=QUEUE_FULL),
    ]


def test_a_gap_that_was_framed_is_not_added_to():
    """It has its number; what is missing later is another gap."""
    backlog = Backlog(MAX_BYTES, ManualClock())
    backlog.add_missing("r", ["train"])
    first = backlog.take_frame()

    backlog.add_missing("r", ["train"])

    assert (
        gaps_in(first)
        == gaps_in(drained(backlog))
        == [Gap(count=1, by_kind={"train": 1}, reason="r")]
    )


@given(sizes=st.lists(st.sampled_from([0, 10, 1000, 150_000]), max_size=600))
def test_a_frame_holds_at_most_256_events_and_256_kib(sizes):
    """Or one event, if that is larger alone; none is left out."""
    backlog = Backlog(10**9, ManualClock())
    for number, size in enumerate(sizes):
        backlog.add("val", packed(number, size))

    frames = []
    while frame := backlog.take_frame():
        frames.append(frame)

    assert [number_of(data) for frame in frames for data in frame] == list(range(len(sizes)))
    for frame in frames:
        assert len(frame) <= FRAME_MAX_EVENTS
        assert len(frame) == 1 or sum(map(len, frame)) <= FRAME_TARGET_BYTES
