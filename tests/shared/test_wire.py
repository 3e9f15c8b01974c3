"""The wire: round trips, other versions, and bytes from strangers."""

from __future__ import annotations

import msgpack
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.events import DecodeError, encode_event, join_events
from shared.ids import StreamId, check_stream_id
from shared.record import StreamEntry
from shared.wire import (
    FRAME_MAX_BYTES,
    FRAME_MAX_EVENTS,
    FRAME_TARGET_BYTES,
    SCHEMA,
    VERSION,
    WHOLE_STREAM,
    Ack,
    Data,
    Fin,
    FinAck,
    Hello,
    Nack,
    Welcome,
    decode,
    encode,
)
from tests.shared.strategies import events

U32 = st.integers(0, 2**32 - 1)
SEQ = st.integers(0, 2**62)
NAMES = st.text(max_size=20)
BODIES = st.lists(events().map(lambda e: encode_event(e, 1, 2)), max_size=3).map(join_events)

MESSAGES = st.one_of(
    st.builds(Hello, U32, NAMES, NAMES, NAMES, U32, SEQ),
    st.builds(Welcome, U32, SEQ, SEQ),
    st.builds(Data, U32, SEQ, BODIES.map(msgspec.Raw)),
    st.builds(Ack, U32, st.integers(-1, 2**62), SEQ),
    st.builds(Nack, U32, st.integers(-1, 2**62), NAMES),
    st.builds(Fin, U32, SEQ),
    st.builds(FinAck, U32),
)


@given(message=MESSAGES)
def test_a_message_comes_back_as_it_was_sent(message):
    """Every type, over its whole range; events stay packed."""
    head, body = encode(message)

    found = decode([head, body])

    assert type(found) is type(message)
    assert encode(found) == [head, body]


@given(message=MESSAGES)
def test_items_that_a_newer_version_adds_are_ignored(message):
    """Row 30: a body is an array that may grow at its end."""
    head, body = encode(message)
    longer = bytes([body[0] + 2]) + body[1:] + msgpack.packb({"new": 1}) + b"\xc0"

    found = decode([head, longer])

    assert encode(found) == [head, body]


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"\x01\x07"],
        [b"\x01\x07", b"\x91\x01", b""],
        [b"", b"\x91\x01"],
        [b"\x01", b"\x91\x01"],
        [b"\x01\x07\x00", b"\x91\x01"],
        [bytes([VERSION + 1, 7]), b"\x91\x01"],
        [b"\x01\x00", b"\x91\x01"],
        [b"\x01\x08", b"\x91\x01"],
        [b"\x01\x07", b""],
        [b"\x01\x07", b"\x90"],
        [b"\x01\x07", b"\x91\x01\x01"],
        [b"\x01\x07", b"\x91" + b"\xff"],
        [b"\x01\x07", b"\x91\xcf" + b"\xff" * 8],
        [b"GET / HTTP/1.1", b"Host: localhost"],
        [b"\x01\x03", b"\x93\x01\x01" + b"\x91" * 100_000 + b"\x90"],
        [b"\x01\x01", b"\x96\x01\xa2\xff\xff\xa0\xa0\x01\x00"],
        [b"\x01\x04", b"\x93\x01\xcf\xff\xff\xff\xff\xff\xff\xff\xff\x01"],
        [b"\x01\x04", b"\x93\x01\xfe\x01"],
    ],
)
def test_what_is_no_message_raises_decode_error(frames):
    """Row 24: other frames, versions, types, HTTP, deep nesting, invalid UTF-8, wild seqs."""
    with pytest.raises(DecodeError):
        decode(frames)


def test_a_body_above_the_bound_is_refused_unread():
    """A mebibyte a frame, whatever it holds."""
    with pytest.raises(DecodeError, match="at most"):
        decode([b"\x01\x03", b"\xc1" * (FRAME_MAX_BYTES + 1)])


def test_a_body_of_exactly_the_bound_is_read():
    """A mebibyte; another version counts on it."""
    _, body = encode(Data(1, 0, msgspec.Raw(b"\xc6" + (70_000).to_bytes(4, "big") + bytes(70_000))))
    size = 70_000 + 1024 * 1024 - len(body)
    full = Data(1, 0, msgspec.Raw(b"\xc6" + size.to_bytes(4, "big") + bytes(size)))

    assert len(encode(full)[1]) == 1024 * 1024 == FRAME_MAX_BYTES
    assert decode(encode(full)) == full
    assert (FRAME_MAX_EVENTS, FRAME_TARGET_BYTES) == (256, 256 * 1024)


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        (Fin(2**32 - 1, 0), Fin(2**32, 0)),
        (Fin(0, 2**62), Fin(0, 2**62 + 1)),
        (Nack(0, -1, ""), Nack(0, -2, "")),
    ],
)
def test_numbers_are_refused_beyond_their_bounds_only(within, beyond):
    """A seq plus a frame's count stays a 64-bit number."""
    assert decode(encode(within)) == within
    with pytest.raises(DecodeError):
        decode(encode(beyond))


@given(frames=st.lists(st.binary(max_size=60), max_size=3))
@example([b"\x01\x03", b"\xdd\xff\xff\xff\xff"])
def test_any_frames_raise_only_decode_error(frames):
    """Row 24: random bytes."""
    try:
        decode(frames)
    except DecodeError:
        return


@given(kind=st.integers(0, 9), body=st.binary(max_size=60))
def test_any_body_under_a_valid_head_raises_only_decode_error(kind, body):
    """Row 24: random bytes where they come furthest."""
    try:
        decode([bytes([VERSION, kind]), body])
    except DecodeError:
        return


def test_the_whole_stream_is_no_event_of_it():
    """A NACK of the stream can't be taken for one of an event."""
    assert WHOLE_STREAM < 0
    assert decode(encode(Nack(1, WHOLE_STREAM, "why"))) == Nack(1, WHOLE_STREAM, "why")


def test_a_stream_has_one_identity_on_the_wire_and_in_a_journal():
    """It is a key: equal where its three parts are, and written as those three in a row."""
    said = Hello(7, "run", "session", "rank0", SCHEMA).stream_id

    listed = StreamEntry("run", "session", "rank0", -1).stream_id

    assert {said: "here"}[listed] == "here"
    assert list(said) == ["run", "session", "rank0"]


@pytest.mark.parametrize("part", ["run_id", "session", "source"])
def test_a_stream_with_a_bad_part_is_refused_by_its_name(part):
    """The other two parts are good."""
    good = StreamId("run", "session", "rank0")
    assert check_stream_id(good) is good

    with pytest.raises(ValueError, match=part.replace("_", " ")):
        check_stream_id(good._replace(**{part: "../x"}))
