"""What a `.wandb` file holds: the history, config and summary that `wandb sync` would upload."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from telemetry.sinks.wandb.wandb_file import clean_records


def history_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the history rows, in order: names to values, `_step` among them.

    Nested names, such as a histogram's fields, are joined with dots.
    """
    for record in clean_records(path):
        if record.HasField("history"):
            yield {_name(item): json.loads(item.value_json) for item in record.history.item}


def config(path: Path) -> dict[str, Any]:
    """Return the final config in the file, without wandb's own part."""
    merged: dict[str, Any] = {}
    for record in clean_records(path):
        update = record.run.config if record.HasField("run") else record.config
        for item in update.update:
            merged[_name(item)] = json.loads(item.value_json)
    merged.pop("_wandb", None)
    return merged


def summary(path: Path) -> dict[str, Any]:
    """Return the final summary in the file, nested names joined with dots."""
    merged: dict[str, Any] = {}
    for record in clean_records(path):
        for item in record.summary.update:
            merged[_name(item)] = json.loads(item.value_json)
    return merged


def _name(item: Any) -> str:
    return item.key or ".".join(item.nested_key)
