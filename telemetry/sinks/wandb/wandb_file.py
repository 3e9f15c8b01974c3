"""Reader of `.wandb` files, in which wandb-core keeps the logged data of a run.

In: the path of a `.wandb` file, finished, torn, or being written.
Out: its records in order, up to the last whole one.
Never: writes, or reads past the first damage. `wandb sync` does not either, so the
records found here are those that it can upload.

The file begins with ":W&B", the magic 0xBEE1 and a version byte, then holds
chunks in blocks of 32 KiB, counted from the start of the file (LevelDB's log):

    chunk   crc u32 | length u16 | type u8 | payload

The crc is zlib's crc32 over type and payload (LevelDB has a masked crc32c). A
record is one FULL chunk, or FIRST, any MIDDLE, and LAST; each is a protobuf
`Record`. A block's last 6 bytes or fewer hold no chunk.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

HEADER: Final = b":W&B\xe1\xbe\x00"
BLOCK_BYTES: Final = 32 * 1024
READ_BYTES: Final = 4 * 1024 * 1024
_CHUNK: Final = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class DamagedFile(Exception):
    """Error: bytes that wandb does not write; the message says where."""


def split_records(data: bytes, base: int) -> Iterator[tuple[bytes, int]]:
    """Yield each whole record in data, and the offset in the file behind it.

    base: the offset of data in its file; a record must begin there. Stops without an
    error if data ends in the middle of a record.

    Raises:
        DamagedFile: a bad checksum, or chunks out of order.
    """
    at, parts = base, list[bytes]()
    while True:
        if BLOCK_BYTES - at % BLOCK_BYTES < _CHUNK.size:
            at += BLOCK_BYTES - at % BLOCK_BYTES
        start = at - base
        if start + _CHUNK.size > len(data):
            return
        crc, length, kind = _CHUNK.unpack_from(data, start)
        if at % BLOCK_BYTES + _CHUNK.size + length > BLOCK_BYTES:
            raise DamagedFile(f"chunk at byte {at}: longer than its block")
        end = start + _CHUNK.size + length
        if end > len(data):
            return
        if zlib.crc32(data[start + 6 : end]) != crc:
            raise DamagedFile(f"chunk at byte {at}: checksum mismatch")
        if kind not in ((_MIDDLE, _LAST) if parts else (_FULL, _FIRST)):
            raise DamagedFile(f"chunk at byte {at}: type {kind} is out of order")
        parts.append(data[start + _CHUNK.size : end])
        at = base + end
        if kind in (_FULL, _LAST):
            yield b"".join(parts), at
            parts.clear()


def holds_a_run(path: Path) -> bool:
    """True if a file holds its first two records, which name its run.

    The file of a killed process may hold less: then there is nothing to upload, and
    `wandb sync` fails at it. Reads no more than a block, and needs no wandb.
    """
    try:
        with path.open("rb") as file:
            data = file.read(BLOCK_BYTES)
    except OSError:
        return False
    if not data.startswith(HEADER):
        return False
    whole = 0
    with suppress(DamagedFile):
        for _ in split_records(data[len(HEADER) :], len(HEADER)):
            whole += 1
    # A configuration longer than a block: its record continues in the next block.
    return whole >= 2 or (whole == 1 and len(data) == BLOCK_BYTES)


class RecordTail:
    """Reader of a growing `.wandb` file; each call continues where the last one stopped."""

    def __init__(self, path: Path, read_bytes: int = READ_BYTES) -> None:
        self.path = path
        self.offset = 0
        self._read_bytes = read_bytes

    def read(self) -> Iterator[Any]:
        """Yield the `Record`s written since the last call.

        Raises:
            DamagedFile: what follows the last record yielded is not a record.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            size = self._read_bytes
            while data := self._chunk(file, size):
                before = self.offset
                for payload, end in split_records(data, before):
                    self.offset = end
                    yield _record(payload, end)
                if self.offset == before and len(data) < size:
                    return
                # A record longer than what was read needs a longer read.
                size = self._read_bytes if self.offset > before else size * 2

    def _chunk(self, file: Any, size: int) -> bytes:
        if self.offset == 0:
            header = file.read(len(HEADER))
            if not HEADER.startswith(header):
                raise DamagedFile(f"{self.path.name} does not begin like a .wandb file")
            if len(header) < len(HEADER):
                return b""
            self.offset = len(HEADER)
        file.seek(self.offset)
        data: bytes = file.read(size)
        return data


def clean_records(path: Path) -> Iterator[Any]:
    """Yield the records of a file that no process writes any more, up to the first damage."""
    try:
        yield from RecordTail(path).read()
    except DamagedFile:
        # `wandb sync` can't read past the damage either.
        return


def exit_code(path: Path) -> int | None:
    """Return the exit code that ends the file; None if the run was never finished."""
    code = None
    for record in clean_records(path):
        if record.HasField("exit"):
            code = record.exit.exit_code
    return code


def _record(payload: bytes, end: int) -> Any:
    schema = _schema()
    try:
        return schema.Record.FromString(payload)
    except schema.DecodeError as exc:
        raise DamagedFile(f"record before byte {end}: {exc}") from exc


class _Schema(NamedTuple):
    Record: Any
    DecodeError: type[Exception]


@cache
def _schema() -> _Schema:
    """Return wandb's protobuf types, imported when the first file is read."""
    return _Schema(
        import_module("wandb.proto.wandb_internal_pb2").Record,
        import_module("google.protobuf.message").DecodeError,
    )
