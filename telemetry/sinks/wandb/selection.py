"""Policy: selects the values of a journal that are sent to Weights & Biases, row by row.

In: rows of a journal, in order.
Out: the values to send for each row, mostly none or one history row.
Never: knows wandb, files or clocks, so a live run and a replay select the same.

A history row has its journal row number as `_step`. Metrics, histograms,
messages, alerts and gaps are sent as they come. Hardware is sent as means over windows
of 15 s of event time, one open window for each source: a window is sent at the
row of the first sample behind it, which is free because hardware is not sent
row by row, or at the row that ends the run. A window that is still open at the
end of the journal is not sent yet.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import msgspec

from shared.events import (
    HARDWARE,
    AlertChanged,
    ConfigUpdated,
    DecodeError,
    Event,
    HistogramLogged,
    MessageLogged,
    PartialEvent,
    RunFinished,
    RunStarted,
    Scalar,
)
from shared.text import clean
from telemetry.alerts.words import level_of, title_of, words_of
from telemetry.journal.rows import ELAPSED, STEP, Point, Row, RunContext, point_of
from telemetry.sessions import MAIN_SOURCE
from telemetry.sinks.wandb.run_identity import LEFT_OUT
from telemetry.sinks.wandb.values import EMPTY_NAME, plain

POLICY_VERSION: Final = 2
"""Version of the selection. It changes when other rows are selected for the same journal; a
sink in the middle of a run continues with the new version at its current row."""

LEFT_OUT_MAX: Final = 64
WINDOW_NS: Final = 15_000_000_000
SESSION: Final = "train/session"
TIMESTAMP: Final = "_timestamp"
ALERT_LEVELS: Final = {"warning": "WARN", "error": "ERROR", "critical": "ERROR"}
# Names that wandb uses itself: a metric of such a name would move a row or vanish.
RESERVED: Final = frozenset({"_step", "_timestamp", "_runtime", "_wandb", ""})

OWN_NAME: Final = "W&B has this name for something of its own"
LISTED_MAX_CHARS: Final = 8000

AXES: Final = {
    "train/*": STEP,
    "val/*": STEP,
    "quant/*": STEP,
    "rank/*": STEP,
    "hw/*": ELAPSED,
    "cpu_percent": ELAPSED,
    "memory_percent": ELAPSED,
    "gpu_utilization": ELAPSED,
    "gpu_memory_used": ELAPSED,
    "gpu_memory_percent": ELAPSED,
    "gpu_temperature": ELAPSED,
}
"""X axis of each metric. No `*` for all others: of two matching globs either may win."""


class Histogram(NamedTuple):
    """Counts between edges, for the sink to turn into wandb's own type."""

    edges: list[float]
    counts: list[float]


Values = dict[str, Scalar | Histogram]


class Alert(NamedTuple):
    """A notification for W&B to send to people; level is one of wandb's."""

    level: str
    title: str
    text: str


class Selected(NamedTuple):
    """The values to send for one row. After a crash all but history may be sent again."""

    history: Values | None = None
    config: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None
    alert: Alert | None = None


NOTHING: Final = Selected()


class Mean(msgspec.Struct, frozen=True, array_like=True):
    """A running mean: number and sum of the samples."""

    count: int
    total: float


class Window(msgspec.Struct, frozen=True):
    """Sums over the samples of one source in one window of 15 s."""

    index: int
    samples: int = 0
    offset_sum_ns: int = 0
    means: dict[str, Mean] = {}

    def with_sample(self, point: Point) -> Window:
        """Return the window with one more sample, without its texts, NaN and infinity."""
        means = dict(self.means)
        for name, value in point.values.items():
            if isinstance(value, str) or name in RESERVED:
                continue
            mean = means.get(name, Mean(0, 0.0))
            total = mean.total + float(value)
            if math.isfinite(total):
                means[name] = Mean(mean.count + 1, total)
        return Window(
            index=self.index,
            samples=self.samples + 1,
            offset_sum_ns=self.offset_sum_ns + point.wall_ns - self.index * WINDOW_NS,
            means=means,
        )

    def values(self) -> Values:
        """Return the means, with the mean time of the samples as their timestamp."""
        offset_s = self.offset_sum_ns / self.samples / 1e9
        means: Values = {name: mean.total / mean.count for name, mean in self.means.items()}
        return means | {TIMESTAMP: self.index * (WINDOW_NS // 10**9) + offset_s}


class Policy(msgspec.Struct, frozen=True):
    """State of the selection after the rows so far. Immutable."""

    context: RunContext = RunContext()
    windows: dict[str, Window] = {}
    left_out: dict[str, str] = {}
    """Names of values left out so far, with the reason of each."""

    def after(self, row: Row) -> tuple[Policy, Selected]:
        """Return the policy after one row, and the values to send for that row."""
        event = event_of(row)
        context = self.context.after(row, event)
        point = point_of(row, event, context)
        policy, selected = self._selected(row, event, context, point)
        news = _new_left_out(self.left_out, event, point)
        if not news:
            return policy, selected
        left_out = self.left_out | news
        summary = {**(selected.summary or {}), LEFT_OUT: _listed(left_out)}
        policy = msgspec.structs.replace(policy, left_out=left_out)
        return policy, selected._replace(summary=summary)

    def _selected(
        self, row: Row, event: Event | None, context: RunContext, point: Point | None
    ) -> tuple[Policy, Selected]:
        if point is not None and point.kind == HARDWARE:
            windows, history = _sampled(self.windows, row.source, point)
            return Policy(context, windows, self.left_out), Selected(history=history)
        if isinstance(event, RunFinished) and _ends_run(row.source):
            summary = None
            # A late RunFinished of an earlier main session does not change the run's status.
            if _speaks_for_run(row, context) or row.source != MAIN_SOURCE:
                summary = {**plain(event.summary), "telemetry/run_status": event.status}
            ended = Policy(context, left_out=self.left_out)
            return ended, Selected(history=_closed(self.windows), summary=summary)
        selected = _select(row, event, point, is_main=_speaks_for_run(row, context))
        return Policy(context, self.windows, self.left_out), selected


def event_of(row: Row) -> Event | None:
    """Return the typed event of a row; None if its type or its form is unknown."""
    try:
        return row.envelope.event()
    except DecodeError:
        return None


def _new_left_out(
    known: dict[str, str], event: Event | None, point: Point | None
) -> dict[str, str]:
    """Return the names that an event is the first to leave out, up to LEFT_OUT_MAX in all."""
    told = event.left_out if isinstance(event, PartialEvent) else {}
    if point is not None and not RESERVED.isdisjoint(point.values):
        own = {name or EMPTY_NAME: OWN_NAME for name in point.values if name in RESERVED}
        told = {**told, **own}
    news = {name: reason for name, reason in told.items() if name not in known}
    return dict(list(news.items())[: max(0, LEFT_OUT_MAX - len(known))])


def _listed(left_out: dict[str, str]) -> str:
    text = "; ".join(f"{clean(name, 80)}: {clean(why, 80)}" for name, why in left_out.items())
    return text[:LISTED_MAX_CHARS]


def _speaks_for_run(row: Row, context: RunContext) -> bool:
    """True for rows of the newest main session.

    Events of an earlier session come late, from its spool; its configuration is out of
    date.
    """
    return row.source == MAIN_SOURCE and context.main_session in (None, row.session)


def _select(row: Row, event: Event | None, point: Point | None, *, is_main: bool) -> Selected:
    """Return the values of a row that are sent at once, without a window."""
    if point is not None:
        return Selected(history=_history(row, dict(point.values)))
    match event:
        case HistogramLogged():
            values: Values = {event.name: Histogram(event.edges, event.counts)}
            if event.step is not None:
                values[STEP] = event.step
            return Selected(history=_history(row, values))
        case MessageLogged():
            return _message(row, event.level, event.text)
        case AlertChanged():
            return _message(row, level_of(event), words_of(event), title_of(event))
        case RunStarted() | ConfigUpdated() if is_main:
            return Selected(config=plain(event.config))
    return NOTHING


def _message(row: Row, level: str, text: str, title: str = "") -> Selected:
    texts: Values = {"telemetry/message": text, "telemetry/level": level}
    known = ALERT_LEVELS.get(level.lower())
    alert = Alert(known, f"{row.source}: {title or level}", text) if known else None
    return Selected(history=_history(row, texts), alert=alert)


def _history(row: Row, values: Values) -> Values | None:
    """Return the history values to send for a row; None if there are none."""
    kept = {name: value for name, value in values.items() if name not in RESERVED}
    if not kept:
        return None
    if row.source.startswith("rank"):
        kept[SESSION] = row.session
    kept[TIMESTAMP] = row.envelope.wall_ns / 1e9
    return kept


def _sampled(
    windows: dict[str, Window], source: str, point: Point
) -> tuple[dict[str, Window], Values | None]:
    """Return the windows with one more sample, and the values of the window it closes."""
    index = point.wall_ns // WINDOW_NS
    window = windows.get(source)
    closed = None
    # Not `<`: after a wall clock was set back, a new window begins too.
    if window is None or window.index != index:
        closed = _closed({source: window}) if window is not None else None
        window = Window(index=index)
    return {**windows, source: window.with_sample(point)}, closed


def _closed(windows: dict[str, Window]) -> Values | None:
    """Return the means of all windows as one row; None without any mean."""
    values: Values = {}
    for source in sorted(windows):
        if windows[source].means:
            values.update(windows[source].values())
    return values or None


def _ends_run(source: str) -> bool:
    """True if a RunFinished of this source ends the run: rank 0, or the sidecar for a lost one."""
    return source == MAIN_SOURCE or not source.startswith("rank")


def versions_of(state: dict[str, Any], row: int) -> list[list[int]]:
    """Return [first row, policy version] pairs, with the current version from row on."""
    versions = [[int(first), int(version)] for first, version in state.get("policy_versions", [])]
    if not versions:
        return [[0, POLICY_VERSION]]
    return versions if versions[-1][1] == POLICY_VERSION else [*versions, [row, POLICY_VERSION]]
