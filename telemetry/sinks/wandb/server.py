"""Server: asks a W&B server what it has of a run, without sending anything.

In: who the run is.
Out: what the server shows of it, at once or after it has stood still.
Never: creates or changes a run.

A server may show less than it has taken: an answer counts as all of it only
after 30 s without a change.
"""

from __future__ import annotations

import base64
import http.client
import importlib
import json
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from shared.clock import Clock
from shared.wandb_limits import cleaned
from telemetry.sinks.base import SinkContext, SinkUnavailable
from telemetry.sinks.wandb import core
from telemetry.sinks.wandb.identity import JOURNAL
from telemetry.sinks.wandb.identity import said as said_by
from telemetry.sinks.wandb.mode import NO_KEY, Account

ASK_TIMEOUT_S: Final = 10.0
STILL_S: Final = 30.0
STILL_POLL_S: Final = 5.0
RESTLESS_S: Final = 300.0

# As wandb asks when it resumes a run; `missingOk` makes a run that isn't there null.
_QUERY: Final = """
query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) {
    bucket(name: $name, missingOk: true) { id historyLineCount historyTail config }
  }
}
"""


class Stopped(SinkUnavailable):
    """The sink was asked to stop while it waited."""


class View(NamedTuple):
    """What the server shows of a run: how many history rows, and the last one's number.

    journal: the uuid of the journal that the rows came from, empty where that is not told.
    """

    exists: bool = False
    row_count: int = 0
    last_row: int = -1
    journal: str = ""


class Server:
    """The server that wandb is set up for."""

    def __init__(
        self,
        context: SinkContext,
        clock: Clock,
        ask: Callable[[SinkContext], View] | None = None,
    ) -> None:
        self._context = context
        self._clock = clock
        self._ask = ask or resume_query

    def view(self) -> View:
        """What the server shows now.

        Raises:
            SinkUnavailable: it can't be asked; the message says why.
        """
        self._context.wait(0)
        return self._ask(self._context)

    def still_view(self) -> View:
        """What the server shows once that has not changed for STILL_S.

        Raises:
            SinkUnavailable: it can't be asked, or never stands still.
            Stopped: the sink is to stop.
        """
        seen = self.view()
        began_ns = since_ns = self._clock.monotonic_ns()
        while self._clock.monotonic_ns() - since_ns < STILL_S * 1e9:
            self.pause(STILL_POLL_S)
            view = self.view()
            now_ns = self._clock.monotonic_ns()
            if view != seen:
                seen, since_ns = view, now_ns
            if now_ns - began_ns > RESTLESS_S * 1e9:
                raise SinkUnavailable("the W&B server still takes in rows of this run")
        return seen

    def pause(self, seconds: float) -> None:
        """Wait, seen to be alive.

        Raises:
            Stopped: the sink is to stop.
        """
        if self._context.wait(seconds):
            raise Stopped("stopped while waiting for the W&B server")


def account() -> Account:
    """Return the server that wandb is set up for, and whether wandb finds a key for it.

    Raises:
        SinkUnavailable: wandb is not to be had.
    """
    wandb = core.library()
    with core.translated():
        settings = wandb.setup(wandb.Settings(silent=True)).settings
        wbauth = importlib.import_module("wandb.sdk.lib.wbauth")
        try:
            auth = wbauth.authenticate_session(
                host=settings.base_url, source="telemetry", prompt=False, update_session=False
            )
        except wandb.errors.AuthenticationError:
            # There is one, if a bad one: whoever set it meant to be online.
            return Account(settings.base_url, True, _canonical)
    return Account(settings.base_url, auth is not None, _canonical)


def _canonical(url: str) -> str:
    """Return the address that wandb itself would use for a server, where it has several."""
    with suppress(ImportError, AttributeError, ValueError, TypeError):
        urls = importlib.import_module("wandb.sdk.lib.urls")
        return str(urls.forge_upstream_url(url))
    return url


def resume_query(context: SinkContext) -> View:
    """Ask the server that wandb is set up for, with the key that wandb would use.

    Raises:
        SinkUnavailable: no key, no server, or no answer that can be used.
    """
    wandb = core.library()
    fields = cleaned(said_by(context)).fields
    with core.translated():
        settings = wandb.setup(wandb.Settings(silent=True)).settings
        auth = importlib.import_module("wandb.sdk.lib.wbauth").authenticate_session(
            host=settings.base_url, source="telemetry", prompt=False
        )
        if auth is None:
            raise SinkUnavailable(NO_KEY)
        service = importlib.import_module("wandb.apis.public.service_api")
        # Anew each time: a key may have been replaced, and wandb-core restarted.
        api = service.ServiceApi(wandb.setup().settings)
        said = {
            "project": fields["project"] or settings.project or "uncategorized",
            "entity": fields["entity"] or settings.entity,
            "name": context.run_id,
        }
        try:
            data = api.execute_graphql(_QUERY, said, timeout=ASK_TIMEOUT_S)
        except core.api_failure() as exc:
            if "Unknown operation" not in str(exc):
                raise SinkUnavailable(_reason(exc)) from exc
            # wandb-core names the operation "", which servers that go by the book refuse.
            data = _post(f"{settings.base_url}/graphql", getattr(auth, "api_key", ""), said)
    try:
        return view_of(data)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise SinkUnavailable(f"the W&B server's answer makes no sense: {exc!r}") from exc


def _post(url: str, key: str, said: dict[str, Any]) -> dict[str, Any]:
    """The same question without wandb-core.

    Raises:
        SinkUnavailable: no answer that can be used.
    """
    credentials = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"content-type": "application/json", "authorization": f"Basic {credentials}"}
    body = json.dumps({"query": _QUERY, "variables": said}).encode()
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=ASK_TIMEOUT_S) as answer:
            return dict(json.loads(answer.read())["data"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as exc:
        why = core.without_secrets(exc)
        raise SinkUnavailable(f"the W&B server can't be asked: {why}") from exc


def view_of(data: dict[str, Any]) -> View:
    """The view in the answer to a resume query.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is none.
    """
    bucket = (data.get("model") or {}).get("bucket")
    if not bucket:
        return View()
    tail = json.loads(bucket.get("historyTail") or "[]") or []
    steps = [json.loads(line).get("_step", -1) for line in tail]
    count = int(bucket.get("historyLineCount") or 0)
    return View(True, count, max(map(int, steps), default=-1), _journal_in(bucket.get("config")))


def _journal_in(config: Any) -> str:
    """Return the journal that a run's config names; a server need not tell of it."""
    try:
        value = json.loads(config or "{}").get(JOURNAL, "")
        return str(value.get("value", "") if isinstance(value, dict) else value)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ""


def _reason(exc: Any) -> str:
    """What went wrong, in words that stay the same from one try to the next."""
    status = getattr(exc.response, "http_status", 0) if exc.response is not None else 0
    if status in (401, 403):
        return f"the W&B server refuses the API key (HTTP {status})"
    if status >= 400:
        return f"the W&B server answers HTTP {status}"
    if exc.response is None:
        return f"the W&B server can't be reached, or gives no answer in {ASK_TIMEOUT_S:.0f} s"
    return core.without_secrets(exc)
