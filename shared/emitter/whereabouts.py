"""Whereabouts: the address that an emitter sends to, and the directory it spools in.

In: the arguments of the emitter, and the environment for those not given.
Out: an address and a directory that a later chdir does not move.
Never: raises for a bad value that only the environment gives: the script works without it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from shared.emitter.connection import check_address
from shared.text import clean

log = logging.getLogger("telemetry.emitter")

ENDPOINT_VARIABLE: Final = "TELEMETRY_ENDPOINT"
SPOOL_VARIABLE: Final = "TELEMETRY_SPOOL_DIR"


def endpoint_of(endpoint: Any, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the address to send to; None if there is none that can be used.

    Raises:
        ValueError: the argument is no address, and differs from the environment's.
    """
    said = environ.get(ENDPOINT_VARIABLE) or None
    endpoint = None if endpoint == "" else endpoint  # os.environ.get(…, ""), and a flag left empty
    if endpoint is None and said is None:
        log.warning("telemetry has no endpoint (%s is not set): spooling only", ENDPOINT_VARIABLE)
        return None
    try:
        return absolute_address(check_address(said if endpoint is None else endpoint))
    except ValueError as exc:
        if endpoint is not None and endpoint != said:
            raise
        log.warning("telemetry can't use %s: %s", ENDPOINT_VARIABLE, clean(str(exc), 400))
        return None


def spool_dir_of(spool_dir: Any, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the directory to spool in; None if none is given.

    Raises:
        TypeError: spool_dir is no path.
    """
    found = environ.get(SPOOL_VARIABLE) if spool_dir is None else os.fsdecode(spool_dir)
    return absolute(Path(found)) if found else None


def absolute_address(endpoint: str) -> str:
    """Return endpoint with a path that a later chdir does not move."""
    transport, _, path = endpoint.partition("://")
    # A leading @ marks one of Linux's abstract sockets, which is no path.
    if transport != "ipc" or path.startswith("@"):
        return endpoint
    return f"ipc://{absolute(Path(path))}"


def absolute(path: Path) -> Path:
    """Return path as an absolute one; unchanged if the working directory no longer exists."""
    try:
        return path.expanduser().absolute()
    except (OSError, RuntimeError):
        return path
