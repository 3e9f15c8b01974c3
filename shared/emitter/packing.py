"""Packing: events of a producer, reduced to what can be recorded and turned into bytes.

In: an event with the values that a training script put into it.
Out: its envelope (several for a wide row), packed with plain MessagePack, and a sentence
about each part that was left out.
Never: runs on the training thread, or reads a value that lives on a device.
"""

from __future__ import annotations

import os
from typing import Any, Final, NamedTuple

import msgpack
import msgspec

from shared.emitter.gpus import visible_gpus
from shared.events import (
    CUSTOM,
    EVENT_MAX_BYTES,
    FAILED,
    FINISHED,
    KINDS,
    LATER_TEXTS,
    NAME_MAX_BYTES,
    ConfigUpdated,
    DecodeError,
    Event,
    Gap,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    PartialEvent,
    RunFinished,
    RunStarted,
    decode_envelope,
)
from shared.redact import redacted_text
from shared.values.configuration import configuration_of
from shared.values.fields import number_of, text_of, texts_of
from shared.values.frozen import CONFIG_BUDGET, ROW_BUDGET, freeze, name_of
from shared.values.histograms import NoHistogram, histogram_of
from shared.values.left_out import LeftOuts
from shared.values.rows import rows_of, simple_row, step_of
from shared.values.scalars import INT_MAX, INT_MIN, Odd, type_name

NOTES_MAX_BYTES: Final = 16 * 1024
MESSAGE_MAX_BYTES: Final = 64 * 1024
LINE_MAX_BYTES: Final = 1024
LABEL_MAX_BYTES: Final = 256
LABELS_MAX: Final = 64

_PACK: Final = msgpack.packb
_ENCODE: Final = msgspec.msgpack.Encoder().encode
"""Eight times as fast as msgpack, for values of types that were looked at before."""
Body = dict[str, Any]


class Refused(Exception):
    """Error: nothing of an event can be recorded. reason is short and stable, for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Packed(NamedTuple):
    """An event in bytes."""

    pieces: list[bytes]
    """Its envelopes: one, or several of the same moment if it has more values than one may hold."""
    advice: dict[str, str]
    """For each reason, a sentence for the user about the values left out."""


def kind_of(event: Event) -> str:
    """Return the name that an event is counted under: the kind of its metrics, or its tag.

    A kind outside KINDS counts as "custom", so that the number of names stays bounded.
    """
    if not isinstance(event, MetricsLogged | HistogramLogged):
        return event.TAG
    # The type first: comparing a tensor would read it.
    return event.kind if type(event.kind) is str and event.kind in KINDS else CUSTOM


def packed_row(event: Event, wall_ns: int, mono_ns: int) -> bytes | None:
    """Pack a row of numbers as it is, like nearly all rows; None if it needs a closer look."""
    if type(event) is not MetricsLogged or (body := _plain_body(event)) is None:
        return None
    packed = _ENCODE((MetricsLogged.TAG, wall_ns, mono_ns, body))
    return packed if len(packed) <= EVENT_MAX_BYTES else None


def pack_event(event: Event, wall_ns: int, mono_ns: int, run_id: str = "") -> Packed:
    """Pack an event within every bound that the sidecar enforces.

    The sidecar decodes the result to exactly the values that can be recorded.

    Raises:
        Refused: nothing of the event can be recorded.
    """
    left_out = LeftOuts()
    try:
        bodies = _bodies(event, run_id, left_out)
        pieces: list[bytes] = [_PACK((event.TAG, wall_ns, mono_ns, body)) for body in bodies]
    except (Refused, NoHistogram) as exc:
        raise Refused(exc.reason, f"{event.TAG}: {exc}") from exc
    except Exception as exc:
        # A container of an unknown class may raise anything at all.
        raise Refused("not serializable", f"{event.TAG}: {type_name(exc)}") from exc
    for packed in pieces:
        _check(packed, event)
    return Packed(pieces, left_out.advice)


def _check(packed: bytes, event: Event) -> None:
    if len(packed) > EVENT_MAX_BYTES:
        size = f"{len(packed)} bytes, at most {EVENT_MAX_BYTES}"
        raise Refused("event too large", f"{event.TAG} of {size}")
    if isinstance(event, MetricsLogged):
        return
    # Decode as the sidecar will: these events are rare, and structs check no types.
    try:
        decode_envelope(packed).event()
    except DecodeError as exc:
        raise Refused("bad field", str(exc)) from exc


def _bodies(event: Event, run_id: str, left_out: LeftOuts) -> list[Body]:
    if isinstance(event, MetricsLogged):
        return _metrics(event, left_out)
    if isinstance(event, HistogramLogged):
        return [_histogram(event, left_out)]
    if isinstance(event, RunStarted):
        body = _started(event, run_id, left_out)
    elif isinstance(event, ConfigUpdated):
        body = {"config": _config(event.config, left_out)}
        if left_out.count and not body["config"]:
            raise Refused("not a configuration", "nothing of it can be recorded")
    elif isinstance(event, RunFinished):
        body = _finished(event, left_out)
    elif isinstance(event, MessageLogged):
        body = _message(event, left_out)
    else:
        body = _foreign(event)
    return [body | _parts_left_out(event, left_out)]


def _parts_left_out(event: Event, left_out: LeftOuts) -> Body:
    """Return the left_out fields of a body: parts left out here and by the producer."""
    if isinstance(event, PartialEvent) and type(event.left_out) is dict and event.left_out:
        names = freeze(event.left_out, ROW_BUDGET)
        texts = {name: why for name, why in names.items() if type(why) is str}
        count = event.left_out_count if type(event.left_out_count) is int else 0
        left_out.merge(texts, max(count, len(texts)))
    return left_out.fields()


def _metrics(event: MetricsLogged, left_out: LeftOuts) -> list[Body]:
    if (body := _plain_body(event)) is not None:
        return [body]
    values = event.values
    head = {"kind": _kind(event.kind, left_out), "step": step_of(event.step, left_out)}
    rows = rows_of(dict(values), left_out)
    if not rows and left_out.names and values:
        name, reason = next(iter(left_out.names.items()))
        raise Refused(reason, left_out.advice.get(reason, f"{name!r} can't be recorded"))
    bodies = [{**head, "values": row} for row in rows or [{}]]
    bodies[0] |= _parts_left_out(event, left_out)
    return bodies


def _plain_body(event: MetricsLogged) -> Body | None:
    """Return the body of a row that can be recorded as it is; None if it may not be."""
    kind, step = event.kind, event.step
    is_step = step is None or (type(step) is int and INT_MIN <= step <= INT_MAX)
    if not (is_step and type(kind) is str and kind in KINDS) or event.left_out:
        return None
    row = simple_row(event.values)
    return None if row is None else {"kind": kind, "step": step, "values": row}


def _kind(kind: Any, left_out: LeftOuts) -> str:
    found = text_of("kind", kind, left_out, CUSTOM)
    return found if len(found.encode()) <= NAME_MAX_BYTES else CUSTOM


def _histogram(event: HistogramLogged, left_out: LeftOuts) -> Body:
    edges, counts = histogram_of(event.edges, event.counts)
    return {
        "kind": _kind(event.kind, left_out),
        "step": step_of(event.step, left_out),
        "name": name_of(text_of("name", event.name, left_out, "histogram")),
        "edges": edges,
        "counts": counts,
    } | _parts_left_out(event, left_out)


def _started(event: RunStarted, run_id: str, left_out: LeftOuts) -> Body:
    # A script that names no GPUs still has only those that it can see. The type first: asking
    # a tensor for its truth would read it.
    is_unnamed = type(event.gpu_uuids) is list and not event.gpu_uuids
    gpus = visible_gpus(os.environ) if is_unnamed else event.gpu_uuids

    def line(name: str, max_bytes: int = LINE_MAX_BYTES) -> str:
        return text_of(name, getattr(event, name), left_out, "", max_bytes)

    return {
        "project": line("project"),
        "name": line("name") or run_id,
        "tags": texts_of("tags", event.tags, left_out, LABELS_MAX, LABEL_MAX_BYTES),
        "notes": redacted_text(line("notes", NOTES_MAX_BYTES)),
        "wandb_mode": line("wandb_mode"),
        "group": line("group"),
        "config": _config(event.config, left_out),
        "host": line("host"),
        **{
            name: number_of(name, getattr(event, name), left_out, default)
            for name, default in (("rank", 0), ("world_size", 1), ("pid", 0))
        },
        "process_start_ns": number_of("process_start_ns", event.process_start_ns, left_out, 0),
        "gpu_uuids": texts_of("gpu_uuids", gpus, left_out, LABELS_MAX, LABEL_MAX_BYTES),
        "resumed_from_step": step_of(event.resumed_from_step, left_out),
        **_later_fields(event, left_out),
    }


def _later_fields(event: RunStarted, left_out: LeftOuts) -> Body:
    """Return the fields that later versions added to RunStarted, without the empty ones."""
    texts = {name: text_of(name, getattr(event, name), left_out, "") for name in LATER_TEXTS}
    return {name: text for name, text in texts.items() if text}


def _finished(event: RunFinished, left_out: LeftOuts) -> Body:
    code = number_of("exit_code", event.exit_code, left_out, None)
    default = FAILED if code else FINISHED
    return {
        "status": text_of("status", event.status, left_out, default, LABEL_MAX_BYTES),
        "exit_code": code,
        "summary": _config(event.summary, left_out),
    }


def _message(event: MessageLogged, left_out: LeftOuts) -> Body:
    text = text_of("text", event.text, left_out, "", MESSAGE_MAX_BYTES)
    if not text and (left_out.count or event.text is None):
        reason, advice = next(iter(left_out.advice.items()), ("not a text", "its text is None"))
        raise Refused(reason, advice)
    return {
        "level": text_of("level", event.level, left_out, "info", LABEL_MAX_BYTES),
        "text": redacted_text(text),
    }


def _foreign(event: Event) -> Body:
    """Return the body of an event that few scripts make: a Gap, or one of their own type."""
    if isinstance(event, Gap) and not (type(event.count) is int and event.count >= 0):
        raise Refused("bad field", "a Gap counts what is missing: 0 or more")
    found = {name: freeze(getattr(event, name), ROW_BUDGET) for name in event.__struct_fields__}
    for name, value in found.items():
        if isinstance(value, Odd):
            raise Refused(value.reason, f"{name}: {value.advice}")
    return found


def _config(config: Any, left_out: LeftOuts) -> Body:
    return configuration_of(freeze(config, CONFIG_BUDGET), left_out)
