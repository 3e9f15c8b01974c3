"""Events: the typed facts that a trainer, a sampler or the sidecar records.

In: values from a process, or the bytes of an envelope.
Out: frozen structs, or those bytes.
Never: knows how events travel or where they are kept.

One event on the wire and in the journal is one MessagePack array, its envelope:

    [tag str, wall_ns int, mono_ns int, body map]

The body stays raw until its tag is known, so an event of a newer producer is
kept as it came. Fields that a later version adds to a body have defaults;
types never change; unknown fields are skipped on decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, TypeVar

import msgspec

from shared.text import clean

Scalar = float | int | bool | str
"""Type of a metric value or a config entry. NaN and infinity are legal values."""

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Scalar = float | Int64 | bool | str

EVENT_MAX_BYTES: Final = 192 * 1024
VALUES_MAX: Final = 1024
NAME_MAX_BYTES: Final = 256
CONFIG_MAX_BYTES: Final = 64 * 1024
HISTOGRAM_MAX_BINS: Final = 512
LEFT_OUT_MAX: Final = 64
"""Number of names at most in left_out; left_out_count counts all parts left out."""

TRAIN, VAL, QUANT, HARDWARE, CUSTOM = KINDS = ("train", "val", "quant", "hardware", "custom")
FINISHED, FAILED, PREEMPTED, LOST = ("finished", "failed", "preempted", "lost")
SEVERITIES: Final = ("info", "warning", "error", "critical")


class DecodeError(Exception):
    """Error: bytes that do not have the expected form; the message says where and why."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all events. The times of an event are in its envelope, taken by emit()."""

    TAG: ClassVar[str] = ""


class PartialEvent(Event, frozen=True, kw_only=True):
    """Base of events of which a part may be missing, because it could not be recorded.

    left_out: the cleaned names of such parts with the reason of each, at most
    LEFT_OUT_MAX of them; left_out_count: how many there are in all.
    """

    left_out: dict[str, str] = {}
    left_out_count: int = 0


class RunStarted(PartialEvent, frozen=True, kw_only=True):
    """Record that a producer has started, or restarted, to work on a run."""

    TAG: ClassVar[str] = "run_started"

    project: str = ""
    name: str = ""
    tags: list[str] = []
    notes: str = ""
    wandb_mode: str = ""
    """online, offline or disabled; empty if the producer did not say."""
    group: str = ""
    config: dict[str, Any] = {}
    rank: int = 0
    world_size: int = 1
    host: str = ""
    pid: int = 0
    process_start_ns: int = 0
    gpu_uuids: list[str] = []
    resumed_from_step: int | None = None
    entity: str = ""
    job_type: str = ""
    wandb_base_url: str = ""
    """URL of the W&B server that the producer is set up for. The sidecar only compares it
    with its own."""
    wandb_sweep_id: str = ""
    """The W&B sweep that this run is one of."""
    launch_id: str = ""
    """Id of the `telemetry run` whose command started this run; empty if none did."""


class ConfigUpdated(PartialEvent, frozen=True, kw_only=True):
    """Configuration that is known only after model and data are built."""

    TAG: ClassVar[str] = "config_updated"

    config: dict[str, Any]


class MetricsLogged(PartialEvent, frozen=True, kw_only=True):
    """Named values of one moment; step is the optimizer step, or None.

    kind is one of KINDS; a newer producer may have others.
    """

    TAG: ClassVar[str] = "metrics"

    kind: str
    step: Int64 | None = None
    values: Annotated[dict[str, _Scalar], msgspec.Meta(max_length=VALUES_MAX)]


class HistogramLogged(PartialEvent, frozen=True, kw_only=True):
    """Counts between ascending edges; there is one edge more than counts."""

    TAG: ClassVar[str] = "histogram"

    kind: str
    step: Int64 | None = None
    name: str
    edges: Annotated[list[float], msgspec.Meta(max_length=HISTOGRAM_MAX_BINS + 1)]
    counts: Annotated[list[float], msgspec.Meta(max_length=HISTOGRAM_MAX_BINS)]

    def check(self) -> None:
        """Check that edges and counts fit. Not done in the constructor: training must not fail.

        Raises:
            ValueError: not one edge more than counts.
        """
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(
                f"histogram {clean(self.name, 60)!r} has {len(self.edges)} edges "
                f"for {len(self.counts)} counts"
            )


class MessageLogged(PartialEvent, frozen=True, kw_only=True):
    """A line for people: a stage transition, an alert, a warning."""

    TAG: ClassVar[str] = "message"

    level: str
    text: str


class AlertChanged(PartialEvent, frozen=True, kw_only=True):
    """Onset or end of a condition of the hardware, a run or a sink that people should know of.

    The name and the subject together identify the condition: an event with is_active begins
    it, the next one without ends it. A second event with is_active, without an end between,
    only brings a new text, severity or value.
    """

    TAG: ClassVar[str] = "alert"

    name: str
    """Kind of the condition, stable, for rules and counts: `gpu_xid`, `sink_behind`."""
    subject: str = ""
    """Part that has the condition: `gpu/0`, `sink/wandb`, `rank0`; empty for the whole."""
    is_active: bool = True
    severity: str = "warning"
    """One of SEVERITIES; a newer producer may have others."""
    text: str = ""
    """A line for people. The subject and the host are in it."""
    value: _Scalar | None = None
    """The reading that decided, if it is one: a number of degrees, an XID."""
    lasted_s: float | None = None
    """At the end: time since the onset in s, by the producer's monotonic clock."""


class Gap(Event, frozen=True, kw_only=True):
    """Count of events that are missing at this place in a stream, and why.

    unknown_ms: length of a time in which further events may be missing, uncounted.
    """

    TAG: ClassVar[str] = "gap"

    count: int
    by_kind: dict[str, int] = {}
    reason: str
    unknown_ms: float | None = None


class RunFinished(PartialEvent, frozen=True, kw_only=True):
    """Record that a producer has finished its run.

    status: finished, failed, preempted or lost.
    """

    TAG: ClassVar[str] = "run_finished"

    status: str
    exit_code: int | None = None
    summary: dict[str, Any] = {}


EVENT_TYPES: Final[Mapping[str, type[Event]]] = {
    cls.TAG: cls
    for cls in (
        RunStarted,
        ConfigUpdated,
        MetricsLogged,
        HistogramLogged,
        MessageLogged,
        AlertChanged,
        Gap,
        RunFinished,
    )
}

_DECODERS: Final = {tag: msgspec.msgpack.Decoder(cls) for tag, cls in EVENT_TYPES.items()}
_ENCODER: Final = msgspec.msgpack.Encoder()
LATER_TEXTS: Final = ("entity", "job_type", "wandb_base_url", "launch_id", "wandb_sweep_id")
"""Text fields that later versions added to RunStarted; packed only if they are not empty."""
_LATER_FIELDS: Final = ("left_out", "left_out_count", *LATER_TEXTS)


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """An event as it travels: its tag, its two times, and its body still packed."""

    tag: Annotated[str, msgspec.Meta(max_length=64)]
    wall_ns: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    mono_ns: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    body: msgspec.Raw

    def event(self) -> Event | None:
        """Decode the body; return the typed event, or None if this version does not know the tag.

        Raises:
            DecodeError: the body does not fit its tag.
        """
        decoder = _DECODERS.get(self.tag)
        if decoder is None:
            return None
        # RecursionError and UnicodeDecodeError come from hostile bytes: msgspec
        # raises them beside its own errors. ValueError: a check of ours.
        try:
            event = decoder.decode(self.body)
            if type(event) is HistogramLogged:
                event.check()
            return event
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise DecodeError(f"{self.tag}: {exc}") from exc


T = TypeVar("T")

_ENVELOPE: Final = msgspec.msgpack.Decoder(Envelope)
_ENVELOPES: Final = msgspec.msgpack.Decoder(list[Envelope])
_RAWS: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])


def encode_event(event: Event, wall_ns: int, mono_ns: int) -> bytes:
    """Encode the envelope of one event, without any check of its bounds."""
    return _ENCODER.encode((event.TAG, wall_ns, mono_ns, body_of(event)))


def body_of(event: Event) -> Event | dict[str, Any]:
    """Return the object that is packed as the body of an event.

    Fields of later versions are packed only if they are not empty, so that an event
    without them has the same bytes as one of the first version.
    """
    if not isinstance(event, PartialEvent):
        return event
    body = msgspec.structs.asdict(event)
    for name in _LATER_FIELDS:
        if not body.get(name, True):
            del body[name]
    return body


def decode_envelope(data: bytes | memoryview) -> Envelope:
    """Decode one event as far as its envelope.

    Raises:
        DecodeError: not an envelope, or bytes behind it.
    """
    return _decoded(_ENVELOPE, data, "envelope")


def decode_envelopes(data: bytes | memoryview) -> list[Envelope]:
    """Decode the events of a frame or a record, as far as their envelopes.

    Raises:
        DecodeError: not an array of envelopes, or bytes behind it.
    """
    return _decoded(_ENVELOPES, data, "events")


def split_events(data: bytes | memoryview) -> list[bytes]:
    """Split an array of events into the bytes of each, whatever they hold.

    Raises:
        DecodeError: not an array, or bytes behind it.
    """
    return [bytes(raw) for raw in _decoded(_RAWS, data, "events")]


def _decoded(decoder: msgspec.msgpack.Decoder[T], data: bytes | memoryview, what: str) -> T:
    try:
        return decoder.decode(data)
    # Beside its own errors the decoder lets those of Python through.
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise DecodeError(f"{what}: {exc}") from exc


def join_events(packed: Sequence[bytes]) -> bytes:
    """Join packed events into one MessagePack array.

    Raises:
        ValueError: 65,536 events or more.
    """
    count = len(packed)
    if count < 16:
        head = bytes([0x90 | count])
    elif count < 1 << 16:
        head = b"\xdc" + count.to_bytes(2, "big")
    else:
        raise ValueError(f"{count} events are too many for one frame")
    return head + b"".join(packed)
