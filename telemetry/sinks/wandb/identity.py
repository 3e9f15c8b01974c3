"""Identity: who a run is in W&B, within the limits that W&B has.

In: a run's run.json, and which journal its rows come from.
Out: the arguments of wandb.init.
Never: lets the name of one run stand for another: the journal's uuid is in the config
before the first row.
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
"""In the config: what the run said, of what W&B got something else in its place."""

LEFT_OUT: Final = "telemetry/left_out"
REFUSED: Final = "telemetry/refused_by_wandb"


def identity(context: SinkContext) -> dict[str, Any]:
    """Return who the run is, for wandb.init; what nobody said is left to wandb."""
    fields, changes = cleaned(said(context))
    return {
        **named(context, fields),
        "config": plain(context.run.get("config", {})) | notes(context, changes),
    }


def bare_identity(context: SinkContext, why: str) -> dict[str, Any]:
    """Return as little as a run can be called by, for a wandb that does not take more."""
    config = {**notes(context, []), REFUSED: why}
    return {"id": context.run_id, "config": config}


def said(context: SinkContext) -> dict[str, Any]:
    """Return what the run says of itself, and the sidecar where the run says nothing."""
    entity = context.options.get("entity") or context.run.get("entity")
    return {**context.run, "entity": entity or context.options.get("default_entity")}


def named(context: SinkContext, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the id and all names that are not empty."""
    return {"id": context.run_id} | {name: value for name, value in fields.items() if value}


def notes(context: SinkContext, changes: list[Change]) -> dict[str, Any]:
    """Return what is added to the run's config: which journal it is, and what was changed."""
    added: dict[str, Any] = {JOURNAL: context.journal} if context.journal else {}
    if changes:
        added[GIVEN] = {change.field: plain(change.said) for change in changes}
    left_out = context.run.get("config_left_out")
    if left_out:
        added["telemetry/config_left_out"] = plain(left_out)
    return added


def say_changes(context: SinkContext) -> None:
    """Say in one line each what W&B does not take as the run said it."""
    for change in cleaned(said(context)).changes:
        log.warning("sink=wandb run=%s %s", context.run_id, change)
