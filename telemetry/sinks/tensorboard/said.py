"""Said: entries for the starts, ends, messages and configurations of sources.

In: events without values, with the stream that they belong to.
Out: text entries, and the entries that the HPARAMS and the Custom Scalars tab read.
Never: places a number.
"""

from __future__ import annotations

from typing import Any, Final

from shared.events import PartialEvent, RunFinished, RunStarted
from shared.ids import MAIN_SOURCE
from telemetry.journal.rows import Row
from telemetry.sinks.tensorboard import words
from telemetry.sinks.tensorboard.entries import (
    ConfigEnd,
    ConfigStart,
    Entry,
    Extra,
    PanelLayout,
    Text,
)
from telemetry.sinks.tensorboard.names import END_TAG, LAYOUT_TAG, START_TAG
from telemetry.sinks.tensorboard.run_config import flat_config, hparams_of, table
from telemetry.sinks.tensorboard.session_dirs import REASONS_MAX, Stream

CONFIG_TAG: Final = "config"


def _said(row: Row, stream: Stream, tag: str, extra: Extra) -> Entry:
    """Make an entry without a training step; its step is the row's number, which rises."""
    number = stream.number_of(row)
    return Entry(stream.directory, number, row.envelope.wall_ns, {}, [(tag, extra)])


def _said_text(row: Row, stream: Stream, name: str, text: str) -> list[Entry]:
    tag = stream.tag(name, "message")
    extra = Text(words.shown(text))
    return [_said(row, stream, tag, extra)] if stream.placement.note(tag, "message:") else []


def message(row: Row, stream: Stream, level: str, text: str) -> list[Entry]:
    """Return the entry of a line for people, with the tag `messages/<level>`."""
    return _said_text(row, stream, f"messages/{level}", text)


def left_out(row: Row, stream: Stream, event: PartialEvent) -> list[Entry]:
    """Return a message for each new reason for which parts of an event are missing."""
    told = stream.state.reasons
    fresh = [each for each in dict.fromkeys(event.left_out.values()) if each not in told]
    fresh = fresh[: REASONS_MAX - len(told)]
    told += fresh
    entries = []
    for reason in fresh:
        names = [name for name, why in event.left_out.items() if why == reason]
        entries += message(row, stream, "left_out", words.left_out(names, reason, event))
    return entries


def started(row: Row, stream: Stream, event: RunStarted) -> list[Entry]:
    """Return the entries of a session's start; for rank 0 also its panels and configuration."""
    entries = message(row, stream, "run", words.started(event))
    if row.source == MAIN_SOURCE:
        stream.state.config = {}
        entries.append(_said(row, stream, LAYOUT_TAG, PanelLayout()))
    return entries + config_text(row, stream, words.description(event) | event.config)


def config_text(row: Row, stream: Stream, config: dict[str, Any]) -> list[Entry]:
    """Return the configuration so far as a text; none for ranks above 0, which repeat rank 0's."""
    if row.source.startswith("rank") and row.source != MAIN_SOURCE:
        return []
    flat = flat_config(config)
    if stream.state.config is not None:
        stream.state.config |= flat
        flat = stream.state.config
    return _said_text(row, stream, CONFIG_TAG, table(flat))


def config_start(row: Row, stream: Stream) -> list[Entry]:
    """Return the line of the HPARAMS tab, once, when the configuration is complete.

    The tab keeps the first line of a subdirectory: written at the start, it would lack
    the values that are known only after the model is built.
    """
    if stream.state.config is None:
        return []
    config, stream.state.config = stream.state.config, None
    return [_said(row, stream, START_TAG, ConfigStart(hparams_of(config)))]


def finished(row: Row, stream: Stream, event: RunFinished) -> list[Entry]:
    """Return the entries of a session's end; for rank 0 also that of the HPARAMS tab."""
    entries = message(row, stream, "run", words.finished(event))
    if row.source == MAIN_SOURCE:
        entries += config_start(row, stream)
        entries.append(_said(row, stream, END_TAG, ConfigEnd(event.status)))
    return entries
