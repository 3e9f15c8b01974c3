"""Spooling: frames go to the disk when they are due, and stay in memory when it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.emitter.notices import Notices
from shared.emitter.options import EmitterOptions
from shared.emitter.spool import Spool, SpoolUnavailable, adopt_orphans
from shared.emitter.spooling import RETRY_NS, Spooling
from shared.emitter.stream import OutgoingStream
from shared.wire import Ack, Welcome
from tests.fakes import ManualClock


class Desk:
    """A stream with frames of one event each, and the spool that they may go to."""

    def __init__(self, directory: Path, **limits: int | None) -> None:
        options = EmitterOptions(**{"spool_dir": directory} | limits)
        self.clock = ManualClock()
        self.stream = OutgoingStream(1, "run", "session", "rank0")
        self.spooling = Spooling(self.stream, options, self.clock, Notices())

    def add(self, count: int) -> None:
        for _ in range(count):
            self.stream.add([b"\x01"], self.clock.mono)

    def held(self) -> tuple[int, int]:
        """Events in the spool, and frames in memory."""
        frames = self.stream.frames
        return frames.spooled_events, len(frames.in_memory)


def test_a_frame_is_spooled_when_it_is_old_enough(tmp_path: Path) -> None:
    """Neither before, nor with a younger one behind it."""
    desk = Desk(tmp_path)
    desk.add(2)
    desk.clock.mono += 99_000_000
    desk.add(1)
    desk.spooling.move_overdue(desk.clock.mono)
    before = desk.held()

    desk.clock.mono += 1_000_000
    desk.spooling.move_overdue(desk.clock.mono)

    assert before == (0, 3) and desk.held() == (2, 1)
    assert desk.spooling.written_ns == desk.clock.mono


@pytest.mark.parametrize("limits", [{"spool_max_frames": 2}, {"spool_max_bytes": 50}], ids=str)
def test_frames_that_a_full_spool_does_not_take_stay_in_memory(tmp_path: Path, limits) -> None:
    """And are tried again after a while, or at the very end."""
    desk = Desk(tmp_path, **limits)
    desk.add(3)

    desk.spooling.move_overdue(desk.clock.mono, everything=True)
    full = desk.held()
    desk.spooling.move_overdue(desk.clock.mono + RETRY_NS, everything=True)

    assert full == desk.held() == (2, 1)


def test_a_spool_is_emptied_when_the_sidecar_has_all_that_is_in_it(tmp_path: Path) -> None:
    """Not while a frame of it may still have to be sent again."""
    desk = Desk(tmp_path)
    desk.add(2)
    desk.spooling.move_all(desk.clock.mono)
    (path,) = tmp_path.glob("*.spool")
    empty = path.stat().st_size - desk.spooling.spool.size
    desk.stream.hello()
    desk.stream.on_welcome(Welcome(1, 0, 1000))
    assert len(list(desk.stream.sendable())) == 2

    desk.stream.on_ack(Ack(1, 0, 1000))
    desk.spooling.clear_if_unneeded()
    half = path.stat().st_size
    desk.stream.on_ack(Ack(1, 1, 1000))
    desk.spooling.clear_if_unneeded()

    assert half > empty == path.stat().st_size
    desk.spooling.close()
    assert not path.exists()


def test_a_disk_that_refused_is_asked_again_after_a_while_or_at_the_very_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not for each frame; and it is said once."""
    asked = []

    def refusing(*args: object) -> Spool:
        asked.append(args)
        raise SpoolUnavailable("spool: No space left on device")

    desk = Desk(tmp_path)
    desk.add(2)
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "create", refusing)
        for after_ns in (0, RETRY_NS - 1, 1, RETRY_NS - 1):
            desk.clock.mono += after_ns
            desk.spooling.move_overdue(desk.clock.mono, everything=True)
        assert len(asked) == 2 and desk.held() == (0, 2)
        desk.spooling.move_all(desk.clock.mono)
        assert len(asked) == 3

    desk.spooling.move_all(desk.clock.mono)

    assert desk.held() == (2, 0)
    assert [r.getMessage() for r in caplog.records] == [
        "telemetry spool: No space left on device; events stay in memory"
    ]
    desk.spooling.close()


def test_without_a_directory_frames_stay_in_memory(tmp_path: Path) -> None:
    """Nothing is opened, cleared or closed."""
    desk = Desk(tmp_path, spool_dir=None)
    desk.add(2)

    desk.spooling.move_all(desk.clock.mono)
    desk.spooling.clear_if_unneeded()
    desk.spooling.abandon()
    desk.spooling.close()

    assert desk.held() == (0, 2) and desk.spooling.written_ns == 0


def test_a_forked_child_lets_go_of_the_spool(tmp_path: Path) -> None:
    """Its copy of the lock would outlive the parent."""
    desk = Desk(tmp_path)
    desk.add(1)
    desk.spooling.move_all(desk.clock.mono)
    assert adopt_orphans(tmp_path) == []

    desk.spooling.abandon()

    (orphan,) = adopt_orphans(tmp_path)
    orphan.close(delete=True)
