"""Events: their round trip, what a newer producer may say, and what hostile bytes may not do."""

from __future__ import annotations

import math

import msgpack
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.events import (
    ConfigUpdated,
    DecodeError,
    Envelope,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
    decode_envelope,
    decode_envelopes,
    encode_event,
    join_events,
    split_events,
)
from tests.shared.strategies import INT64, TIMES, events, same

DEEP = 100_000


def envelope_bytes(tag: str, body: bytes) -> bytes:
    """An envelope around a body that may be anything."""
    return b"\x94" + msgpack.packb(tag) + b"\x01\x02" + body


@given(event=events(), wall_ns=TIMES, mono_ns=TIMES)
@example(
    MetricsLogged(
        kind="train",
        step=-(2**63),
        values={"a": math.nan, "b": math.inf, "c": -math.inf, "d": 2**63 - 1, "e": -0.0},
    ),
    2**63 - 1,
    0,
)
def test_an_event_comes_back_as_it_was_said(event, wall_ns, mono_ns):
    """Types and values survive exactly: NaN, infinities, -0.0 and the ends of int64 too."""
    envelope = decode_envelope(encode_event(event, wall_ns, mono_ns))

    assert (envelope.tag, envelope.wall_ns, envelope.mono_ns) == (event.TAG, wall_ns, mono_ns)
    assert same(envelope.event(), event)


def test_an_event_of_an_unknown_tag_is_kept_as_it_came():
    """Row 30 of the fault catalogue: a newer producer's event is None here, and raw."""
    body = msgpack.packb({"anything": [1, {"deep": None}]})

    envelope = decode_envelope(envelope_bytes("from_the_future", body))

    assert envelope.event() is None
    assert bytes(envelope.body) == body
    assert msgspec.msgpack.encode(envelope) == envelope_bytes("from_the_future", body)


def test_unknown_fields_are_skipped():
    """Row 30: what a newer producer adds to a body, or behind it, does not disturb."""
    body = msgpack.packb({"kind": "train", "values": {"a": 1}, "colour": {"x": [1, 2]}})
    data = b"\x95" + envelope_bytes("metrics", body)[1:] + msgpack.packb("another item")

    event = decode_envelope(data).event()

    assert event == MetricsLogged(kind="train", values={"a": 1})


def test_an_event_of_an_older_producer_has_the_defaults_of_added_fields():
    """Row 30: only what never had a default has to be there."""
    body = msgpack.packb({"project": "p", "name": "n"})

    event = decode_envelope(envelope_bytes("run_started", body)).event()

    assert event == RunStarted(project="p", name="n")
    assert event.world_size == 1 and event.resumed_from_step is None


PARTIAL = [
    RunStarted(project="p", name="n"),
    ConfigUpdated(config={}),
    MetricsLogged(kind="train", values={}),
    HistogramLogged(kind="quant", name="h", edges=[0.0, 1.0], counts=[1.0]),
    MessageLogged(level="info", text="t"),
    RunFinished(status="finished"),
]


@pytest.mark.parametrize("event", PARTIAL, ids=lambda event: event.TAG)
def test_what_was_left_out_of_an_event_is_told_and_only_then_takes_bytes(event):
    """An older reader skips both fields; an event that is whole is packed as ever."""
    partial = msgspec.structs.replace(event, left_out={"x": "None"}, left_out_count=70)

    whole, told = encode_event(event, 1, 2), encode_event(partial, 1, 2)

    assert b"left_out" not in whole and decode_envelope(whole).event() == event
    assert decode_envelope(told).event() == partial


def test_a_run_does_not_say_a_mode_unless_its_producer_does():
    """The sidecar decides then: online with a key, offline without."""
    assert RunStarted(project="p", name="n").wandb_mode == ""


def test_of_duplicate_keys_the_last_one_counts():
    """MessagePack allows them; one answer is as good as another, an exception is not."""
    body = b"\x83\xa4kind\xa1b\xa4kind\xa1a\xa6values\x82\xa1x\x01\xa1x\x02"

    event = decode_envelope(envelope_bytes("metrics", body)).event()

    assert event == MetricsLogged(kind="a", values={"x": 2})


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\x90"


HOSTILE_BODIES = {
    "100,000-deep arrays": b"\x81\xa6config\x81\xa1a" + nested(DEEP),
    "100,000-deep maps": b"\x81\xa6config" + b"\x81\xa1a" * DEEP + b"\x80",
    "100,000-deep arrays in an ignored field": b"\x82\xa6config\x80\xa1x" + nested(DEEP),
    "invalid UTF-8": b"\x81\xa6config\x81\xa1a\xa2\xff\xfe",
    "invalid UTF-8 in a key": b"\x81\xa6config\x81\xa1\xff\x01",
    "a key that can't be one": b"\x81\xa6config\x81\x80\x01",
    "a time that is none": b"\x81\xa6config\x81\xa1a\xc7\x0c\xff" + b"\xff" * 12,
    "a map of 4 billion": b"\x81\xa6config\xdf\xff\xff\xff\xff",
    "a string of 4 GB": b"\x81\xa6config\x81\xa1a\xdb\xff\xff\xff\xff",
    "a list for a map": b"\x90",
    "nothing": b"",
    "a number for a map": b"\x81\xa6config\x01",
}


@pytest.mark.parametrize("body", HOSTILE_BODIES.values(), ids=HOSTILE_BODIES)
def test_a_hostile_body_raises_only_decode_error(body):
    """Row 24: whatever the decoder makes of it, the sidecar sees one exception."""
    data = envelope_bytes("config_updated", body)

    with pytest.raises(DecodeError):
        decode_envelope(data).event()
    with pytest.raises(DecodeError):
        for envelope in decode_envelopes(join_events([data])):
            envelope.event()


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_an_int_beyond_int64_is_no_value(value):
    """Bounded, since a sink's column or a log line has no more."""
    body = msgpack.packb({"kind": "a", "values": {"x": value}})

    with pytest.raises(DecodeError):
        decode_envelope(envelope_bytes("metrics", body)).event()


@pytest.mark.parametrize(
    ("counts", "edges"), [(1, 1), (2, 1), (0, 0), (513, 514)], ids=lambda n: str(n)
)
def test_a_histogram_with_the_wrong_number_of_edges_is_no_event(counts, edges):
    """n + 1 edges around n counts, n at most 512. A constructor does not raise: it is
    called in the training loop, and the emitter says and counts what it can't send."""
    body = {"kind": "a", "name": "n", "edges": [0.0] * edges, "counts": [0.0] * counts}

    with pytest.raises(DecodeError):
        decode_envelope(envelope_bytes("histogram", msgpack.packb(body))).event()
    assert HistogramLogged(**body).edges == body["edges"]


@given(data=st.binary(max_size=200))
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(nested(DEEP))
@example(b"")
def test_any_bytes_raise_only_decode_error(data):
    """Row 24: random bytes, and arrays that claim four billion items."""
    for decode in (decode_envelope, decode_envelopes, split_events):
        try:
            found = decode(data)
        except DecodeError:
            continue
        for envelope in found if decode is decode_envelopes else [found]:
            if isinstance(envelope, Envelope):
                try:
                    envelope.event()
                except DecodeError:
                    continue


@given(event=events(), place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_changed_byte_raises_only_decode_error(event, place, value):
    """Nearly valid bytes reach deeper into the decoders than random ones."""
    data = bytearray(encode_event(event, 1, 2))
    data[place % len(data)] = value

    try:
        decode_envelope(bytes(data)).event()
    except DecodeError:
        return


@given(event=events(), cut=st.integers(0, 10**6))
def test_truncated_or_trailing_bytes_are_wrong(event, cut):
    """Row 24: an event is all of its bytes, and nothing behind them."""
    data = encode_event(event, 1, 2)

    with pytest.raises(DecodeError):
        decode_envelope(data[: cut % len(data)])
    with pytest.raises(DecodeError):
        decode_envelope(data + b"\xc0")


@given(packed=st.lists(INT64.map(msgpack.packb), max_size=40))
def test_joined_events_split_into_the_same_bytes(packed):
    """join_events and split_events are each other's inverse."""
    joined = join_events(packed)

    assert split_events(joined) == packed
    assert msgpack.unpackb(joined) == [msgpack.unpackb(one) for one in packed]


@pytest.mark.parametrize("count", [0, 15, 16, 256, 65535])
def test_any_number_of_events_up_to_65535_can_be_joined(count):
    """At each size of the array's head."""
    assert len(split_events(join_events([b"\x01"] * count))) == count


def test_more_events_than_an_array_head_counts_are_refused():
    """No frame has so many."""
    with pytest.raises(ValueError, match="too many"):
        join_events([b"\x01"] * 65536)


def test_config_that_msgpack_has_and_json_has_not_still_decodes():
    """A foreign client may send extension types; the journal keeps them."""
    body = b"\x81\xa6config\x81\xa1a\xd4\x05\x01"

    event = decode_envelope(envelope_bytes("config_updated", body)).event()

    assert isinstance(event, ConfigUpdated)
