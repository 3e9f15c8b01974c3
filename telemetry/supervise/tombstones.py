"""Tombstones: files that keep the identity of each run that was removed.

In: the journal of a run that is about to go, and why.
Out: DATA_DIR/removed/<run_id>.json, on disk before anything of the run goes.
Never: speaks of a journal that is still there.

    run_id           the run
    removed_wall_s   when it went, by the wall clock
    reason           why, in words
    journals         one entry for each journal that had this run id, in the order of their end:
      uuid             32 hexadecimal digits
      streams          [run_id, session, source, durable_seq] of each stream that was in it

A row number has a meaning only within one journal. A late event of a removed journal is
therefore refused by name, and never begins a second journal.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from shared.files import make_directory, write_atomically
from shared.ids import check_run_id
from shared.record import StreamEntry
from telemetry.journal.identity import identify, journal_uuid
from telemetry.run_dir import RunDir, runs_of

DIRECTORY: Final = "removed"


class _Journal(msgspec.Struct, frozen=True):
    uuid: str
    streams: list[StreamEntry]


class _Tombstone(msgspec.Struct, frozen=True):
    """Contents of a tombstone file."""

    run_id: str
    removed_wall_s: float
    reason: str
    journals: list[_Journal]


class Tombstone(NamedTuple):
    """The journals that were removed under one run id, in the order of their end."""

    run_id: str
    removed_wall_s: float
    reason: str
    uuids: tuple[str, ...]
    streams: tuple[StreamEntry, ...]
    """Every stream of those journals, with the last event that was on disk of it."""

    def entry(self, session: str, source: str) -> StreamEntry | None:
        """Return how far a stream was in the run when it went, None where it was not."""
        for stream in reversed(self.streams):
            if (stream.session, stream.source) == (session, source):
                return stream
        return None


def write_tombstone(runs_dir: Path, run_id: str, reason: str) -> None:
    """Write the tombstone of a run, durably; only after that may its directory be removed.

    Raises:
        CorruptRecord: its journal does not tell which it is.
        OSError: it can't be read, or there is no room.
    """
    uuid, streams = identify(RunDir(runs_dir / run_id).journal)
    path = _path(runs_dir.parent, run_id)
    make_directory(path.parent)
    former = _read(path)
    journals = [j for j in former.journals if j.uuid != uuid.hex()] if former else []
    journals.append(_Journal(uuid.hex(), list(streams.values())))
    value = _Tombstone(run_id, round(time.time(), 3), reason, journals)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def read_tombstone(data_dir: Path, run_id: str) -> Tombstone | None:
    """Return the tombstone of a removed run, None where it was never removed.

    A removal that was broken off before it began leaves the run, and counts for nothing.
    A run that was begun anew under the id of a removed one has a tombstone as well as a
    directory. A tombstone that can't be read still says that the run is gone.

    Raises:
        ValueError: not a run id.
    """
    path = _path(data_dir, check_run_id(run_id))
    if not path.exists():
        return None
    present = ""
    with contextlib.suppress(OSError):
        present = journal_uuid(RunDir(runs_of(data_dir) / run_id).journal)
    value = _read(path) or _Tombstone(run_id, 0.0, "removed; its tombstone is damaged", [])
    gone = [journal for journal in value.journals if journal.uuid != present]
    if present and not gone:
        return None
    uuids = tuple(journal.uuid for journal in gone)
    streams = tuple(entry for journal in gone for entry in journal.streams)
    return Tombstone(run_id, value.removed_wall_s, value.reason, uuids, streams)


def _path(data_dir: Path, run_id: str) -> Path:
    return data_dir / DIRECTORY / f"{run_id}.json"


def _read(path: Path) -> _Tombstone | None:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return msgspec.json.decode(path.read_bytes(), type=_Tombstone)
    return None
