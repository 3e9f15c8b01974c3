"""Mode: online, offline or disabled, decided when a sink first starts on a run.

In: the settings of the run, the sidecar and a command, and the presence of an API key.
Out: the mode, and a line for the user if it is not the one that was asked for.
Never: changes a decision: if the key is missing later, the server counts as away; if a
key comes later, a run that was meant to stay offline is not uploaded.

A command's own setting ranks above the run's, the run's above the sidecar's variables.
Without any setting, a run is online if there is a key, and offline if not. If its producer
is set up for another server than the sidecar, a run stays offline: the key is not for
that server.
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
"""Value of a command's mode option that means: decide as if the run had no setting."""

_USER: Final = re.compile(r"//[^/@]*@")


class Account(NamedTuple):
    """The server that wandb would upload to; has_key is True if wandb has a key for it."""

    base_url: str
    has_key: bool
    canonical: Callable[[str], str] = str
    """Function that returns the main address of a server that has several."""


class Choice(NamedTuple):
    """A mode, and the reason if it is not the one that was asked for or expected."""

    mode: str
    why: str = ""


def choose(context: SinkContext, account: Callable[[], Account]) -> Choice:
    """Choose the mode of a run. account is called only if the choice depends on it.

    Raises:
        SinkUnavailable: raised by account.
    """
    options = context.options
    if context.run.has_no_introduction and not options.get("mode"):
        return Choice(OFFLINE)
    asked = options.get("mode") or context.run.wandb_mode or options.get("default_mode")
    asked = "" if asked == AUTO else asked
    if asked and asked not in MODES:
        # Unknown mode: offline, so that nothing is uploaded by mistake and nothing is lost.
        why = f"wandb mode {clean(str(asked), 40)!r} is none of {', '.join(MODES)}"
        return Choice(OFFLINE, why)
    if asked in (OFFLINE, DISABLED):
        return Choice(str(asked))
    wanted_url = context.run.wandb_base_url or ""
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
