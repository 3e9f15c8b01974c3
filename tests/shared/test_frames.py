"""The frames of a stream: what is in memory, what is in the spool, and how much of each."""

from __future__ import annotations

from shared.emitter.frames import FRAME_OVERHEAD_BYTES, Frame, Frames


def frame(base_seq: int, count: int, *, is_spooled: bool = False) -> Frame:
    return Frame(base_seq, count, 10 * count, 0, lambda: b"", is_spooled)


def standing(frames: Frames) -> tuple[list[int], list[int], int, int]:
    """First seqs of all frames and of those in memory, bytes in memory, events in the spool."""
    return (
        [one.base_seq for one in frames],
        [one.base_seq for one in frames.in_memory],
        frames.memory_bytes,
        frames.spooled_events,
    )


def test_frames_are_counted_where_they_are_from_the_first_to_the_last():
    """A stream that was adopted begins with frames in the spool, and may get more."""
    frames = Frames()
    frames.append(frame(0, 2, is_spooled=True))
    frames.append(frame(2, 3))
    frames.append(frame(5, 1))
    overhead = FRAME_OVERHEAD_BYTES
    assert standing(frames) == ([0, 2, 5], [2, 5], 40 + 2 * overhead, 2)

    frames.moved_to_spool(lambda: b"there")
    assert standing(frames) == ([0, 2, 5], [5], 10 + overhead, 5)
    assert frames[1].load() == b"there" and frames[1].is_spooled

    assert frames.pop_oldest().base_seq == 0
    assert standing(frames) == ([2, 5], [5], 10 + overhead, 3)
    assert frames.pop_oldest().base_seq == 2
    assert frames.pop_oldest().base_seq == 5
    assert standing(frames) == ([], [], 0, 0) and len(frames) == 0


def test_a_frame_that_can_not_be_loaded_is_taken_from_between_the_others():
    """It was in the spool."""
    frames = Frames()
    for base_seq, count in ((0, 1), (1, 4), (5, 1)):
        frames.append(frame(base_seq, count, is_spooled=True))

    assert frames.remove_spooled(1).count == 4

    assert standing(frames) == ([0, 5], [], 0, 2)
