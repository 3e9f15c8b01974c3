"""The queue between a training thread and the sender: bounded, in order, nothing uncounted."""

from __future__ import annotations

import threading

import pytest

from shared.emitter.queue import (
    BEYOND_BYTES,
    EVENT_COST_BYTES,
    FULL_WAIT_S,
    FULL_WAITS_MAX,
    NOT_AN_EVENT,
    EventQueue,
)
from shared.events import Event, MetricsLogged, RunFinished
from shared.values.rows import VALUE_COST_BYTES
from tests.fakes import ManualClock

ROW_BYTES = EVENT_COST_BYTES + VALUE_COST_BYTES
ROWS = 64
MAX_BYTES = ROWS * ROW_BYTES


def row(step: int, kind: str = "train") -> MetricsLogged:
    return MetricsLogged(kind=kind, step=step, values={"x": 1.0})


def taken(queue: EventQueue) -> list[int | None]:
    """The steps of the events that are in the queue; None for the mark of missing ones."""
    items = [event for _, _, event, _ in queue.take(10**6)]
    return [event.step if isinstance(event, MetricsLogged) else None for event in items]


def filled(kind: str = "train") -> tuple[EventQueue, int]:
    """A queue that has dropped one event of a kind, and how many are in it."""
    queue, count = EventQueue(MAX_BYTES, ManualClock()), 0
    while not queue.dropped:
        queue.put(row(count, kind))
        count += 1
    return queue, count - 1


def test_events_come_out_in_order_with_the_times_of_their_coming() -> None:
    """Of a clock that is read when they are put."""
    clock = ManualClock(wall_ns=10, mono_ns=20)
    queue = EventQueue(MAX_BYTES, clock)
    queue.put(row(0))
    clock.wall, clock.mono = 11, 21
    queue.put(row(1))

    items = list(queue.take(5))

    assert [(wall, mono) for wall, mono, *_ in items] == [(10, 20), (11, 21)]
    assert [event for *_, event, _ in items] == [row(0), row(1)]
    assert (queue.taken, queue.emitted, len(queue)) == (2, 2, 0)


@pytest.mark.parametrize("kind", ["train", "val"])
def test_a_queue_holds_its_bound_and_counts_what_is_beyond_it(kind) -> None:
    """Of the least important kinds a little less, so that room is left for others."""
    queue, count = filled(kind)

    assert count == (ROWS - ROWS // 32 if kind == "train" else ROWS)
    assert queue.dropped == {"queue full": 1} and not queue.refused
    assert (queue.emitted, len(queue)) == (count + 1, count)


def test_the_place_of_dropped_events_is_marked_once_and_counted_by_kind() -> None:
    """Until the sender has taken the counts; later ones get a mark of their own."""
    queue, count = filled()
    queue.put(row(-1))

    first = taken(queue)
    missing = queue.take_missing()

    assert first == [*range(count), None]
    assert missing == {"queue full": {"train": 2}} and queue.take_missing() == {}
    assert len(queue) == 0 and not queue


def test_events_that_were_taken_use_memory_until_the_sender_has_settled() -> None:
    """They are being packed: their memory is not free yet."""
    queue, count = filled()
    taken(queue)
    queue.put(row(count))
    before = queue.dropped["queue full"]
    taken(queue), queue.take_missing()

    queue.settle(MAX_BYTES)
    queue.put(row(count + 1))

    assert before == 2 and queue.dropped["queue full"] == 2
    assert len(queue) == 1


def test_taking_a_part_makes_room_for_that_part() -> None:
    """Not for all, and not only when the queue is empty."""
    queue, _ = filled("val")
    assert len(list(queue.take(10))) == 10

    queue.settle(MAX_BYTES)
    for step in range(20):
        queue.put(row(step, "val"))

    assert len(queue) == ROWS and queue.dropped == {"queue full": 1 + 10}


def test_a_sender_that_waits_for_a_processor_is_waited_for(monkeypatch) -> None:
    """Here it takes what is there only while the emitting thread sleeps, at the third time."""
    queue = EventQueue(MAX_BYTES, ManualClock())
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.extend([seconds] if seconds else [])
        if seconds and len(waits) % 3 == 0:
            list(queue.take(ROWS))
            queue.settle(MAX_BYTES)

    monkeypatch.setattr("time.sleep", sleep)
    for step in range(200 * ROWS):
        queue.put(row(step))

    assert not queue.dropped and queue.emitted == 200 * ROWS
    assert waits


def test_a_sender_that_stands_still_is_waited_for_once(monkeypatch) -> None:
    """At a disk that does not come back the training thread must not lose time to each event."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", lambda seconds: waits.extend([seconds] if seconds else []))
    queue, _ = filled()
    for step in range(100):
        queue.put(row(step))
    assert waits == [FULL_WAIT_S] * FULL_WAITS_MAX

    list(queue.take(1))
    for step in range(100):
        queue.put(row(step))
    assert waits == [FULL_WAIT_S] * 2 * FULL_WAITS_MAX


def test_the_room_that_others_leave_is_the_bound() -> None:
    """Backlog and frames share the memory with the queue."""
    queue = EventQueue(MAX_BYTES, ManualClock())
    queue.settle(10 * ROW_BYTES)

    for step in range(20):
        queue.put(row(step, "val"))

    assert len(queue) == 10 and queue.dropped == {"queue full": 10}


def test_the_end_of_a_run_is_taken_beyond_the_bound() -> None:
    """Some of them: a script that says nothing else must not fill the memory either."""
    queue, _ = filled("val")
    end = RunFinished(status="finished")

    queue.put(end)
    one = dict(queue.dropped)
    for _ in range(BEYOND_BYTES // EVENT_COST_BYTES):
        queue.put(end)

    assert one == {"queue full": 1} and queue.dropped["queue full"] > 1


def test_a_value_that_is_no_event_is_refused_in_its_place() -> None:
    """Its neighbours stay where they are."""
    queue = EventQueue(MAX_BYTES, ManualClock())
    bad: list[object] = [None, object(), "text", MetricsLogged]
    queue.put(row(0))

    for value in bad:
        queue.put(value)
    queue.put(row(1))

    assert taken(queue) == [0, None, 1]
    assert queue.take_missing() == {f"refused: {NOT_AN_EVENT}": {"unknown": len(bad)}}
    assert queue.refused == {NOT_AN_EVENT: len(bad)} and queue.emitted == 2 + len(bad)


def test_after_close_everything_is_dropped_and_no_place_is_marked() -> None:
    """Nothing would report it; the counts are for the script."""
    queue = EventQueue(MAX_BYTES, ManualClock())
    queue.close()
    queue.settle(MAX_BYTES)

    queue.put(row(0))
    queue.put(object())

    assert not queue and queue.dropped == {"queue full": 1} and queue.refused == {NOT_AN_EVENT: 1}
    assert queue.emitted == 2


def test_events_of_many_threads_are_all_counted() -> None:
    """Dropped or not, while another thread takes them out."""
    queue, count, threads = EventQueue(MAX_BYTES, ManualClock()), 2_000, 4
    found: list[Event] = []

    def put() -> None:
        for step in range(count):
            queue.put(row(step))

    running = [threading.Thread(target=put) for _ in range(threads)]
    for thread in running:
        thread.start()
    while any(thread.is_alive() for thread in running) or queue:
        found += [event for *_, event, _ in queue.take(100) if event is not None]
        queue.take_missing()
        queue.settle(MAX_BYTES)

    assert queue.emitted == count * threads
    assert len(found) + queue.dropped["queue full"] == count * threads
    assert len(found) == queue.taken
