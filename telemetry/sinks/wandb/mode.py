"""Mode: online, offline or disabled, decided when a sink first starts on a run.

In: what the run, the sidecar and a command say, and whether there is a key.
Out: the mode, and a line for people where it is not the one that was asked for.
Never: changes its mind: a key that is gone later means a server that is away, and one
that comes later does not upload what was meant to stay.

A command's own word ranks above the run's, the run's above the sidecar's variables. Where
nobody says anything, it is online with a key and offline without. A run whose producer is
set up for another server than the sidecar stays offline: the key is not that server's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from shared.redact import redacted
from shared.text import clean
from shared.wandb_variables import DISABLED, MODES, OFFLINE, ONLINE
from telemetry.sinks.base import SinkContext

NO_KEY: Final = "there is no W&B API key: set WANDB_API_KEY or run `wandb login`"


AUTO: Final = "auto"
"""Asked for by a command: as for a run that says nothing of it."""

_USER: Final = re.compile(r"//[^/@]*@")


class Account(NamedTuple):
    """Where wandb would upload to, and whether it has a key for there."""

    base_url: str
    has_key: bool
    canonical: Callable[[str], str] = str
    """The one address of a server that wandb knows by several."""


class Choice(NamedTuple):
    """A mode, and why it is not the one that was asked for, or that might be expected."""

    mode: str
    why: str = ""


def choose(context: SinkContext, account: Callable[[], Account]) -> Choice:
    """Decide.

    Raises:
        SinkUnavailable: as account.
    """
    options = context.options
    if context.run.get("is_introduced") is False and not options.get("mode"):
        return Choice(OFFLINE)
    asked = options.get("mode") or context.run.get("wandb_mode") or options.get("default_mode")
    asked = "" if asked == AUTO else asked
    if asked and asked not in MODES:
        # Offline: nothing is uploaded by mistake, and nothing is lost.
        why = f"wandb mode {clean(str(asked), 40)!r} is none of {', '.join(MODES)}"
        return Choice(OFFLINE, why)
    if asked in (OFFLINE, DISABLED):
        return Choice(str(asked))
    wanted_url = str(context.run.get("wandb_base_url") or "")
    if asked and not wanted_url:
        return Choice(ONLINE)
    found = account()
    if wanted_url and not _is_same(found, wanted_url):
        return Choice(
            OFFLINE,
            f"its producer is set up for {_shown(wanted_url)}, and this sidecar for "
            f"{_shown(found.base_url)}",
        )
    if not asked and not found.has_key:
        return Choice(OFFLINE, NO_KEY)
    return Choice(ONLINE)


def _is_same(found: Account, url: str) -> bool:
    return _plain(found.canonical(url)) == _plain(found.canonical(found.base_url))


def _shown(url: str) -> str:
    return clean(str(redacted(url)), 200)


def _plain(url: str) -> str:
    plain = _USER.sub("//", url.strip().rstrip("/").lower())
    return plain.removeprefix("https://").removesuffix(":443")
