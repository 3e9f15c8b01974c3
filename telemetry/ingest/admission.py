"""Admission: checks the events of a frame before they are journaled.

In: the events of one frame, as they came.
Out: the payload to journal, its typed events, and what was refused.
Never: changes an event that fits its type. Of one that does not fit, the parts that can be
kept are kept, and the others are left out by name; where nothing can be kept, a Gap takes its
place, so that every sequence number has its row.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import msgspec

from shared.events import (
    CONFIG_MAX_BYTES,
    EVENT_MAX_BYTES,
    NAME_MAX_BYTES,
    ConfigUpdated,
    DecodeError,
    Envelope,
    Event,
    Gap,
    HistogramLogged,
    MetricsLogged,
    RunStarted,
    decode_envelope,
    decode_envelopes,
    encode_event,
    join_events,
    split_events,
)
from shared.text import clean
from shared.wire import FRAME_MAX_EVENTS
from telemetry.ingest.salvage import repacked

COUNT_MAX = 2**53
"""A float holds every count up to this exactly."""


NAME_SHORT: Final = NAME_MAX_BYTES // 4
"""Characters that have room in NAME_MAX_BYTES whatever they are."""


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

    def without(self, count: int) -> Admitted:
        """Return the frame without its first `count` events."""
        rejected = [r._replace(position=r.position - count) for r in self.rejected]
        return Admitted(
            join_events(split_events(self.payload)[count:]),
            self.events[count:],
            [r for r in rejected if r.position >= 0],
        )


def admit(payload: bytes, wall_ns: int, mono_ns: int) -> Admitted:
    """Check every event of a frame; the times stamp the gaps that take the place of bad ones.

    Raises:
        DecodeError: the payload is no array, so that the number of its events is unknown;
            or it has more events than a frame may.
    """
    if len(payload) > EVENT_MAX_BYTES:
        return _admit_one_by_one(payload, wall_ns, mono_ns)
    try:
        events = [_bounded(envelope.event()) for envelope in decode_envelopes(payload)]
    except DecodeError:
        return _admit_one_by_one(payload, wall_ns, mono_ns)
    _check_count(len(events))
    return Admitted(payload, events, [])


def _admit_one_by_one(payload: bytes, wall_ns: int, mono_ns: int) -> Admitted:
    packed: list[bytes] = []
    events: list[Event | None] = []
    rejected: list[Rejected] = []
    raws = split_events(payload)
    # Before anything is built from them: a megabyte of one-byte items is a million.
    _check_count(len(raws))
    for position, raw in enumerate(raws):
        try:
            raw, event = _kept(raw)
        except DecodeError as exc:
            reason = clean(str(exc), 200)
            rejected.append(Rejected(position, raw, reason))
            event = Gap(count=1, by_kind={"unknown": 1}, reason=f"rejected: {reason}")
            raw = encode_event(event, wall_ns, mono_ns)
        packed.append(raw)
        events.append(event)
    is_changed = any(kept is not raw for kept, raw in zip(packed, raws, strict=True))
    return Admitted(join_events(packed) if is_changed else payload, events, rejected)


def _kept(raw: bytes) -> tuple[bytes, Event | None]:
    """Return an event as it came, or the parts of it that can be kept.

    Raises:
        DecodeError: nothing can be kept; it says what is wrong with the event as it came.
    """
    try:
        return raw, _checked(raw)
    except DecodeError as exc:
        try:
            return repacked(decode_envelope(raw), _checked)
        except DecodeError:
            raise exc from None


def _checked(raw: bytes) -> Event | None:
    if len(raw) > EVENT_MAX_BYTES:
        raise DecodeError(f"event of {len(raw)} bytes, at most {EVENT_MAX_BYTES}")
    envelope: Envelope = decode_envelope(raw)
    return _bounded(envelope.event())


def _check_count(count: int) -> None:
    if count > FRAME_MAX_EVENTS:
        raise DecodeError(f"frame of {count} events, at most {FRAME_MAX_EVENTS}")


def _bounded(event: Event | None) -> Event | None:
    """Return the event, if its names and its configuration are not too long.

    Raises:
        DecodeError: one is too long, or a Gap's count is out of range.
    """
    if isinstance(event, MetricsLogged):
        for name in event.values:
            # Characters first: a short name needs no encoding, nor a call, to be known as one.
            if len(name) > NAME_SHORT:
                _check_name(name)
    elif isinstance(event, HistogramLogged):
        _check_name(event.name)
    elif isinstance(event, RunStarted | ConfigUpdated):
        size = len(msgspec.msgpack.encode(event.config))
        if size > CONFIG_MAX_BYTES:
            raise DecodeError(f"config of {size} bytes, at most {CONFIG_MAX_BYTES}")
    elif isinstance(event, Gap):
        _check_gap(event)
    return event


def _check_gap(gap: Gap) -> None:
    """Refuse counts out of range: the totals that they are added to would stay wrong."""
    for count in (gap.count, *gap.by_kind.values()):
        if not 0 <= count <= COUNT_MAX:
            raise DecodeError(f"gap of {count} events")
    if gap.unknown_ms is not None and not 0 <= gap.unknown_ms < math.inf:
        raise DecodeError(f"gap of {gap.unknown_ms} ms")


def _check_name(name: str) -> None:
    size = len(name.encode())
    if size > NAME_MAX_BYTES:
        raise DecodeError(f"name of {size} bytes, at most {NAME_MAX_BYTES}")
