"""Page application: the addresses of the page, and the answer of each.

    /                               list of runs
    /runs/RUN_ID                    one run
    /compare?run=A&run=B            two to twenty runs, side by side
    /api/runs                       the list, as JSON
    /api/runs/RUN_ID                all of a run but its series: run_data.overview
    /api/runs/RUN_ID/series         ?x=step|time&from=&to=&points=&s=SOURCE&n=NAME…
    /api/runs/RUN_ID/layers         ?metric=: a heat map by layer
    /api/runs/RUN_ID/goodput        its time by cause: views/goodput.py
    /api/runs/RUN_ID/histogram      ?name=: a heat map of a histogram
    /static/NAME                    scripts and the style sheet, with Plotly's among them

In: GET requests that `access` has let in.
Out: HTML that is readable without scripts, and JSON for the scripts.
Never: touches what is recorded; puts a producer's text into markup unescaped.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import logging
import math
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import plotly
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from shared.ids import RUN_ID
from shared.text import clean
from telemetry.datadir import is_held
from telemetry.monitor.figures import MISSING, count_text, duration_text, number_text
from telemetry.page.access import Access
from telemetry.page.grids import histogram_grid, layer_grid
from telemetry.page.open_runs import OpenRuns
from telemetry.page.problems import BadQuery, NotFound, StillReading
from telemetry.page.run_data import View, overview, series_of, time_spent
from telemetry.page.run_list import RunLine, RunList

log = logging.getLogger("telemetry.page")

ASSETS: Final = Path(__file__).parent / "assets"
PLOTLY: Final = "plotly.min.js"
SCRIPTS: Final = (
    "nonce.js", "tools.js", "source.js", "list.js", "chart.js", "board.js", "plan.js", "run.js",
    "compare.js", "start.js", PLOTLY,
)  # fmt: skip
"""Scripts of the page, in the order in which they are loaded. Plotly's 4.8 MB take a browser half
a second to read: it is added by `chart.js`, when the first values have been asked for."""
STYLE: Final = "page.css"
TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
COMPARED_MAX: Final = 20
SERIES_MAX: Final = 64
SPENT_MAX: Final = 256
LONG_CACHE: Final = "private, max-age=86400"


class PageApp:
    """The application of one data directory. Its answers are made on threads of a pool."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._list = RunList(data_dir)
        self._open = OpenRuns(data_dir)
        self._spent: dict[str, tuple[int, dict[str, Any]]] = {}
        self.templates = templates()

    def guarded(self, token: str, port: int, hosts: Collection[str]) -> ASGIApp:
        """Return the application behind the check of token and host."""
        routes = [
            Route("/", self._answering(self._list_page)),
            Route("/api/runs", self._answering(self._api_runs)),
            Route("/runs/{run_id}", self._answering(self._run_page)),
            Route("/compare", self._answering(self._compare_page)),
            Route("/api/runs/{run_id}", self._answering(self._api_overview)),
            Route("/api/runs/{run_id}/series", self._answering(self._api_series)),
            Route("/api/runs/{run_id}/layers", self._answering(self._api_layers)),
            Route("/api/runs/{run_id}/goodput", self._answering(self._api_goodput)),
            Route("/api/runs/{run_id}/histogram", self._answering(self._api_histogram)),
            Route("/static/{name}", self._answering(self._static)),
        ]
        return Access(Starlette(routes=routes), token, port, hosts)

    def _answering(
        self, answer: Callable[[Request], Response]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that makes an answer on a thread, and logs what was no answer."""

        async def endpoint(request: Request) -> Response:
            try:
                return await run_in_threadpool(answer, request)
            except NotFound as exc:
                return self._problem(request, 404, str(exc))
            except BadQuery as exc:
                return self._problem(request, 400, str(exc))
            except StillReading as exc:
                return json_answer({"reading": str(exc)}, 202)
            except Exception:
                log.exception("no answer to %s", request.url.path)
                return self._problem(request, 500, "the page failed; its log says why")

        return endpoint

    def _problem(self, request: Request, status: int, words: str) -> Response:
        if request.url.path.startswith("/api/"):
            return json_answer({"problem": words}, status)
        return self._html(request, "problem.html", status, title="Problem", words=words)

    def _html(self, request: Request, name: str, status: int = 200, **values: Any) -> Response:
        values |= {
            "nonce": request.state.nonce,
            "scripts": [name for name in SCRIPTS if name != PLOTLY],
            "plotly": PLOTLY if "view" in values else "",
            "version": static_version(),
            "data_dir": str(self._data_dir),
        }
        return HTMLResponse(self.templates.get_template(name).render(**values), status)

    def _list_page(self, request: Request) -> Response:
        lines, is_complete = self._list.lines()
        return self._html(request, "list.html", title="Runs", lines=lines, is_complete=is_complete)

    def _api_runs(self, request: Request) -> Response:
        lines, is_complete = self._list.lines()
        return json_answer({"runs": [_line_json(line) for line in lines], "complete": is_complete})

    def _run_page(self, request: Request) -> Response:
        run_id = checked_run_id(request.path_params["run_id"])
        line = self._list.line(run_id)
        if line is None:
            raise NotFound(f"there is no run {run_id} in {self._data_dir}")
        latest = self._list.latest(run_id)
        values: dict[str, Any] = {"line": line, "latest": latest}
        values |= {"run_ids": [run_id], "view": "run"}
        return self._html(request, "run.html", title=line.name, **values)

    def _compare_page(self, request: Request) -> Response:
        run_ids = [checked_run_id(words) for words in request.query_params.getlist("run")]
        run_ids = list(dict.fromkeys(run_ids))
        if not 2 <= len(run_ids) <= COMPARED_MAX:
            raise BadQuery(f"two to {COMPARED_MAX} runs can be compared, not {len(run_ids)}")
        lines = [line for run_id in run_ids if (line := self._list.line(run_id))]
        values: dict[str, Any] = {"lines": lines, "run_ids": run_ids, "view": "compare"}
        return self._html(request, "compare.html", title="Comparison", **values)

    def _api_overview(self, request: Request) -> Response:
        with self._open.columns(checked_run_id(request.path_params["run_id"])) as columns:
            return json_answer(overview(columns, is_served=is_held(self._data_dir)))

    def _api_series(self, request: Request) -> Response:
        query = request.query_params
        sources, names = query.getlist("s"), query.getlist("n")
        if len(sources) != len(names) or len(names) > SERIES_MAX:
            raise BadQuery(f"as many s= as n= are wanted, at most {SERIES_MAX}")
        view = View(
            axis=query.get("x", "step"), low=_number(query, "from"), high=_number(query, "to"),
            points=int(_number(query, "points") or 1000),
        )  # fmt: skip
        with self._open.columns(checked_run_id(request.path_params["run_id"])) as columns:
            found = series_of(columns, list(zip(sources, names, strict=True)), view)
            return json_answer({"rows": columns.rows, "series": found})

    def _api_layers(self, request: Request) -> Response:
        with self._open.columns(checked_run_id(request.path_params["run_id"])) as columns:
            return json_answer(layer_grid(columns, request.query_params.get("metric", "")))

    def _api_goodput(self, request: Request) -> Response:
        run_id = checked_run_id(request.path_params["run_id"])
        with self._open.columns(run_id) as columns:
            # A second's work for a million events: done again only when there are new ones.
            rows, spent = self._spent.get(run_id, (-1, {}))
            if rows != columns.rows:
                spent = time_spent(columns)
                if len(self._spent) >= SPENT_MAX:
                    self._spent.clear()
                self._spent[run_id] = (columns.rows, spent)
        return json_answer(spent)

    def _api_histogram(self, request: Request) -> Response:
        with self._open.columns(checked_run_id(request.path_params["run_id"])) as columns:
            return json_answer(histogram_grid(columns, request.query_params.get("name", "")))

    def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in (*SCRIPTS, STYLE):
            raise NotFound("there is no such file")
        headers = {"Cache-Control": LONG_CACHE}
        media_type = TYPES[Path(name).suffix]
        if name == PLOTLY and "gzip" in request.headers.get("accept-encoding", ""):
            headers |= {"Content-Encoding": "gzip"}
            return Response(_packed_plotly(), headers=headers, media_type=media_type)
        return Response(static_file(name), headers=headers, media_type=media_type)


def static_file(name: str) -> bytes:
    """Return the bytes of a script or style sheet; Plotly's is the one its package carries."""
    if name == PLOTLY:
        return (Path(plotly.__file__).parent / "package_data" / PLOTLY).read_bytes()
    return (ASSETS / name).read_bytes()


@functools.cache
def _packed_plotly() -> bytes:
    """Return Plotly's script packed: 1.4 MB in place of 4.8, for a browser far away."""
    return gzip.compress(static_file(PLOTLY), 6)


@functools.cache
def static_version() -> str:
    """Return a word that changes with the content of the static files."""
    digest = hashlib.sha256(plotly.__version__.encode())
    for name in (*SCRIPTS, STYLE):
        if name != PLOTLY:
            digest.update(static_file(name))
    return digest.hexdigest()[:12]


def templates() -> Environment:
    """Return the templates; every value that they show is escaped."""
    made = Environment(
        loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"number": number_text, "count": count_text, "duration": duration_text}
    made.filters["moment"] = moment_text
    return made


def moment_text(seconds: float | None) -> str:
    """Return a wall time as date and time of day in UTC."""
    if seconds is None:
        return MISSING
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def json_answer(value: Any, status: int = 200) -> Response:
    """Return a JSON answer; NaN and infinities become null, which JSON has instead."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _number(query: QueryParams, name: str) -> float | None:
    """Return a number of a query, None where it is not said."""
    words = query.get(name, "")
    try:
        number = float(words) if words else None
    except ValueError as exc:
        raise BadQuery(f"{name}={clean(words, 40)!r} must be a number") from exc
    if number is not None and not math.isfinite(number):
        raise BadQuery(f"{name} must be a finite number")
    return number


def _line_json(line: RunLine) -> dict[str, Any]:
    return msgspec.structs.asdict(line) | {"duration_s": line.duration_s}


def checked_run_id(words: str) -> str:
    """Return a run id from an address.

    Raises:
        NotFound: it is none.
    """
    if not RUN_ID.fullmatch(words):
        raise NotFound("this is not the id of a run")
    return words
