"""W&B: the key, the server, and the rate of recorded runs against W&B's published limits.

In: the environment, the configuration, and recorded journals.
Out: findings.
Never: shows the key, sends anything of a run, or imports wandb itself: that is the sink's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shared.redact import redacted
from telemetry.checks.check import ABSENT, DOUBTFUL, FAILS, WORKS, Finding
from telemetry.journal.layout import read_mark
from telemetry.journal.reader import JournalReader, NotAJournal
from telemetry.sinks.base import SinkUnavailable
from telemetry.sinks.wandb.selection import Policy

PART: Final = "W&B"
RATE: Final = "W&B rate"
ROWS_A_MINUTE: Final = 1_000
VALUES_A_MINUTE: Final = 100_000
METRICS_MAX: Final = 10_000
STEPS_MAX: Final = 500_000
"""Limits that W&B publishes; above them its pages get slow, or it refuses rows."""
ROWS_READ_MAX: Final = 20_000
"""Rows at the end of a journal that are looked at."""
SKEW_MAX_S: Final = 30.0


def look_at_server(
    environ: Mapping[str, str], wandb_mode: str, *, is_asked: bool, timeout_s: float
) -> Iterator[Finding]:
    """Yield findings on the key and the server.

    is_asked: the sink was named by the user. A key, or the mode online, asks for W&B as well.
    """
    if importlib.util.find_spec("wandb") is None:
        return
    from telemetry.sinks.wandb.viewer import ask_viewer

    is_online = wandb_mode == "online" or environ.get("WANDB_MODE", "").lower() == "online"
    try:
        viewer = ask_viewer(timeout_s)
    except SinkUnavailable as exc:
        yield Finding(PART, FAILS if is_asked else DOUBTFUL, str(exc), "see pip check")
        return
    url = redacted(viewer.base_url)
    if not viewer.has_key:
        advice = "set WANDB_API_KEY or run `wandb login`"
        text = f"no API key for {url}: runs stay offline, and can be uploaded later"
        yield Finding(PART, FAILS if is_online else ABSENT, text, advice)
    elif viewer.is_refused:
        advice = "run `wandb login --relogin`, or correct WANDB_API_KEY"
        yield Finding(PART, FAILS, f"{url} refuses the API key: {viewer.why}", advice)
    elif viewer.why:
        advice = "look at the network, WANDB_BASE_URL and proxies; runs go on offline meanwhile"
        yield Finding(PART, FAILS, f"{url} gives no good answer: {viewer.why}", advice)
    else:
        yield Finding(PART, WORKS, f"{url} knows the API key, of {viewer.user}")
    yield from _skew(viewer.clock_ahead_s)


def _skew(ahead_s: float | None) -> Iterator[Finding]:
    if ahead_s is None:
        return
    text = f"this clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'}"
    if abs(ahead_s) > SKEW_MAX_S:
        advice = "run a time service such as chrony: points would be at wrong times"
        yield Finding("clock", DOUBTFUL, f"{text} the W&B server's", advice)
    else:
        yield Finding("clock", WORKS, f"{text} the W&B server's")


@dataclass
class Rate:
    """Rows that W&B gets from a part of a journal."""

    rows: int = 0
    values: int = 0
    first_ns: int = 0
    last_ns: int = 0
    names: set[str] = field(default_factory=set)

    @property
    def minutes(self) -> float:
        return (self.last_ns - self.first_ns) / 60e9


def look_at_rate(data_dir: Path) -> Iterator[Finding]:
    """Yield findings on the run that was recorded last, against the limits of W&B."""
    journals = sorted((data_dir / "runs").glob("*/journal"), key=_modified_ns)
    if not journals:
        yield Finding(RATE, ABSENT, "no run is recorded yet, of which the rate would be known")
        return
    run_id = journals[-1].parent.name
    try:
        rate, steps = read_rate(journals[-1])
    except (OSError, NotAJournal) as exc:
        yield Finding(RATE, DOUBTFUL, f"run {run_id} can't be read: {exc}", "telemetry inspect it")
        return
    yield from judged(run_id, rate, steps)


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # removed meanwhile
        return 0


def read_rate(journal: Path) -> tuple[Rate, int]:
    """Return the rate at the end of a journal, and the number of its rows."""
    mark = read_mark(journal)
    end = mark.next_row if mark else 0
    rate, policy = Rate(), Policy()
    with JournalReader(journal, max(0, end - ROWS_READ_MAX), is_recorded=True) as reader:
        while (batch := reader.read()).rows or not batch.is_end:
            for row in batch.rows:
                policy, selected = policy.after(row)
                wall_ns = row.envelope.wall_ns
                rate.first_ns = rate.first_ns or wall_ns
                rate.last_ns = max(rate.last_ns, wall_ns)
                if selected.history:
                    rate.rows += 1
                    rate.values += len(selected.history)
                    rate.names.update(selected.history)
    return rate, end


def judged(run_id: str, rate: Rate, steps: int) -> Iterator[Finding]:
    """Yield findings on a rate."""
    advice = "log less often, or fewer values; everything stays in the journal"
    if rate.minutes >= 0.2:
        rows, values = rate.rows / rate.minutes, rate.values / rate.minutes
        text = (
            f"run {run_id}: {rows:,.0f} rows and {values:,.0f} values a minute; W&B takes about "
            f"{ROWS_A_MINUTE:,} and {VALUES_A_MINUTE:,}"
        )
        is_fine = rows <= ROWS_A_MINUTE and values <= VALUES_A_MINUTE
        yield Finding(RATE, WORKS if is_fine else DOUBTFUL, text, "" if is_fine else advice)
    else:
        yield Finding(RATE, ABSENT, f"run {run_id} is too short to know its rate")
    if len(rate.names) > METRICS_MAX:
        text = f"run {run_id}: {len(rate.names):,} metrics, W&B takes about {METRICS_MAX:,}"
        yield Finding(RATE, DOUBTFUL, text, "log fewer names")
    if steps > STEPS_MAX:
        text = f"run {run_id}: {steps:,} rows, W&B shows about {STEPS_MAX:,} well"
        yield Finding(RATE, DOUBTFUL, text, advice)
