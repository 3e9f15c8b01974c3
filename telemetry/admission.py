"""Admission: which events of a frame the journal takes.

In: the events of one frame, as they came.
Out: the payload to journal, its typed events, and what was refused.
Never: changes an event. A bad one is replaced by a Gap, so that every
sequence number keeps its row.
"""

from __future__ import annotations

from typing import NamedTuple

from shared.events import (
    EVENT_MAX_BYTES,
    DecodeError,
    Envelope,
    Event,
    Gap,
    decode_envelope,
    decode_envelopes,
    encode_event,
    join_events,
    split_events,
)


class Rejected(NamedTuple):
    """An event that will never be accepted."""

    position: int
    raw: bytes
    reason: str


class Admitted(NamedTuple):
    """A frame as it goes into the journal. events has None where the tag is unknown."""

    payload: bytes
    events: list[Event | None]
    rejected: list[Rejected]


def admit(payload: bytes, wall_ns: int, mono_ns: int) -> Admitted:
    """Check every event of a frame; the times stamp the gaps that take the place of bad ones.

    Raises:
        DecodeError: not a list of anything, so not even its length can be trusted.
    """
    try:
        events = [envelope.event() for envelope in decode_envelopes(payload)]
    except DecodeError:
        return _admit_one_by_one(payload, wall_ns, mono_ns)
    if len(payload) > EVENT_MAX_BYTES and len(events) > 0:
        return _admit_one_by_one(payload, wall_ns, mono_ns)
    return Admitted(payload, events, [])


def _admit_one_by_one(payload: bytes, wall_ns: int, mono_ns: int) -> Admitted:
    packed: list[bytes] = []
    events: list[Event | None] = []
    rejected: list[Rejected] = []
    for position, raw in enumerate(split_events(payload)):
        try:
            event = _checked(raw)
        except DecodeError as exc:
            reason = str(exc)[:200]
            rejected.append(Rejected(position, raw, reason))
            event = Gap(count=1, by_kind={"unknown": 1}, reason=f"rejected: {reason}")
            raw = encode_event(event, wall_ns, mono_ns)
        packed.append(raw)
        events.append(event)
    return Admitted(join_events(packed) if rejected else payload, events, rejected)


def _checked(raw: bytes) -> Event | None:
    if len(raw) > EVENT_MAX_BYTES:
        raise DecodeError(f"event of {len(raw)} bytes, at most {EVENT_MAX_BYTES}")
    envelope: Envelope = decode_envelope(raw)
    return envelope.event()
