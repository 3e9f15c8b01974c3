"""Server: asks a W&B server which rows of a run it has, without sending anything.

In: the identity of the run.
Out: the rows that the server shows, at once or after its answer has stopped changing.
Never: creates or changes a run.

A server may show fewer rows than it has taken: an answer counts as complete only after
30 s without a change.
"""

from __future__ import annotations

import base64
import functools
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
from telemetry.sinks.wandb.mode import NO_KEY, Account
from telemetry.sinks.wandb.run_identity import JOURNAL
from telemetry.sinks.wandb.run_identity import said as said_by
from telemetry.sinks.wandb.timeouts import TIMEOUTS, Timeouts

STILL_S: Final = 30.0
STILL_POLL_S: Final = 5.0
RESTLESS_S: Final = 300.0

# wandb's own query when it resumes a run; with `missingOk` a missing run gives null.
_QUERY: Final = """
query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) {
    bucket(name: $name, missingOk: true) { id historyLineCount historyTail config }
  }
}
"""


class Stopped(SinkUnavailable):
    """Error: the sink was asked to stop while it waited for the server."""


class View(NamedTuple):
    """The server's view of a run: the number of history rows, and the last row.

    journal: uuid of the journal that the rows came from; empty if the server has none.
    """

    exists: bool = False
    row_count: int = 0
    last_row: int = -1
    journal: str = ""


class Server:
    """A client that asks the server that wandb is set up for. Sends no rows."""

    def __init__(
        self,
        context: SinkContext,
        clock: Clock,
        ask: Callable[[SinkContext], View] | None = None,
        timeouts: Timeouts = TIMEOUTS,
    ) -> None:
        self._context = context
        self._clock = clock
        self._ask = ask or functools.partial(resume_query, answer_s=timeouts.answer_s)

    def view(self) -> View:
        """Ask the server for its view of the run now.

        Raises:
            SinkUnavailable: the server can't be asked; the message says why.
        """
        self._context.wait(0)
        return self._ask(self._context)

    def still_view(self) -> View:
        """Ask the server until its view has not changed for STILL_S, and return that view.

        Raises:
            SinkUnavailable: the server can't be asked, or its view still changes after
                RESTLESS_S.
            Stopped: the sink was asked to stop.
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
        """Wait, and report to the supervisor that the sink is alive.

        Raises:
            Stopped: the sink was asked to stop.
        """
        if self._context.wait(seconds):
            raise Stopped("stopped while waiting for the W&B server")


def account() -> Account:
    """Return the server that wandb is set up for, and True if wandb has a key for it.

    Raises:
        SinkUnavailable: wandb is not installed, or fails.
    """
    access = core.access()
    # A key of a bad form is a key: the user who set it meant to be online.
    has_key = access.auth is not None or bool(access.refusal)
    return Account(access.base_url, has_key, _canonical)


def _canonical(url: str) -> str:
    """Return the address that wandb itself would use for a server that has several."""
    with suppress(ImportError, AttributeError, ValueError, TypeError):
        urls = importlib.import_module("wandb.sdk.lib.urls")
        return str(urls.forge_upstream_url(url))
    return url


def resume_query(context: SinkContext, answer_s: float = TIMEOUTS.answer_s) -> View:
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
        # Made anew each time: the key may have changed, or wandb-core restarted.
        api = service.ServiceApi(wandb.setup().settings)
        said = {
            "project": fields["project"] or settings.project or "uncategorized",
            "entity": fields["entity"] or settings.entity,
            "name": context.run_id,
        }
        try:
            data = api.execute_graphql(_QUERY, said, timeout=answer_s)
        except core.api_failure() as exc:
            if "Unknown operation" not in str(exc):
                raise SinkUnavailable(_reason(exc, answer_s)) from exc
            # wandb-core sends the operation name "", which strict servers refuse.
            data = _post(
                f"{settings.base_url}/graphql", getattr(auth, "api_key", ""), said, answer_s
            )
    try:
        return view_of(data)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise SinkUnavailable(f"the W&B server's answer makes no sense: {exc!r}") from exc


def _post(url: str, key: str, said: dict[str, Any], answer_s: float) -> dict[str, Any]:
    """Send the resume query without wandb-core, and return the data of the answer.

    Raises:
        SinkUnavailable: there is no usable answer.
    """
    credentials = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"content-type": "application/json", "authorization": f"Basic {credentials}"}
    body = json.dumps({"query": _QUERY, "variables": said}).encode()
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=answer_s) as answer:
            return dict(json.loads(answer.read())["data"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as exc:
        why = core.without_secrets(exc)
        raise SinkUnavailable(f"the W&B server can't be asked: {why}") from exc


def view_of(data: dict[str, Any]) -> View:
    """Return the view in the answer to a resume query.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the answer has another form.
    """
    bucket = (data.get("model") or {}).get("bucket")
    if not bucket:
        return View()
    tail = json.loads(bucket.get("historyTail") or "[]") or []
    steps = [json.loads(line).get("_step", -1) for line in tail]
    count = int(bucket.get("historyLineCount") or 0)
    return View(True, count, max(map(int, steps), default=-1), _journal_in(bucket.get("config")))


def _journal_in(config: Any) -> str:
    """Return the journal uuid in a run's config; empty if the server sends none."""
    try:
        value = json.loads(config or "{}").get(JOURNAL, "")
        return str(value.get("value", "") if isinstance(value, dict) else value)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ""


def _reason(exc: Any, answer_s: float) -> str:
    """Return the reason of a failure, as text that stays the same from one try to the next."""
    status = getattr(exc.response, "http_status", 0) if exc.response is not None else 0
    if status in (401, 403):
        return f"the W&B server refuses the API key (HTTP {status})"
    if status >= 400:
        return f"the W&B server answers HTTP {status}"
    if exc.response is None:
        return f"the W&B server can't be reached, or gives no answer in {answer_s:.0f} s"
    return core.without_secrets(exc)
