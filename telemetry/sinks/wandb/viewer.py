"""Viewer: asks a W&B server who the owner of the API key is.

In: the settings of wandb, from its environment and files.
Out: the server, its answer, and its clock.
Never: creates or sends anything of a run, or lets the key into a text.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import json
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any, Final, NamedTuple

from telemetry.sinks.wandb import core

_QUERY: Final = "query Viewer { viewer { username entity } }"
ANSWER_MAX_BYTES: Final = 256 * 1024


class Viewer(NamedTuple):
    """The server that wandb is set up for, and what it says of the key.

    why: the reason why there is no good answer; empty if there is one.
    clock_ahead_s: time that our clock is ahead of the server's; None where it does not say.
    """

    base_url: str
    has_key: bool
    user: str = ""
    why: str = ""
    is_refused: bool = False
    clock_ahead_s: float | None = None


def ask_viewer(timeout_s: float) -> Viewer:
    """Ask the server that wandb is set up for, with the key that wandb would use.

    Each wait for the network takes timeout_s at most.

    Raises:
        SinkUnavailable: wandb is not installed, or fails.
    """
    access = core.access()
    if access.refusal:
        return Viewer(access.base_url, True, why=access.refusal, is_refused=True)
    if access.auth is None:
        return Viewer(access.base_url, False)
    return ask(access.base_url, str(getattr(access.auth, "api_key", "") or ""), timeout_s)


def ask(base_url: str, key: str, timeout_s: float) -> Viewer:
    """Ask a server whose key this is."""
    credentials = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"content-type": "application/json", "authorization": f"Basic {credentials}"}
    body = json.dumps({"query": _QUERY, "variables": {}}).encode()
    request = urllib.request.Request(f"{base_url.rstrip('/')}/graphql", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            ahead_s = _ahead_s(answer.headers.get("Date"))
            data = json.loads(answer.read(ANSWER_MAX_BYTES))
    except urllib.error.HTTPError as exc:
        with exc:
            is_refused = exc.code in (401, 403)
            why = f"HTTP {exc.code}"
            ahead_s = _ahead_s(exc.headers.get("Date"))
            return Viewer(base_url, True, "", why, is_refused, ahead_s)
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as exc:
        return Viewer(base_url, True, why=core.without_secrets(exc))
    return _viewer(base_url, data, ahead_s)


def _viewer(base_url: str, data: Any, ahead_s: float | None) -> Viewer:
    """Return what an answer says; W&B answers an unknown key with a viewer of null."""
    with suppress(AttributeError, KeyError, TypeError):
        said = data["data"]["viewer"]
        if said is None:
            return Viewer(base_url, True, "", "it does not know the key", True, ahead_s)
        user = str(said.get("entity") or said.get("username") or "unknown")
        return Viewer(base_url, True, user, clock_ahead_s=ahead_s)
    return Viewer(base_url, True, why="its answer makes no sense", clock_ahead_s=ahead_s)


def _ahead_s(date: str | None) -> float | None:
    """Return the time in s that our clock is ahead of a server's Date header."""
    with suppress(TypeError, ValueError):
        return time.time() - email.utils.parsedate_to_datetime(date or "").timestamp()
    return None
