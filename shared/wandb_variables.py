"""W&B's environment variables, which fill in fields of a run when the run begins.

In: the environment of the process that begins a run, and the RunStarted of its code.
Out: the fields of RunStarted that the code did not fill in.
Never: reads a key, or what only concerns wandb's own process (WANDB_RESUME, WANDB_SERVICE, ...).

Read are WANDB_PROJECT, WANDB_NAME, WANDB_TAGS (with commas), WANDB_NOTES, WANDB_RUN_GROUP,
WANDB_JOB_TYPE, WANDB_ENTITY, WANDB_MODE, WANDB_DISABLED and WANDB_BASE_URL, which rank
below what the code or a flag says; and WANDB_SWEEP_ID with WANDB_RUN_ID, for the run of
a sweep (shared/ids.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from shared.events import RunStarted
from shared.ids import sweep_of
from shared.redact import redacted

ONLINE, OFFLINE, DISABLED = MODES = ("online", "offline", "disabled")

_TEXTS: Final = {
    "project": "WANDB_PROJECT",
    "name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
    "group": "WANDB_RUN_GROUP",
    "job_type": "WANDB_JOB_TYPE",
    "entity": "WANDB_ENTITY",
    "wandb_base_url": "WANDB_BASE_URL",
}
_MODE_WORDS: Final = {
    "online": ONLINE,
    "run": ONLINE,
    "shared": ONLINE,
    "offline": OFFLINE,
    "dryrun": OFFLINE,
    "disabled": DISABLED,
}
_NO: Final = frozenset({"", "0", "false", "no", "off", "f", "n"})


def said_of_run(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of RunStarted that W&B's variables give; empty ones are left out."""
    said: dict[str, Any] = {field: _text(environ, variable) for field, variable in _TEXTS.items()}
    tags = (tag.strip() for tag in _text(environ, "WANDB_TAGS").split(","))
    said["tags"] = [tag for tag in tags if tag]
    said["wandb_mode"] = wandb_mode(environ)
    # A password in an address must not come into a journal.
    said["wandb_base_url"] = redacted(said["wandb_base_url"])
    return {field: value for field, value in said.items() if value}


def wandb_mode(environ: Mapping[str, str]) -> str:
    """Return online, offline or disabled as WANDB_MODE and WANDB_DISABLED say, or empty.

    An unknown word means offline, so that nothing is uploaded by mistake.
    """
    if environ.get("WANDB_DISABLED", "").strip().lower() not in _NO:
        return DISABLED
    word = environ.get("WANDB_MODE", "").strip().lower()
    return _MODE_WORDS.get(word, OFFLINE) if word else ""


def filled_in(event: RunStarted, environ: Mapping[str, str], run_id: str) -> RunStarted:
    """Return the event with its empty fields filled in from the environment.

    Fields that are not empty stay as they are; a later check judges them.
    """
    said = said_of_run(environ)
    sweep = sweep_of(environ)
    if sweep is not None and sweep[1] == run_id:
        said["wandb_sweep_id"] = sweep[0]
    missing = {field: value for field, value in said.items() if _is_empty(getattr(event, field))}
    return msgspec.structs.replace(event, **missing) if missing else event


def _text(environ: Mapping[str, str], variable: str) -> str:
    # An environment may hold bytes that are no UTF-8: Python shows them as lone surrogates.
    text = environ.get(variable, "").strip()
    return text.encode("utf-8", "backslashreplace").decode()


def _is_empty(value: Any) -> bool:
    # Check the type first: comparing an unknown object could run any code.
    return value is None or (type(value) in (str, list, tuple) and not value)
