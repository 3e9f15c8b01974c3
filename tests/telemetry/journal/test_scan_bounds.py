"""The scan at its bounds: how far it searches, and when it has to see more first."""

from __future__ import annotations

from shared.record import EVENTS, RECORD_HEADER_BYTES, RESYNC_MAX_BYTES, encode_record
from telemetry.journal.scan import HEADER, REST, TAIL, Damage, scan

RECORD = encode_record(EVENTS, 0, 7, 7, 1, b"events")
LAST_PLACE = 1 + RESYNC_MAX_BYTES
"""Offset of the last record that a search from byte 0 on finds."""


def scanned(data: bytes, is_end: bool) -> list[object]:
    return list(scan(memoryview(data), 3, is_end))


def test_a_search_waits_until_the_last_place_is_written() -> None:
    """One byte less, and the header at the last place may be the one that is being written."""
    data = bytes(LAST_PLACE) + RECORD[:RECORD_HEADER_BYTES]

    (damage,) = scanned(data, is_end=False)

    assert scanned(data[:-1], is_end=False) == []
    assert damage[:5] == (HEADER, 0, LAST_PLACE, 3, 7)  # type: ignore[index]


def test_a_search_ends_behind_the_last_place() -> None:
    """The rest is given up by name, at the end of a segment as a torn tail."""
    data = bytes(LAST_PLACE + 1) + RECORD

    (rest,), (tail,) = scanned(data, is_end=False), scanned(data, is_end=True)

    assert rest[:5] == (REST, 0, len(data), 3, None)  # type: ignore[index]
    assert tail[:5] == (TAIL, 0, len(data), 3, None)  # type: ignore[index]


def test_a_torn_tail_says_how_long_it_is() -> None:
    """The bytes from its own beginning, not from that of the segment."""
    whole = encode_record(EVENTS, 0, 3, 3, 4, b"events")

    found = scanned(whole + RECORD[:-1], is_end=True)

    size = len(RECORD) - 1
    assert found[1:] == [Damage(TAIL, len(whole), len(whole) + size, 7, None, f"{size} bytes")]
