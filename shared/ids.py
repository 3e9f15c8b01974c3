"""Ids of runs, sources, sessions and streams, and the alphabet that each may use.

A run id becomes the name of a directory and the id of a wandb run, so it is
held to one alphabet wherever it enters the system.
"""

from __future__ import annotations

import os
import re
import secrets
import time
import uuid
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
SOURCE = re.compile(r"(rank[0-9]{1,6}(\.worker[0-9]{1,7})?|sidecar|hardware:[A-Za-z0-9._-]{1,128})")
MAIN_SOURCE = "rank0"
"""The source that speaks for its run, as source_of_rank(0) names it."""
SIDECAR = "sidecar"
"""The source of what a sidecar itself has to say: gaps, alerts, lost."""
WORKER = ".worker"
HARDWARE_PREFIX = "hardware:"
SESSION = re.compile(r"[A-Za-z0-9-]{1,64}")

SWEEP_RUN_TAKEN = "TELEMETRY_SWEEP_RUN_TAKEN"
"""Set by the process that took a sweep's run id, so that none of its children takes it again."""


def source_of_host(host: str) -> str:
    """Return the source of the sampler on this host."""
    return HARDWARE_PREFIX + host


def host_of(source: str) -> str:
    """Return the host that a sampler's source names; empty for another source."""
    return source.removeprefix(HARDWARE_PREFIX) if source.startswith(HARDWARE_PREFIX) else ""


def source_of_rank(rank: int) -> str:
    """Return the source of the process with this rank in its run, counted from 0."""
    return f"rank{rank}"


class StreamId(NamedTuple):
    """The identity of a stream: one start of one producer, in one run.

    Streams are numbered for each socket and for each journal; this identity holds in all.
    """

    run_id: str
    session: str
    source: str


def new_run_id(environ: MutableMapping[str, str] = os.environ) -> str:
    """Return the id for a new run: the sweep agent's, if there is one, for the first run only.

    Otherwise a new id that sorts by start time: the time in seconds, then 32 random bits.
    A W&B sweep agent sets variables that all later runs and child processes inherit;
    only the first run of the agent's child belongs to the sweep.
    """
    sweep = sweep_of(environ)
    if sweep is not None and environ.get(SWEEP_RUN_TAKEN) != sweep[1]:
        environ[SWEEP_RUN_TAKEN] = sweep[1]
        return sweep[1]
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(4)


def sweep_of(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Return (sweep id, run id) if a W&B sweep agent has set both, else None."""
    sweep_id, run_id = environ.get("WANDB_SWEEP_ID", ""), environ.get("WANDB_RUN_ID", "")
    return (sweep_id, run_id) if sweep_id and RUN_ID.fullmatch(run_id) else None


def new_session() -> str:
    """Return a new id for one start of one producer."""
    return uuid.uuid4().hex


def check_run_id(run_id: str) -> str:
    """Return run_id unchanged.

    Raises:
        ValueError: it is not 1 to 64 letters, digits, `_` or `-`.
    """
    return _check(run_id, RUN_ID, "run id", "1 to 64 letters, digits, '_' or '-'")


def check_source(source: str) -> str:
    """Return source unchanged.

    Raises:
        ValueError: it is none of `rank<n>`, `rank<n>.worker<m>`, `hardware:<host>`, `sidecar`.
    """
    allowed = "'rank<n>', 'rank<n>.worker<m>', 'hardware:<host>' or 'sidecar'"
    return _check(source, SOURCE, "source", allowed)


def check_session(session: str) -> str:
    """Return session unchanged.

    Raises:
        ValueError: it is not 1 to 64 letters, digits or `-`.
    """
    return _check(session, SESSION, "session", "1 to 64 letters, digits or '-'")


def check_stream_id(stream_id: StreamId) -> StreamId:
    """Return stream_id unchanged.

    Raises:
        ValueError: the run id, the session or the source is not valid.
    """
    check_run_id(stream_id.run_id)
    check_session(stream_id.session)
    check_source(stream_id.source)
    return stream_id


def sanitized_host(host: str) -> str:
    """Return a host name with only the characters that a source may contain, at most 128."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", host)[:128] or "unknown"


def host_run_id(host: str) -> str:
    """Return the id of the run that records a host's hardware while nothing trains there."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"host-{host}")[:64]


def main_source(source: str) -> str:
    """Return the source of the process that a worker belongs to; any other source unchanged."""
    return source.partition(WORKER)[0]


def worker_source(source: str, number: int) -> str:
    """Return the source of a worker process of a rank; any other source unchanged."""
    return f"{main_source(source)}{WORKER}{number}" if source.startswith("rank") else source


def _check(value: str, pattern: re.Pattern[str], what: str, allowed: str) -> str:
    # fullmatch: `$` would let a trailing newline through.
    if not pattern.fullmatch(value):
        shown = value if len(value) <= 80 else value[:77] + "..."
        raise ValueError(f"{what} {shown!r} is not valid: it must be {allowed}")
    return value
