"""Admission: a bad event costs nobody but itself."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis.strategies import lists, sampled_from

from shared.events import (
    CONFIG_MAX_BYTES,
    EVENT_MAX_BYTES,
    ConfigUpdated,
    DecodeError,
    Gap,
    MessageLogged,
    MetricsLogged,
    encode_event,
    join_events,
    split_events,
)
from shared.record import PAYLOAD_MAX_BYTES
from shared.wire import FRAME_MAX_BYTES, FRAME_MAX_EVENTS
from telemetry.admission import admit
from tests.telemetry.wire_client import metric

pack = msgspec.msgpack.encode
GOOD = encode_event(metric(7), 1, 2)
UNKNOWN = pack(("from_the_future", 1, 2, {"a": [1, 2]}))
LONG_NAME = MetricsLogged(kind="train", step=1, values={"n" * 257: 1.0})
BAD = {
    "not an envelope": pack(5),
    "too short": pack(("metrics", 1, 2)),
    "wrong type": pack(("metrics", 1, 2, {"kind": "train", "step": "x", "values": {}})),
    "no body": pack(("metrics", 1, 2, None)),
    "negative time": pack(("metrics", -1, 2, {})),
    "invalid utf-8": pack(("metrics", 1, 2, {"kind": "train", "values": {}})).replace(
        b"train", b"tr\xffin"
    ),
    "int beyond 64 bits": pack(("metrics", 1, 2, {"kind": "train", "values": {"a": 2**64 - 1}})),
    "too many values": pack(
        ("metrics", 1, 2, {"kind": "train", "values": {f"v{i}": 1.0 for i in range(1025)}})
    ),
    "long name": encode_event(LONG_NAME, 1, 2),
    "large config": encode_event(ConfigUpdated(config={"a": "x" * CONFIG_MAX_BYTES}), 1, 2),
    "edges and counts": pack(
        ("histogram", 1, 2, {"kind": "q", "step": 1, "name": "h", "edges": [1.0], "counts": [2.0]})
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_event_is_replaced_by_a_gap_in_its_place(bad):
    """Its neighbours keep their bytes and their sequence numbers. Row 24 of the catalogue."""
    payload = join_events([GOOD, bad, UNKNOWN, GOOD])

    admitted = admit(payload, 5, 6)

    packed = split_events(admitted.payload)
    assert [packed[0], packed[2], packed[3]] == [GOOD, UNKNOWN, GOOD]
    assert admitted.events[0] == admitted.events[3] == metric(7)
    gap = admitted.events[1]
    assert isinstance(gap, Gap) and gap.count == 1 and gap.reason.startswith("rejected: ")
    assert packed[1] == encode_event(gap, 5, 6)
    assert [(r.position, r.raw) for r in admitted.rejected] == [(1, bad)]


@given(lists(sampled_from([GOOD, UNKNOWN, *BAD.values()]), max_size=FRAME_MAX_EVENTS))
def test_every_event_of_a_frame_keeps_its_place(raws):
    """However bad and good are mixed, one event comes out for each that went in."""
    bad_places = [place for place, raw in enumerate(raws) if raw in BAD.values()]

    admitted = admit(join_events(raws), 5, 6)

    out = split_events(admitted.payload)
    assert [raw.position for raw in admitted.rejected] == bad_places
    assert len(out) == len(raws) == len(admitted.events)
    assert all(
        o == r for i, (o, r) in enumerate(zip(out, raws, strict=True)) if i not in bad_places
    )
    # What was admitted is admitted again: the journal never holds what can't be read.
    assert admit(admitted.payload, 7, 8).rejected == []


def test_an_unknown_tag_passes_as_it_came():
    """An event of a newer producer is journaled, and nobody here knows its type. Row 30."""
    payload = join_events([UNKNOWN])

    admitted = admit(payload, 5, 6)

    assert admitted == (payload, [None], [])


def test_an_event_above_the_size_limit_is_bad_even_if_it_decodes():
    """The bound of an event holds whatever it is."""
    large = encode_event(MessageLogged(level="info", text="x" * EVENT_MAX_BYTES), 1, 2)

    admitted = admit(join_events([GOOD, large]), 5, 6)

    assert [r.position for r in admitted.rejected] == [1]


def test_a_name_of_just_the_allowed_bytes_passes():
    """256 bytes, whether they are 256 characters or 128."""
    for name in ("n" * 256, "ü" * 128):
        event = MetricsLogged(kind="train", step=1, values={name: 1.0})
        assert admit(join_events([encode_event(event, 1, 2)]), 5, 6).rejected == []


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc0", b"\x85", pack({"a": 1}), pack("text"), pack([GOOD])[:-1], pack([]) + b"x",
     b"\x91" * 100_000 + b"\xc0"],
    ids=["empty", "nil", "cut map", "map", "text", "cut", "trailing", "deep"],
)  # fmt: skip
def test_what_is_no_array_is_refused_whole(payload):
    """Not even the number of its events can be trusted."""
    with pytest.raises(DecodeError):
        admit(payload, 5, 6)


def test_a_million_tiny_items_are_refused_before_anything_is_built_from_them():
    """A frame has at most 256 events: a gap for each of a million would be 100 MB."""
    items = FRAME_MAX_BYTES - 8
    payload = b"\xdd" + items.to_bytes(4, "big") + b"\xc0" * items

    with pytest.raises(DecodeError, match=f"{items} events, at most {FRAME_MAX_EVENTS}"):
        admit(payload, 5, 6)


def test_the_largest_frame_of_bad_events_still_fits_a_record():
    """Gaps may be longer than what they replace; the journal takes them all the same."""
    raws = [b"\xc0"] * (FRAME_MAX_EVENTS - 1) + [pack(b"x" * (FRAME_MAX_BYTES - 1000))]

    admitted = admit(join_events(raws), 5, 6)

    assert len(admitted.rejected) == FRAME_MAX_EVENTS
    assert len(admitted.payload) <= PAYLOAD_MAX_BYTES
