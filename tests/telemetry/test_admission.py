"""Admission: a bad event costs nobody but itself."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis.strategies import (
    binary,
    booleans,
    dictionaries,
    floats,
    integers,
    lists,
    none,
    recursive,
    sampled_from,
    text,
)

from shared.events import (
    EVENT_MAX_BYTES,
    DecodeError,
    Event,
    Gap,
    MessageLogged,
    MetricsLogged,
    decode_envelope,
    encode_event,
    join_events,
    split_events,
)
from shared.record import PAYLOAD_MAX_BYTES
from shared.wire import FRAME_MAX_BYTES, FRAME_MAX_EVENTS
from telemetry.ingest.admission import admit
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
    "long name": encode_event(LONG_NAME, 1, 2),
    "negative gap": encode_event(Gap(count=-1, reason="x"), 1, 2),
    "negative kind": encode_event(Gap(count=1, by_kind={"a": -1}, reason="x"), 1, 2),
    "gap beyond counting": encode_event(Gap(count=2**60, reason="x"), 1, 2),
    "gap of a negative time": encode_event(Gap(count=0, reason="x", unknown_ms=-1.0), 1, 2),
    "only bad values": pack(("metrics", 1, 2, {"kind": "train", "values": {"a": None, "b": []}})),
    "values of another type": pack(("metrics", 1, 2, {"kind": "train", "values": [1.0]})),
    "empty of all": pack(("metrics", 1, 2, {})),
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


def admitted_one(raw: bytes) -> Event | None:
    """The only event of a frame, none of which was refused."""
    admitted = admit(join_events([GOOD, raw, GOOD]), 5, 6)
    assert admitted.rejected == [] and admitted.events[0] == admitted.events[2] == metric(7)
    # What is journaled reads as what sinks are told, and is admitted as it is.
    journaled = split_events(admitted.payload)[1]
    assert decode_envelope(journaled).event() == admitted.events[1]
    assert decode_envelope(journaled).wall_ns == decode_envelope(raw).wall_ns
    assert admit(admitted.payload, 7, 8).payload == admitted.payload
    return admitted.events[1]


def metrics_of(values: object, **fields: object) -> bytes:
    return pack(("metrics", 11, 12, {"kind": "train", "step": 3, "values": values, **fields}))


@pytest.mark.parametrize("count", [1025, 3000, 5000])
def test_of_a_row_that_is_too_wide_the_first_1024_values_are_kept_and_the_rest_is_named(count):
    """One number stays one row: splitting is the emitter's. Row 41."""
    event = admitted_one(metrics_of({f"v{i}": float(i) for i in range(count)}))

    assert list(event.values) == [f"v{i}" for i in range(1024)] and event.step == 3
    assert event.left_out_count == count - 1024
    assert next(iter(event.left_out.items())) == ("v1024", "too many values")
    assert len(event.left_out) == min(64, count - 1024)


BAD_VALUES = {"none": None, "list": [1.0], "map": {"a": 1}, "u64": 2**64 - 1, "bytes": b"x",
              "n" * 257: 1.0}  # fmt: skip


@pytest.mark.parametrize("name", BAD_VALUES, ids=lambda name: name[:8])
def test_a_bad_value_costs_itself_and_is_named(name):
    """Whatever a foreign client takes for a value. Row 41."""
    event = admitted_one(metrics_of({"a": 1.5, name: BAD_VALUES[name], "b": "text"}))

    assert event.values == {"a": 1.5, "b": "text"} and event.left_out_count == 1
    (told,) = event.left_out
    assert told.startswith(name[:50])


@pytest.mark.parametrize(
    ("step", "kept"), [(10.0, 10), (10.5, None), ("x", None), (2**64 - 1, None), (None, None)]
)
def test_a_step_is_taken_as_it_was_meant_or_left_out(step, kept):
    """10.0 is step 10. Row 41."""
    event = admitted_one(metrics_of({"a": 1.0}, step=step))

    assert event.step == kept and event.values == {"a": 1.0}
    assert ("step" in event.left_out) is (kept is None and step is not None)


@pytest.mark.parametrize("tag", ["run_started", "config_updated"])
def test_of_a_config_that_is_too_large_the_small_parts_are_kept(tag):
    """A learning rate outlives a table of labels. Row 41."""
    config = {"lr": 0.1, "labels": ["label"] * 20_000, "nested": {"a": 1, 2: "x"}}
    event = admitted_one(pack((tag, 1, 2, {"project": "p", "name": "n", "config": config})))

    assert event.config["lr"] == 0.1 and event.left_out_count >= 1


def test_fields_of_another_type_are_left_out_of_a_run_that_starts():
    """The run is in every sink all the same. Row 41."""
    body = {"project": "p", "name": None, "group": 3, "tags": [1], "world_size": "many"}
    event = admitted_one(pack(("run_started", 1, 2, body)))

    assert event.project == "p" and event.left_out_count == 4
    assert set(event.left_out) == {"name", "group", "tags", "world_size"}


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_a_text_that_is_too_long_is_cut(letter):
    """Its beginning says most of it. Row 41."""
    text = letter * EVENT_MAX_BYTES
    event = admitted_one(encode_event(MessageLogged(level="info", text=text), 1, 2))

    assert event.text.startswith(letter * 1000) and event.text.endswith("(cut)")


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


json_like = recursive(
    none() | booleans() | integers(-(2**63), 2**64 - 1) | floats() | text(max_size=5) | binary(),
    lambda inner: lists(inner, max_size=4) | dictionaries(text(max_size=5) | integers(0, 9), inner),
    max_leaves=12,
)
tags = sampled_from(["metrics", "run_started", "config_updated", "run_finished", "message", "gap"])
field_names = sampled_from(
    ["kind", "step", "values", "config", "name", "tags", "text", "count", "reason", "status"]
)


@settings(max_examples=300)
@given(tag=tags, body=dictionaries(field_names, json_like))
def test_any_body_is_taken_in_part_or_refused_and_reads_back(tag, body):
    """Nothing that a client may pack raises, or becomes a record that can't be read."""
    admitted = admit(join_events([pack((tag, 1, 2, body))]), 5, 6)

    (journaled,) = split_events(admitted.payload)
    assert decode_envelope(journaled).event() is not None
    assert admit(admitted.payload, 7, 8).payload == admitted.payload


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
