"""Records and segments: round trips, cuts, flipped bits, and lengths that lie."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.record import (
    EVENTS,
    LATE,
    PAYLOAD_MAX_BYTES,
    RECORD_HEADER_BYTES,
    RESYNC_MAX_BYTES,
    SEGMENT_HEADER_BYTES,
    STREAMS,
    TABLE_MAX_BYTES,
    CorruptRecord,
    StreamEntry,
    decode_record_header,
    decode_segment_header,
    decode_table,
    encode_record,
    encode_segment_header,
    encode_table,
    find_record,
    payload_of,
)

U64 = st.integers(0, 2**64 - 1)
ENTRIES = st.builds(StreamEntry, *[st.text(max_size=8)] * 3, st.integers(-1, 2**62))
TABLES = st.dictionaries(st.integers(0, 2**32 - 1), ENTRIES, max_size=4)
RECORDS = st.tuples(
    st.sampled_from([EVENTS, STREAMS]),
    st.integers(0, 2**32 - 1),
    U64,
    U64,
    st.integers(0, 2**16 - 1),
    st.binary(max_size=80),
)


@given(fields=RECORDS, before=st.binary(max_size=5), behind=st.binary(max_size=5))
def test_a_record_comes_back_as_it_was_written(fields, before, behind):
    """Wherever it stands in a buffer."""
    type_, stream, row, base_seq, count, payload = fields
    buf = memoryview(before + encode_record(*fields) + behind)

    header = decode_record_header(buf, len(before))

    assert header is not None
    assert (header.type, header.stream, header.row) == (type_, stream, row)
    assert (header.base_seq, header.count, header.next_row) == (base_seq, count, row + count)
    assert payload_of(buf, len(before), header) == payload
    assert len(before) + header.size == len(buf) - len(behind)


@given(fields=RECORDS, cut=st.integers(0, 10**6))
def test_a_record_that_is_cut_short_is_not_there_yet(fields, cut):
    """None, and no exception: at the tail of a live file it only was not written yet."""
    whole = encode_record(*fields)
    buf = memoryview(whole)[: cut % len(whole)]

    header = decode_record_header(buf)

    if len(buf) < RECORD_HEADER_BYTES:
        assert header is None
    else:
        assert header is not None and payload_of(buf, 0, header) is None


@given(fields=RECORDS, bit=st.integers(0, 10**6))
def test_any_flipped_bit_of_a_record_is_noticed(fields, bit):
    """Row 8 of the fault catalogue: in its header or in its payload."""
    data = bytearray(encode_record(*fields))
    bit %= len(data) * 8
    data[bit // 8] ^= 1 << bit % 8

    with pytest.raises(CorruptRecord):
        header = decode_record_header(memoryview(data))
        assert header is not None
        payload_of(memoryview(data), 0, header)


def test_a_payload_as_large_as_it_may_be_comes_back():
    """The bound is the last that is taken."""
    payload = bytes(PAYLOAD_MAX_BYTES)
    buf = memoryview(encode_record(EVENTS, 0, 0, 0, 1, payload))

    header = decode_record_header(buf)

    assert header is not None and payload_of(buf, 0, header) == payload


@pytest.mark.parametrize(("flags", "is_late"), [(0, False), (LATE, True), (0xFE, False)])
def test_flags_come_back_and_those_of_later_versions_mean_nothing(flags, is_late):
    """A newer program may set more of them."""
    buf = memoryview(encode_record(EVENTS, 0, 0, 0, 1, b"x", flags))

    header = decode_record_header(buf)

    assert header is not None and (header.flags, header.is_late) == (flags, is_late)


@pytest.mark.parametrize(("length", "is_refused"), [(TABLE_MAX_BYTES, False), (2**32 - 1, True)])
def test_a_table_as_large_as_it_may_be_is_waited_for_and_no_larger_one(length, is_refused):
    """Row 10: the rest of it may just not be read yet."""
    head = struct.pack("<8sHHI16sQ", b"TELJRNL\0", 1, 0, length, bytes(16), 0)
    data = memoryview(head + bytes(4))

    if is_refused:
        with pytest.raises(CorruptRecord, match="stream table of"):
            decode_segment_header(data)
    else:
        assert decode_segment_header(data) is None


@pytest.mark.parametrize("length", [PAYLOAD_MAX_BYTES + 1, 2**32 - 1])
def test_a_huge_length_is_refused_though_its_checksum_is_right(length):
    """Row 10: nothing is allocated for it, and nobody waits for its bytes."""
    head = struct.pack("<HBBIQQHHII", 0x7E1E, 1, 0, 0, 0, 0, 1, 0, length, 0)
    data = head + struct.pack("<I", zlib.crc32(head))

    with pytest.raises(CorruptRecord, match="payload of"):
        decode_record_header(memoryview(data))


def test_zeros_are_no_record():
    """Row 9: a tail that the file system filled."""
    with pytest.raises(CorruptRecord):
        decode_record_header(memoryview(bytes(4096)))


@given(uuid=st.binary(min_size=16, max_size=16), row=U64, table=TABLES, behind=st.binary())
def test_a_segment_header_comes_back_as_it_was_written(uuid, row, table, behind):
    """With its stream table, and where the first record begins."""
    data = encode_segment_header(uuid, row, table)

    header = decode_segment_header(memoryview(data + behind))

    assert header == (uuid, row, table, len(data))
    assert decode_table(encode_table(table)) == table


@given(row=U64, table=TABLES, cut=st.integers(0, 10**6))
def test_a_segment_header_that_is_cut_short_is_not_there_yet(row, table, cut):
    """At every length of it."""
    data = encode_segment_header(bytes(16), row, table)

    assert decode_segment_header(memoryview(data)[: cut % len(data)]) is None


@given(row=U64, table=TABLES, bit=st.integers(0, 10**6))
def test_any_flipped_bit_of_a_segment_header_is_noticed(row, table, bit):
    """As damage; or, where the table's length grew, as bytes that are missing."""
    data = bytearray(encode_segment_header(bytes(16), row, table))
    bit %= len(data) * 8
    data[bit // 8] ^= 1 << bit % 8
    length_is_damaged = 12 <= bit // 8 < 16

    try:
        header = decode_segment_header(memoryview(data))
    except CorruptRecord:
        return
    assert header is None and length_is_damaged


def test_a_segment_of_a_newer_version_is_named_as_one():
    """Not taken for damage: somebody has to update the program."""
    data = bytearray(encode_segment_header(bytes(16), 0, {}))
    data[8] = 2

    with pytest.raises(CorruptRecord, match="version 2"):
        decode_segment_header(memoryview(data))


def test_a_table_of_gigabytes_is_refused_before_it_is_read():
    """Row 10, for the other length field."""
    data = bytearray(encode_segment_header(bytes(16), 0, {}))
    data[12:16] = b"\xff\xff\xff\xff"

    with pytest.raises(CorruptRecord, match="stream table of"):
        decode_segment_header(memoryview(data))


@pytest.mark.parametrize("data", [b"", b"\x91" * 100_000, b"\x81\x01\x90", b"\x81\xa1a\x94"])
def test_a_table_that_is_none_is_corrupt(data):
    """One exception, for deep nesting and missing fields too."""
    with pytest.raises(CorruptRecord):
        decode_table(data)


def test_a_stream_entry_may_grow_at_its_end():
    """Row 30: a later version's table still reads."""
    assert decode_table(b"\x81\x00\x95\xa1r\xa1s\xa1x\x05\xc0") == {
        0: StreamEntry("r", "s", "x", 5)
    }


@given(noise=st.binary(max_size=300), row=st.integers(0, 1000), row_min=st.integers(0, 1000))
def test_a_record_is_found_behind_noise_if_its_row_is_high_enough(noise, row, row_min):
    """Row 8: later records are found; those that were read already are not."""
    buf = memoryview(noise + encode_record(EVENTS, 0, row, 0, 1, b"x"))

    found = find_record(buf, 0, row_min)

    assert found == (len(noise) if row >= row_min else None)


@given(noise=st.binary(max_size=100).map(lambda data: data + b"\x1e\x7e" * 30))
def test_magic_bytes_without_a_record_do_not_mislead(noise):
    """A checksum is behind each."""
    record = encode_record(EVENTS, 0, 7, 0, 1, b"x")

    assert find_record(memoryview(noise + record), 0, 0) == len(noise)


@settings(max_examples=10)
@given(beyond=st.integers(-2, 2))
def test_the_search_looks_at_one_mebibyte_and_no_more(beyond):
    """Row 10: no long scan."""
    distance = RESYNC_MAX_BYTES + beyond
    buf = memoryview(bytes(distance) + encode_record(EVENTS, 0, 0, 0, 1, b"x"))

    assert find_record(buf, 0, 0) == (distance if beyond <= 0 else None)
    assert find_record(buf, 3, 0) == distance


def test_the_sizes_on_disk_stay_what_they_are():
    """Old journals are read by offsets."""
    assert (SEGMENT_HEADER_BYTES, RECORD_HEADER_BYTES) == (44, 40)


def test_a_record_behind_another_that_is_cut_short_is_not_there_yet():
    """At whatever byte, of its header or its payload."""
    first, second = (encode_record(EVENTS, 0, row, row, 1, b"payload") for row in (3, 4))
    whole = memoryview(first + second)

    for cut in range(len(first), len(whole)):
        buf = whole[:cut]
        header = decode_record_header(buf, len(first))
        if cut < len(first) + RECORD_HEADER_BYTES:
            assert header is None
        else:
            assert header is not None and payload_of(buf, len(first), header) is None
    assert payload_of(whole, len(first), decode_record_header(whole, len(first))) == b"payload"
