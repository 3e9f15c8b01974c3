"""The reader of `.wandb` files: framing, tearing, damage, and a file being written."""

from __future__ import annotations

import random
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.sinks.wandb import wandb_file
from telemetry.sinks.wandb.wandb_file import (
    BLOCK_BYTES,
    HEADER,
    DamagedFile,
    RecordTail,
    split_records,
)
from tests import wandb_contents

GOLDEN = Path(__file__).parent / "golden.wandb"


def framed(payloads: list[bytes]) -> tuple[bytes, list[int]]:
    """The file of these records, and where each one ends."""
    data, ends = bytearray(HEADER), []
    for payload in payloads:
        rest, is_first = payload, True
        while is_first or rest:
            left = BLOCK_BYTES - len(data) % BLOCK_BYTES
            if left < 7:
                data += bytes(left)
                left = BLOCK_BYTES
            part, rest = rest[: left - 7], rest[left - 7 :]
            kind = {(True, False): 1, (True, True): 2, (False, True): 3, (False, False): 4}[
                is_first, bool(rest)
            ]
            crc = zlib.crc32(bytes([kind]) + part)
            data += struct.pack("<IHB", crc, len(part), kind) + part
            is_first = False
        ends.append(len(data))
    return bytes(data), ends


def history(step: int, **values: str) -> Any:
    """A record as wandb-core writes it for one row."""
    from wandb.proto.wandb_internal_pb2 import Record

    record = Record(num=step)
    record.history.step.num = step
    for name, value_json in {"_step": str(step), **values}.items():
        record.history.item.add(nested_key=[name], value_json=value_json)
    return record


@pytest.mark.parametrize("left", [0, 1, 6, 7, 8])
def test_a_record_behind_the_last_bytes_of_a_block_is_found(left: int) -> None:
    """With seven left a chunk begins there that holds nothing yet; with fewer none does."""
    first = bytes(BLOCK_BYTES - len(HEADER) - 7 - left)
    data, ends = framed([first, b"second", b"third"])

    found = list(split_records(data[len(HEADER) :], len(HEADER)))

    assert found == list(zip([first, b"second", b"third"], ends, strict=True))


@pytest.mark.parametrize(
    ("sizes", "cut", "is_run"),
    [
        ([], 0, False),
        ([20], 0, False),
        ([20, 30], 1, False),
        ([20, 30], 0, True),
        ([20, 30, 40], 5, True),
        ([20, 100_000], 0, True),
        ([20, 100_000], 50_000, True),
        ([20, 20_000], 10, False),
        ([100_000], 0, False),
    ],
)
def test_a_file_is_a_run_from_its_second_record_on(
    tmp_path: Path, sizes: list[int], cut: int, is_run: bool
) -> None:
    """The header and the run; a run whose configuration is longer than a block goes on behind."""
    data, _ = framed([bytes(size) for size in sizes])
    path = tmp_path / "run-x.wandb"
    path.write_bytes(data[: len(data) - cut])

    assert wandb_file.holds_a_run(path) is is_run
    assert not wandb_file.holds_a_run(tmp_path / "none.wandb")


sizes = st.one_of(st.integers(0, 200), st.integers(32_000, 33_000), st.integers(0, 100_000))
payload_lists = st.lists(sizes.map(lambda size: random.Random(size).randbytes(size)), max_size=6)


@settings(deadline=None)
@given(payloads=payload_lists)
def test_records_of_any_size_come_back_from_their_chunks(payloads: list[bytes]) -> None:
    data, ends = framed(payloads)

    found = list(split_records(data[len(HEADER) :], len(HEADER)))

    assert found == list(zip(payloads, ends, strict=True))


@settings(deadline=None)
@given(payloads=payload_lists, cut=st.integers(min_value=0))
def test_a_cut_file_yields_exactly_the_whole_records_before_the_cut(
    payloads: list[bytes], cut: int
) -> None:
    """However short a crash leaves the file, whole records survive and nothing else appears."""
    data, ends = framed(payloads)
    cut = len(HEADER) + cut % (len(data) - len(HEADER) + 1)

    found = [payload for payload, _ in split_records(data[len(HEADER) : cut], len(HEADER))]

    assert found == payloads[: sum(end <= cut for end in ends)]


@settings(deadline=None)
@given(payloads=payload_lists.filter(any), bit=st.integers(min_value=0))
def test_a_flipped_bit_ends_the_file_at_the_record_it_is_in(
    payloads: list[bytes], bit: int
) -> None:
    """`wandb sync` stops there as well: what is behind is not counted as written."""
    data, ends = framed(payloads)
    at = len(HEADER) + bit // 8 % (len(data) - len(HEADER))
    damaged = bytearray(data)
    damaged[at] ^= 1 << bit % 8
    found = []

    try:
        for payload, _ in split_records(bytes(damaged[len(HEADER) :]), len(HEADER)):
            found.append(payload)
    except DamagedFile:
        pass

    assert found == payloads[: len(found)]
    # Padding at the end of a block is read by nobody: a bit in it harms nothing.
    assert len(found) >= sum(end <= at for end in ends)
    assert len(found) == sum(end <= at for end in ends) or found == payloads


@settings(deadline=None)
@given(cuts=st.lists(st.integers(min_value=0), max_size=8))
def test_a_file_being_written_is_read_on_from_where_it_ended(cuts: list[int]) -> None:
    """Each record comes once, in order, however the writer's blocks arrive."""
    rows = [history(step, text='"' + "x" * step * 40 + '"') for step in range(60)]
    data, _ = framed([row.SerializeToString() for row in rows])
    found = []
    with tempfile.TemporaryDirectory() as folder:
        tail = RecordTail(Path(folder) / "run-x.wandb")
        for cut in [*sorted(cut % len(data) for cut in cuts), len(data)]:
            tail.path.write_bytes(data[:cut])
            found += [record.num for record in tail.read()]
        assert list(tail.read()) == []

    assert found == list(range(60))


def test_a_record_longer_than_one_read_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "run-x.wandb"
    long = history(1, text='"' + "x" * 100_000 + '"')
    path.write_bytes(framed([long.SerializeToString(), history(2).SerializeToString()])[0])

    assert len(list(RecordTail(path, read_bytes=1000).read())) == 2


@pytest.mark.parametrize(
    "tail", [bytes(5000), b"\0" * 6, b"garbage" * 100], ids=["zeros", "few", "noise"]
)
def test_what_a_power_cut_leaves_behind_the_last_record_is_not_read(
    tmp_path: Path, tail: bytes
) -> None:
    path = tmp_path / "run-x.wandb"
    path.write_bytes(framed([history(1).SerializeToString()])[0] + tail)

    assert [row["_step"] for row in wandb_contents.history_rows(path)] == [1]


def test_a_live_file_with_damage_says_where(tmp_path: Path) -> None:
    path = tmp_path / "run-x.wandb"
    path.write_bytes(framed([history(1).SerializeToString()])[0] + bytes(100))
    tail = RecordTail(path)

    with pytest.raises(DamagedFile, match="checksum mismatch"):
        list(tail.read())


def test_a_whole_chunk_that_is_no_record_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "run-x.wandb"
    path.write_bytes(framed([b"\xff\xff\xff"])[0])

    with pytest.raises(DamagedFile):
        list(RecordTail(path).read())


def test_another_file_is_damage_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "run-x.wandb"
    assert list(RecordTail(path).read()) == []
    path.write_bytes(b"not wandb")

    with pytest.raises(DamagedFile, match="does not begin"):
        list(RecordTail(path).read())


def test_a_file_of_wandb_0_31_is_read_as_ever() -> None:
    """Guards files that exist already: written by wandb 0.31.0, 3 rows, exit code 3."""
    rows = list(wandb_contents.history_rows(GOLDEN))

    assert [row["_step"] for row in rows] == [0, 7, 8]
    assert rows[0]["train/loss"] == 0.5
    assert rows[0]["hw/host.a/x"] == 2**53 + 1
    assert rows[1]["note"] == "\u20ac"
    assert rows[2]["w.bins"] == [0, 0.5, 1]
    assert wandb_contents.config(GOLDEN) == {"lr": 0.1, "model": {"layers": 2}}
    assert wandb_contents.summary(GOLDEN)["val/best"] == 1.5
    assert wandb_file.exit_code(GOLDEN) == 3


@pytest.mark.parametrize("beyond", [1, 7, 14, 15, 30_000])
def test_a_chunk_that_is_longer_than_its_block_is_damage_before_it_is_whole(beyond: int) -> None:
    """It is not waited for: wandb writes none that would get so long."""
    whole, (end,) = framed([b"first"])
    length = BLOCK_BYTES - end - 7 + beyond
    data = whole + struct.pack("<IHB", 0, length, 1) + b"some of it"

    with pytest.raises(DamagedFile, match="longer than its block"):
        list(split_records(data[len(HEADER) :], len(HEADER)))


def test_a_chunk_that_ends_with_its_block_is_waited_for() -> None:
    """One byte shorter, it may still come."""
    whole, (end,) = framed([b"first"])
    data = whole + struct.pack("<IHB", 0, BLOCK_BYTES - end - 7, 1) + b"some of it"

    assert list(split_records(data[len(HEADER) :], len(HEADER))) == [(b"first", end)]
