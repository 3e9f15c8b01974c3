"""Identity: the id, names and config that a run gets in W&B, within W&B's limits.

In: a run's run.json, and the uuid of the journal that its rows come from.
Out: the arguments of wandb.init.
Never: confuses two runs of the same name: the journal's uuid is in the config before the
first row.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from shared.wandb_limits import Change, cleaned
from telemetry.sinks.base import SinkContext
from telemetry.sinks.wandb.values import plain

log = logging.getLogger(__name__)

JOURNAL: Final = "telemetry/journal_uuid"
GIVEN: Final = "telemetry/given"
"""Config key of the original values that were changed for W&B."""

LEFT_OUT: Final = "telemetry/left_out"
REFUSED: Final = "telemetry/refused_by_wandb"


def identity(context: SinkContext) -> dict[str, Any]:
    """Return the arguments of wandb.init that identify the run; empty ones are left to wandb."""
    fields, changes = cleaned(said(context))
    return {
        **named(context, fields),
        "config": plain(context.run.config or {}) | notes(context, changes),
    }


def bare_identity(context: SinkContext, why: str) -> dict[str, Any]:
    """Return only the run's id, and a config with the reason, if wandb refuses its names."""
    config = {**notes(context, []), REFUSED: why}
    return {"id": context.run_id, "config": config}


def said(context: SinkContext) -> dict[str, Any]:
    """Return the run's own values, with the sidecar's default entity if the run has none."""
    entity = context.options.get("entity") or context.run.entity
    return {**context.run.to_json(), "entity": entity or context.options.get("default_entity")}


def named(context: SinkContext, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the id and all fields that are not empty."""
    return {"id": context.run_id} | {name: value for name, value in fields.items() if value}


def notes(context: SinkContext, changes: list[Change]) -> dict[str, Any]:
    """Return additions to the run's config: the journal's uuid, and the original values."""
    added: dict[str, Any] = {JOURNAL: context.journal} if context.journal else {}
    if changes:
        added[GIVEN] = {change.field: plain(change.said) for change in changes}
    left_out = context.run.config_left_out
    if left_out:
        added["telemetry/config_left_out"] = plain(left_out)
    return added


def say_changes(context: SinkContext) -> None:
    """Log one line for each value that is changed for W&B."""
    for change in cleaned(said(context)).changes:
        log.warning("sink=wandb run=%s %s", context.run_id, change)
