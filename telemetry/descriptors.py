"""Descriptors: shares out the file descriptors of this process to connections and runs.

In: the limits of the process.
Out: the soft limit raised to the hard one, and shares of it for each use.
Never: lets a use come near the limit: libzmq aborts where it finds no descriptor.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from telemetry.errors import CommandError

LIMIT_MIN: Final = 512
LIMIT_USED_MAX: Final = 65_536
"""More than this is never shared out, whatever the limit is."""

PER_RUN: Final = 3
"""Descriptors of an open run: its lock, its segment and its durable mark."""

SPARE: Final = 48
"""Descriptors for uses without a share: spools, a file that is written, a new process."""


@dataclass(frozen=True)
class Shares:
    """Numbers of descriptors, connections and runs that may be open at once."""

    limit: int
    connections: int
    runs: int

    def has_spare(self) -> bool:
        """Return True if a new run may take descriptors now."""
        return open_descriptors() + PER_RUN <= self.limit - SPARE


def prepare_descriptors() -> Shares:
    """Raise the soft limit to the hard one, and share out what there is.

    Raises:
        CommandError: there are too few to serve with.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, LIMIT_USED_MAX)
    if soft != wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < LIMIT_MIN:
        raise CommandError(
            f"the limit of open files is {wanted}, serve needs at least {LIMIT_MIN}; "
            "raise it (ulimit -n) and start again"
        )
    return shares_of(min(wanted, LIMIT_USED_MAX))


def shares_in_use() -> Shares:
    """Return the shares of the present soft limit, without raising it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return shares_of(min(soft, LIMIT_USED_MAX) if soft > 0 else LIMIT_USED_MAX)


def shares_of(limit: int) -> Shares:
    """Share out a limit: three eighths for peers, a quarter for runs, the rest for all else.

    The rest is large because a connection is refused only after libzmq has accepted it: what a
    burst opens before the refusals catch up has to fit as well.
    """
    return Shares(limit, limit * 3 // 8, limit // 4 // PER_RUN)


def open_descriptors() -> int:
    """Return the number of descriptors that this process has open."""
    try:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only, once a second
    except OSError:
        return sum(1 for _ in Path("/dev/fd").iterdir())
