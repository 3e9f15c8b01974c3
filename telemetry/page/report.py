"""Report: the page of some runs as one file, which opens from disk with no network.

In: directories of recorded runs.
Out: one HTML file with the scripts, the style and the values in it.
Never: asks another place for anything; replaces a file unless that is wanted; leaves half a file.

The file's own policy names each of its scripts by hash, so that nothing that a trainer called a
run can become one.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from markupsafe import Markup

from shared.files import write_atomically
from telemetry.errors import CommandError
from telemetry.monitor.figures import number_text
from telemetry.page.grids import histogram_grid, layer_grid
from telemetry.page.page_app import SCRIPTS, STYLE, static_file, templates
from telemetry.page.run_data import View, overview, series_of, time_spent
from telemetry.page.run_list import RunLine, text
from telemetry.views.columns import RunColumns, read_columns

RUNS_MAX: Final = 20
POINTS_OF_ALL: Final = 1_500_000
POINTS_MIN: Final = 100
POINTS_MAX: Final = 4000
LATEST_MAX: Final = 500
POLICY: Final = (
    "default-src 'none'; img-src data: blob:; script-src {scripts}; style-src 'nonce-{nonce}'; "
    "style-src-elem 'nonce-{nonce}'; style-src-attr 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
_END_OF_SCRIPT: Final = re.compile(rb"</(script)", re.IGNORECASE)


def report(run_dirs: Sequence[Path], out: Path, *, may_replace: bool = False) -> int:
    """Write the report of some runs; return its size in bytes.

    Raises:
        CommandError: a run can't be read, or the file can't be written.
    """
    if not 1 <= len(run_dirs) <= RUNS_MAX:
        raise CommandError(f"report takes 1 to {RUNS_MAX} runs, not {len(run_dirs)}")
    if out.exists() and not may_replace:
        raise CommandError(f"{out} is there already; give --force to replace it")
    page = html_of([read_columns(path) for path in run_dirs])
    try:
        write_atomically(out, page)
    except OSError as exc:
        raise CommandError(f"{out} can't be written: {exc.strerror}") from exc
    return len(page)


def html_of(runs: Sequence[RunColumns]) -> bytes:
    """Return the report of runs that are open; one run of each id."""
    by_id = {columns.run_id: columns for columns in runs}
    if len(by_id) < len(runs):
        raise CommandError("two of the directories are of the same run; name it once")
    answers = {"runs": {run_id: _answers(run, len(runs)) for run_id, run in by_id.items()}}
    scripts = [_END_OF_SCRIPT.sub(rb"<\\/\1", static_file(name)).decode() for name in SCRIPTS]
    nonce = secrets.token_urlsafe(18)
    lines = [_line(columns) for columns in runs]
    one = len(runs) == 1
    values: dict[str, Any] = {
        "title": lines[0].name if one else f"{len(runs)} runs",
        "view": "run" if one else "compare",
        "run_ids": list(by_id),
        "lines": lines,
        "latest": _latest(runs[0]),
        "nonce": nonce,
        "policy": POLICY.format(scripts=" ".join(map(_hash, scripts)), nonce=nonce),
        # These three are ours, or JSON without a tag in it.
        "inline_scripts": [Markup(script) for script in scripts],
        "inline_style": Markup(static_file(STYLE).decode()),
        "answers": Markup(_without_tags(answers)),
    }
    return templates().get_template("report.html").render(**values).encode()


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _without_tags(value: Any) -> str:
    """Return JSON in which no < is left, so that it can end no script and open no comment."""
    return msgspec.json.encode(value).decode().replace("<", "\\u003c")


def _answers(columns: RunColumns, runs: int) -> dict[str, Any]:
    """Return what the page would ask of a run, all of it at once."""
    wanted = [(source, name) for source in columns.sources() for name in columns.names(source)]
    share = POINTS_OF_ALL // (runs * max(1, len(wanted)))
    view = View(points=int(np.clip(share, POINTS_MIN, POINTS_MAX)))
    return {
        "overview": overview(columns, is_served=True),
        "goodput": time_spent(columns),
        "series": series_of(columns, wanted, view),
        "layers": {metric: layer_grid(columns, metric) for metric in columns.layer_metrics()},
        "histograms": {n: histogram_grid(columns, n) for n in columns.histogram_names()},
    }


def _line(columns: RunColumns) -> RunLine:
    found = overview(columns, is_served=True)
    val_loss = columns.series("val/loss").value
    loss = columns.series(found["loss_name"]).value
    return RunLine(
        run_id=columns.run_id,
        name=found["name"],
        project=found["project"],
        state=found["state"],
        host=found["host"],
        tags=found["tags"],
        notes=found["notes"],
        started_s=found["first_s"],
        last_s=found["last_s"],
        step=found["step"],
        loss_name=text(found["loss_name"]),
        loss=float(loss[-1]) if len(loss) else None,
        val_loss=float(val_loss[-1]) if len(val_loss) else None,
        rows=columns.rows,
    )


def _latest(columns: RunColumns) -> dict[str, str]:
    """Return the last value of each name, for a reader without scripts."""
    found = {}
    for name in columns.names()[:LATEST_MAX]:
        value = columns.series(name).value
        found[text(name, 200)] = number_text(float(value[-1]))
    return found
