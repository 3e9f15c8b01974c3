"""The spool: frames of one session on our own disk, held by who lives and adopted when it died."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.emitter.spool import Spool, SpoolDamaged, SpoolUnavailable, adopt_orphans
from shared.record import EVENTS, StreamEntry, encode_record, encode_segment_header

FRAMES = st.lists(st.binary(min_size=1, max_size=60), max_size=8)
RUN, SESSION, SOURCE = "run", "session", "rank0"


def filled(directory, bodies: list[bytes]) -> list[int]:
    """A spool with these frames of one event each, whose owner died; where the bodies are."""
    spool = Spool.create(directory, RUN, SESSION, SOURCE)
    places = [spool.append(seq, 1, body) for seq, body in enumerate(bodies)]
    spool.close(delete=False)
    return places


def content(spool: Spool) -> list[tuple[int, bytes]]:
    """(seq, body) of each frame that can be read."""
    found = []
    for header, at in spool.frames():
        try:
            found.append((header.base_seq, spool.load(at, header.payload_length)))
        except SpoolDamaged:
            continue
    return found


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def the_file(directory):
    (path,) = directory.iterdir()
    return path


@given(bodies=FRAMES)
def test_what_was_appended_is_adopted_in_order(tmp_path_factory, bodies):
    """With the run, the session and the source that it is of."""
    directory = tmp_path_factory.mktemp("spool")
    filled(directory, bodies)

    (orphan,) = adopt_orphans(directory)

    assert content(orphan) == list(enumerate(bodies))
    assert (orphan.entry.run_id, orphan.entry.session, orphan.entry.source) == (
        RUN,
        SESSION,
        SOURCE,
    )
    orphan.close(delete=True)
    assert list(directory.iterdir()) == []


def test_a_spool_is_made_with_its_directory_and_has_the_layout_of_a_journal(tmp_path):
    """Whoever reads it: no journal's uuid, one stream of number 0, seqs as rows."""
    spool = Spool.create(tmp_path / "made" / "for it", RUN, SESSION, SOURCE)
    spool.append(3, 2, b"two")

    data = spool.path.read_bytes()

    spool.close(delete=True)
    header = encode_segment_header(bytes(16), 0, {0: StreamEntry(RUN, SESSION, SOURCE, -1)})
    assert data == header + encode_record(EVENTS, 0, 3, 3, 2, b"two")


def test_a_spool_that_goes_away_is_nobody_elses(tmp_path, monkeypatch):
    """Adopted in that moment, all of it would be sent once more."""
    spool, adopted, unlink = Spool.create(tmp_path, RUN, SESSION, SOURCE), [], Path.unlink

    def slow(path: Path, missing_ok: bool = False) -> None:
        adopted.extend(adopt_orphans(tmp_path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", slow)
    spool.close(delete=True)

    assert adopted == [] and list(tmp_path.iterdir()) == []


@given(bodies=FRAMES, cut=st.integers(0, 10**6))
def test_a_spool_torn_at_any_byte_gives_the_whole_frames_before(tmp_path_factory, bodies, cut):
    """Row 22 of the fault catalogue: the process died in the middle of a write."""
    directory = tmp_path_factory.mktemp("spool")
    places = filled(directory, bodies)
    path = the_file(directory)
    start = places[0] - 40 if places else path.stat().st_size
    end = start + cut % (path.stat().st_size - start + 1)
    os.truncate(path, end)
    whole = sum(at + len(body) <= end for at, body in zip(places, bodies, strict=True))

    (orphan,) = adopt_orphans(directory)

    assert [header.base_seq for header, _ in orphan.frames()] == list(range(whole))
    assert content(orphan) == list(enumerate(bodies[:whole]))
    orphan.close(delete=False)
    assert path.exists()


@given(bodies=FRAMES.filter(bool), data=st.data())
def test_a_flipped_bit_costs_one_frame(tmp_path_factory, bodies, data):
    """Frames behind a damaged one are still found."""
    directory = tmp_path_factory.mktemp("spool")
    places = filled(directory, bodies)
    hit = data.draw(st.integers(0, len(bodies) - 1))
    bit = data.draw(st.integers((places[hit] - 40) * 8, (places[hit] + len(bodies[hit])) * 8 - 1))
    damaged = bytearray(the_file(directory).read_bytes())
    damaged[bit // 8] ^= 1 << bit % 8
    the_file(directory).write_bytes(damaged)

    (orphan,) = adopt_orphans(directory)

    assert content(orphan) == [item for item in enumerate(bodies) if item[0] != hit]
    orphan.close(delete=False)


def test_a_spool_whose_owner_lives_is_left_alone(tmp_path):
    """By a second adopter in this process, and by another process."""
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from shared.emitter.spool import adopt_orphans
        print(len(adopt_orphans(Path({str(tmp_path)!r}))))
        """
    )

    def adopted_elsewhere() -> str:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout.strip()

    spool = Spool.create(tmp_path, RUN, SESSION, SOURCE)
    spool.append(0, 1, b"x")

    assert adopt_orphans(tmp_path) == []
    assert adopted_elsewhere() == "0"

    spool.close(delete=False)
    (orphan,) = adopt_orphans(tmp_path)
    assert adopt_orphans(tmp_path) == []
    assert adopted_elsewhere() == "0"
    orphan.close(delete=False)
    assert adopted_elsewhere() == "1"


def test_a_forked_child_does_not_keep_its_parents_lock(tmp_path):
    """A DataLoader worker outlives its trainer for a while: the spool must be free by then."""
    spool = Spool.create(tmp_path, RUN, SESSION, SOURCE)
    child_copy = os.dup(spool._fd)
    inherited = Spool(child_copy, spool.path, spool.entry, 0)

    inherited.abandon()
    inherited.abandon()
    assert adopt_orphans(tmp_path) == []
    spool.close(delete=False)

    (orphan,) = adopt_orphans(tmp_path)
    orphan.close(delete=True)


def test_orphans_come_oldest_first(tmp_path):
    """By the time of the last frame in each."""
    for name, age in (("b", 3), ("c", 2), ("a", 1)):
        spool = Spool.create(tmp_path, RUN, name, SOURCE)
        spool.close(delete=False)
        os.utime(spool.path, ns=(0, 10**18 - age * 10**9))

    orphans = adopt_orphans(tmp_path)

    assert [orphan.entry.session for orphan in orphans] == ["b", "c", "a"]
    for orphan in orphans:
        orphan.close(delete=True)


def test_what_is_no_spool_is_not_touched(tmp_path):
    """Whatever somebody put there: garbage, a journal's segment, a link, a directory."""
    entry = StreamEntry(RUN, SESSION, SOURCE, -1)
    elsewhere = StreamEntry("../run", SESSION, SOURCE, -1)
    tables = {
        "none": {},
        "another": {7: entry},
        "two": {0: entry, 1: entry},
        "bad": {0: elsewhere},
    }
    for name, table in tables.items():
        header = encode_segment_header(bytes(16), 0, table)
        (tmp_path / f"{name}.spool").write_bytes(header)
    (tmp_path / "garbage.spool").write_bytes(b"\xff" * 100)
    (tmp_path / "empty.spool").write_bytes(b"")
    (tmp_path / "dir.spool").mkdir()
    (tmp_path / "link.spool").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo.spool")
    before = sorted(tmp_path.iterdir())

    opened = open_descriptors()

    assert adopt_orphans(tmp_path) == []
    assert adopt_orphans(tmp_path / "missing") == []

    assert sorted(tmp_path.iterdir()) == before
    assert open_descriptors() == opened


def test_clear_forgets_what_is_acknowledged_and_goes_on(tmp_path):
    """The file keeps its header, its lock and its session."""
    spool = Spool.create(tmp_path, RUN, SESSION, SOURCE)
    spool.append(0, 1, b"old")
    assert spool.size > 0

    spool.clear()
    assert (spool.size, spool.frame_count) == (0, 0)
    at = spool.append(1, 2, b"new")

    assert spool.load(at, 3) == b"new"
    assert (spool.size, spool.frame_count) == (40 + 3, 1)
    assert content(spool) == [(1, b"new")]
    spool.close(delete=True)
    spool.close(delete=True)


def test_what_was_cleared_is_gone_from_the_file(tmp_path):
    """A shorter frame over the first of several: whoever adopts the file finds that one, and
    nothing of those that were acknowledged before it."""
    spool = Spool.create(tmp_path, RUN, SESSION, SOURCE)
    empty = spool.path.stat().st_size
    for seq in range(5):
        spool.append(seq, 1, b"acknowledged" * 10)
    spool.clear()
    assert spool.path.stat().st_size == empty
    spool.append(5, 1, b"new")
    spool.close(delete=False)

    (adopted,) = adopt_orphans(tmp_path)

    assert content(adopted) == [(5, b"new")]
    adopted.close(delete=True)


def test_a_frame_that_is_not_there_as_it_was_written_is_damaged(tmp_path):
    """It is counted as lost, not sent as garbage."""
    spool = Spool.create(tmp_path, RUN, SESSION, SOURCE)
    first, second = spool.append(0, 1, b"first"), spool.append(1, 1, b"second")
    with spool.path.open("r+b") as file:
        file.seek(first)
        file.write(b"F")
        file.truncate(second + 2)

    for at, size in ((first, 5), (second, 6)):
        with pytest.raises(SpoolDamaged):
            spool.load(at, size)
    spool.close(delete=True)


@pytest.mark.parametrize("written", [0, 1, 50])
def test_a_frame_for_which_there_is_no_room_leaves_nothing(tmp_path, monkeypatch, written):
    """The disk is full after some bytes; the frames before and after are whole."""
    spool = Spool.create(tmp_path, RUN, SESSION, SOURCE)
    spool.append(0, 1, b"before")
    size = spool.path.stat().st_size
    pwrite, left = os.pwrite, [written]

    def filling(fd: int, data: bytes, at: int) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        part, left[0] = left[0], 0
        return pwrite(fd, bytes(data)[:part], at)

    monkeypatch.setattr(os, "pwrite", filling)
    with pytest.raises(SpoolUnavailable, match="No space"):
        spool.append(1, 1, b"x" * 100)
    assert spool.path.stat().st_size == size
    monkeypatch.setattr(os, "pwrite", pwrite)
    spool.append(1, 1, b"after")

    assert content(spool) == [(0, b"before"), (1, b"after")]
    spool.close(delete=True)


def test_a_spool_that_could_not_be_made_can_be_made_later(tmp_path, monkeypatch):
    """A full disk leaves neither a file nor a lock in the way."""
    pwrite = os.pwrite

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    opened = open_descriptors()
    with pytest.raises(SpoolUnavailable):
        Spool.create(tmp_path, RUN, SESSION, SOURCE)
    assert list(tmp_path.iterdir()) == []
    assert open_descriptors() == opened
    monkeypatch.setattr(os, "pwrite", pwrite)

    Spool.create(tmp_path, RUN, SESSION, SOURCE).close(delete=True)


def test_a_directory_that_cannot_be_made_is_unavailable(tmp_path):
    """And not an OSError, which nobody waits for."""
    (tmp_path / "file").write_text("")

    with pytest.raises(SpoolUnavailable, match="file"):
        Spool.create(tmp_path / "file" / "spool", RUN, SESSION, SOURCE)
