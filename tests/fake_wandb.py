"""A W&B server on loopback that can be made to fail in every way a real one does.

In: what wandb-core sends: GraphQL, and each run's file stream.
Out: the runs as a server holds them, and a count of what went wrong.
Never: takes a request without the right key, or talks to anything but loopback.

A history line has its place (its offset), as on a real server: sent again to the
same place it is the same line, so a client that resumes at a wrong offset is
found out. `lines` is what has come in; a resume query is answered from it, or
from an earlier view of it (`freeze_view`), as a server does whose replicas lag.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from shared.closing import Closing

KEY: Final = "local" + "0" * 40
ENTITY: Final = "me"
HISTORY: Final = "wandb-history.jsonl"


@dataclass
class FakeRun:
    """One run as the server has it."""

    name: str
    project: str
    lines: dict[int, str] = field(default_factory=dict)
    conflicts: int = 0
    """Lines that were sent again with something else in them: that is data lost."""
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    sweep: str | None = None
    tags: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)
    exit_code: int | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The history as a chart would show it, doubled rows and all."""
        return [json.loads(self.lines[at]) for at in sorted(self.lines)]

    def steps(self) -> list[int]:
        return [row["_step"] for row in self.rows()]


class FakeWandb(Closing):
    """The server. Faults are switched by attributes, while it runs.

    fault: what every request of the kinds in `fault_of` gets: an HTTP status
    ("401", "403", "429", "500"), "hang" (no answer until `calm`), or "cut" (the
    connection is closed). "applied-cut": the data is taken in, and then the
    connection is cut, so that the client can't know. deleted: runs that no one may
    write to any more.
    """

    def __init__(self, port: int = 0) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.fault = ""
        self.fault_of: tuple[str, ...] = ("graphql", "file_stream")
        self.deleted: set[str] = set()
        self.is_mute = False
        """Answers no counts and no rows, as a server does that never learned to."""
        self.is_strict = False
        """Refuses an operation that is named "", as GraphQL by the book does."""
        self.key = KEY
        self.requests: list[str] = []
        self.on_lines: Callable[[FakeRun], None] | None = None
        self._frozen: dict[str, tuple[int, str]] | None = None
        self._held: list[tuple[FakeRun, int, list[str]]] | None = None
        self._lock = threading.Condition()
        self._calm = threading.Event()
        fake = self

        class Handler(_Handler):
            server_of = fake

        self._http = _Server(("127.0.0.1", port), Handler)
        self.port: int = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.calm()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)

    def fail(self, fault: str, *kinds: str) -> None:
        """Answer with this fault from now on."""
        self._calm.clear()
        self.fault, self.fault_of = fault, kinds or ("graphql", "file_stream")

    def calm(self) -> None:
        """No more faults; what hangs goes on."""
        self.fault = ""
        self._calm.set()

    def freeze_view(self) -> None:
        """Answer resume queries from what is here now, whatever comes in later."""
        with self._lock:
            self._frozen = {name: self._view(run) for name, run in self.runs.items()}

    def thaw_view(self) -> None:
        with self._lock:
            self._frozen = None

    def hold_lines(self) -> None:
        """Take history with a 200, and let nobody see it until `release_lines`."""
        with self._lock:
            self._held = []

    def release_lines(self) -> None:
        with self._lock:
            held, self._held = self._held or [], None
            for run, offset, lines in held:
                self._place(run, offset, lines)

    def held_count(self) -> int:
        with self._lock:
            return sum(len(lines) for _, _, lines in self._held or [])

    def wait_for(self, is_so: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait until something that depends on what has come in is so."""
        with self._lock:
            assert self._lock.wait_for(is_so, timeout_s), "the server waited in vain"

    # --- the two halves of the protocol

    def graphql(self, query: str, variables: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        operation = _operation(query)
        with self._lock:
            self.requests.append(operation)
            answer = getattr(self, f"_on_{operation}", self._on_anything)(variables)
            self._lock.notify_all()
        if isinstance(answer, str):
            return 409, {"errors": [{"message": answer}]}
        return 200, {"data": answer}

    def file_stream(self, run_name: str, body: dict[str, Any]) -> None:
        with self._lock:
            self.requests.append("file_stream")
            run = self.runs[run_name]
            files = body.get("files") or {}
            history = files.get(HISTORY)
            if history is not None and self._held is not None:
                self._held.append((run, history["offset"], history["content"]))
            elif history is not None:
                self._place(run, history["offset"], history["content"])
            for line in files.get("wandb-summary.json", {}).get("content", []):
                run.summary = json.loads(line)
            if body.get("preempting"):
                run.states.append("preempting")
            if body.get("complete"):
                run.exit_code = int(body.get("exitcode") or 0)
                run.states.append("failed" if run.exit_code else "finished")
            self._lock.notify_all()

    def _place(self, run: FakeRun, offset: int, lines: list[str]) -> None:
        for at, line in enumerate(lines, offset):
            before = run.lines.get(at)
            run.conflicts += before is not None and json.loads(before)["_step"] != _step(line)
            run.lines[at] = line
        if self.on_lines is not None:
            self.on_lines(run)

    def _view(self, run: FakeRun) -> tuple[int, str]:
        """How many lines, and the last of them, as one JSON list."""
        last = [run.lines[max(run.lines)]] if run.lines else []
        return (0, "[]") if self.is_mute else (len(run.lines), json.dumps(last))

    def _on_RunResumeStatus(self, said: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(said["name"])
        if run is None or said["name"] in self.deleted:
            return {"model": {**_named(said["project"]), "entity": _named(ENTITY), "bucket": None}}
        views = self._frozen if self._frozen is not None else {run.name: self._view(run)}
        count, tail = views.get(run.name, (0, "[]"))
        bucket = {
            **_named(run.name),
            "displayName": run.name,
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": 0,
            "historyLineCount": count,
            "eventsLineCount": 0,
            "historyTail": tail,
            "eventsTail": "[]",
            "config": json.dumps(run.config),
            "tags": run.tags,
            "notes": "",
            "wandbConfig": '{"t": 1}',
        }
        return {"model": {**_named(run.project), "entity": _named(ENTITY), "bucket": bucket}}

    def _on_UpsertBucket(self, said: dict[str, Any]) -> dict[str, Any] | str:
        name = said["name"]
        if name in self.deleted:
            return f"run {ENTITY}/p/{name} was previously created and deleted; try a new run name"
        is_new = name not in self.runs
        run = self.runs.setdefault(name, FakeRun(name, said["project"] or "p"))
        if not run.states or run.states[-1] in ("finished", "failed"):
            run.states.append("running")
        run.config.update(json.loads(said.get("config") or "{}"))
        run.sweep = run.sweep or said.get("sweep")
        run.tags = list(dict.fromkeys([*run.tags, *(said.get("tags") or [])]))
        bucket = {
            **_named(name),
            "displayName": said.get("displayName") or name,
            "description": "",
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": {**_named(run.project), "entity": _named(ENTITY)},
            "historyLineCount": self._view(run)[0],
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}

    def _on_CreateRunFiles(self, said: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/store/{name}"} for name in said["files"]]
        return {"createRunFiles": {"runID": "id", "uploadHeaders": [], "files": files}}

    def _on_NotifyScriptableRunAlert(self, said: dict[str, Any]) -> dict[str, Any]:
        self.runs[said["runName"]].alerts.append(said["title"])
        return {"notifyScriptableRunAlert": {"success": True}}

    def _on_Viewer(self, said: dict[str, Any]) -> dict[str, Any]:
        viewer = {**_named("viewer"), "entity": ENTITY, "username": ENTITY, "flags": "{}"}
        return {"viewer": {**viewer, "email": "me@example.org", "teams": {"edges": []}}}

    def _on_ServerFeaturesQuery(self, said: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _on_anything(self, said: dict[str, Any]) -> dict[str, Any]:
        return {}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients are killed on purpose here: a broken connection is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: FakeWandb

    def log_message(self, *args: Any) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        kind = self.path.rsplit("/", 1)[-1]
        fake = self.server_of
        fault = fake.fault if kind in fake.fault_of else ""
        if fault == "cut":
            self._cut()
        elif fault == "hang":
            fake._calm.wait()
            self._cut()
        elif fault.isdigit():
            self._answer(int(fault), {"errors": [{"message": f"it is {fault}"}]})
        elif kind in ("graphql", "file_stream") and not self._has_key():
            self._answer(401, {"errors": [{"message": "user is not logged in"}]})
        else:
            self._serve(kind, body, is_cut=fault == "applied-cut")

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self._answer(200, {})

    def do_GET(self) -> None:
        self._answer(404, {})

    def _serve(self, kind: str, body: bytes, *, is_cut: bool) -> None:
        code, answer = 200, dict[str, Any]()
        if kind == "graphql":
            said = json.loads(body)
            if self.server_of.is_strict and said.get("operationName") == "":
                message = 'Unknown operation named "".'
                self._answer(400, {"errors": [{"message": message}]})
                return
            code, answer = self.server_of.graphql(said["query"], said.get("variables") or {})
        elif kind == "file_stream":
            self.server_of.file_stream(self.path.split("/")[-2], json.loads(body))
            answer = {"exitcode": None, "limits": {}}
        if is_cut:
            self._cut()
        else:
            self._answer(code, answer)

    def _has_key(self) -> bool:
        expected = base64.b64encode(f"api:{self.server_of.key}".encode()).decode()
        return self.headers.get("authorization") == f"Basic {expected}"

    def _answer(self, code: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def _operation(query: str) -> str:
    found = re.search(r"(?:query|mutation)\s+(\w+)", query)
    return found[1] if found else "anything"


def _named(name: str) -> dict[str, str]:
    return {"id": base64.b64encode(name.encode()).decode(), "name": name}


def _step(line: str) -> int:
    return int(json.loads(line)["_step"])
