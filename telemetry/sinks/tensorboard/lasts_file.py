"""Lasts file: the last step and value of each tag, on disk beside the cursor.

In: the changes of each session since the last commit.
Out: the same on disk; after a restart, the last steps as of a commit.
Never: writes into a file of an earlier process, or removes one that a cursor may name.

A commit is the name and length of the file, taken after it was synced; the
position that names it is durable later. So at any moment the file that the
durable position names is on disk with at least that length, and its bytes up
to there are exactly the last steps as of that position: files are only appended
to, and a file is removed only when neither of the last two positions names it.

    <out dir>/cursors/tensorboard.lasts.<start, 6 digits>.<number, 6 digits>

is a sequence of records, little-endian:

    length u32 | crc32c of payload u32 | payload

and a payload is a MessagePack array with one item for each change:

    [session number, [level, is cleared, {tag: [step, value]}]]

Each process begins a file with a record of everything. When the file has grown to
four times that record, the process begins a new one.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import google_crc32c
import msgspec

from shared.files import make_directory, sync_directory, write_all
from telemetry.run_dir import RunDir
from telemetry.sinks.tensorboard.bounds import BOUNDS
from telemetry.sinks.tensorboard.placement import Change

_NAME: Final = re.compile(r"tensorboard\.lasts\.\d{6,}\.\d{6,}")
_HEADER: Final = struct.Struct("<II")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[tuple[int, Change]]).decode

SessionChange = tuple[int, Change]


class DamagedLasts(Exception):
    """Error: the file does not hold what was committed; the message names it."""


class LastsCommit(msgspec.Struct, array_like=True, frozen=True):
    """Name of a lasts file and the length that is committed. No name: nothing is stored."""

    name: str = ""
    length: int = 0


class LastsFile:
    """The current lasts file of one run, in out_dir/cursors. Not thread-safe."""

    def __init__(self, out_dir: Path, min_bytes: int = BOUNDS.lasts_bytes) -> None:
        """min_bytes: a file that is shorter is not begun anew."""
        self._min_bytes = min_bytes
        self._directory = RunDir(out_dir).cursors
        self._commit = LastsCommit()
        self._kept: tuple[str, str] = ("", "")
        self._base_bytes = 0
        self._number = 0
        self._is_own = False

    def open(self, commit: LastsCommit) -> list[SessionChange]:
        """Return the changes up to a commit, oldest first, and remove files that it does not name.

        Raises:
            DamagedLasts: committed bytes are missing or damaged.
            OSError: as from the disk.
        """
        self._commit, self._is_own, self._number = commit, False, 0
        changes = list(self._read(commit)) if commit.name else []
        self._kept = (commit.name, commit.name)
        self._remove_others()
        return changes

    def commit(
        self, changes: list[SessionChange], everything: Iterable[SessionChange], start: int
    ) -> LastsCommit:
        """Write and sync changes; a new file gets everything instead. Return the commit.

        Raises:
            OSError: as from the disk; only open helps then.
        """
        if not changes:
            return self._commit
        is_full = self._commit.length > max(self._min_bytes, 4 * self._base_bytes)
        if not self._is_own or is_full:
            self._begin(list(everything), start)
        else:
            self._append(_record(changes))
        self._kept = (self._kept[1], self._commit.name)
        self._remove_others()
        return self._commit

    def _begin(self, everything: list[SessionChange], start: int) -> None:
        make_directory(self._directory)
        self._number += 1
        name = f"tensorboard.lasts.{start:06d}.{self._number:06d}"
        record = _record(everything)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        _write(self._directory / name, record, flags, at=0)
        # The position will name this file, so the name has to be durable before it.
        sync_directory(self._directory)
        self._commit, self._is_own = LastsCommit(name, len(record)), True
        self._base_bytes = len(record)

    def _append(self, record: bytes) -> None:
        path = self._directory / self._commit.name
        _write(path, record, os.O_WRONLY | os.O_NOFOLLOW, at=self._commit.length)
        self._commit = LastsCommit(self._commit.name, self._commit.length + len(record))

    def _read(self, commit: LastsCommit) -> Iterator[SessionChange]:
        path = self._directory / commit.name
        if not _NAME.fullmatch(commit.name):
            raise DamagedLasts(f"{commit.name!r} is no file of last steps")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                data = file.read(commit.length)
        except OSError as exc:
            raise DamagedLasts(f"{path} can't be read: {exc.strerror}") from exc
        if len(data) < commit.length:
            raise DamagedLasts(f"{path} has {len(data)} of {commit.length} bytes")
        at = 0
        while at < len(data):
            payload = _payload(data, at, path)
            at += _HEADER.size + len(payload)
            yield from _changes(payload, path)

    def _remove_others(self) -> None:
        if not self._directory.is_dir():
            return
        for path in list(self._directory.iterdir()):
            if _NAME.fullmatch(path.name) and path.name not in self._kept:
                path.unlink()


def _record(changes: list[SessionChange]) -> bytes:
    payload = _encode(changes)
    return _HEADER.pack(len(payload), google_crc32c.value(payload)) + payload


def _payload(data: bytes, at: int, path: Path) -> bytes:
    if at + _HEADER.size <= len(data):
        length, crc = _HEADER.unpack_from(data, at)
        payload = data[at + _HEADER.size : at + _HEADER.size + length]
        if len(payload) == length and google_crc32c.value(payload) == crc:
            return payload
    raise DamagedLasts(f"{path} is damaged at byte {at}")


def _changes(payload: bytes, path: Path) -> list[SessionChange]:
    try:
        changes: list[Any] = _decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise DamagedLasts(f"{path} is damaged: {exc}") from exc
    return changes


def _write(path: Path, data: bytes, flags: int, *, at: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        write_all(descriptor, data, at)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
