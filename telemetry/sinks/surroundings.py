"""Surroundings: the environment and the working directory that a sink process gets.

In: the environment that the sidecar, or a command, was started with.
Out: the part of it that a sink process gets.
Never: passes on variables that were meant for other programs, or for another run.

All variables are passed on except `WANDB_*`, `TELEMETRY_*` and those that change how
Python starts. Of W&B's variables only those are passed on that say how to reach its server
and where wandb keeps its own files. WANDB_MODE and WANDB_ENTITY are read once, as defaults
for runs that do not set them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from shared.programs import module_environ
from shared.wandb_variables import said_of_run

WANDB_KEPT: Final = frozenset(
    {
        "WANDB_API_KEY",
        "WANDB_BASE_URL",
        "WANDB_HTTP_PROXY",
        "WANDB_HTTPS_PROXY",
        "WANDB__PROXIES",
        "WANDB__EXTRA_HTTP_HEADERS",
        "WANDB_INSECURE_DISABLE_SSL",
    }
)
PATHS: Final = frozenset(
    {
        "WANDB_IDENTITY_TOKEN_FILE",
        "WANDB_CREDENTIALS_FILE",
        "WANDB_CACHE_DIR",
        "WANDB_CONFIG_DIR",
        "WANDB_DATA_DIR",
        "NETRC",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    }
)
"""Variables that name a file; made absolute, because a sink runs in another directory."""

PYTHON_HOOKS: Final = frozenset(
    {
        "PYTHONSTARTUP",
        "PYTHONBREAKPOINT",
        "PYTHONINSPECT",
        "PYTHONWARNINGS",
        "PYTHONPROFILEIMPORTTIME",
        "PYTHONVERBOSE",
        "PYTHONDEBUG",
        "PYTHONDUMPREFS",
        "PYTHONDUMPREFSFILE",
        "PYTHONCASEOK",
        "COVERAGE_PROCESS_START",
    }
)
DEFAULTS: Final = {"mode": "wandb_mode", "entity": "entity"}
"""Sink options, each with the field of RunStarted that it is a default for."""


def sink_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a sink process, which also finds this package in it."""
    kept = {name: value for name, value in environ.items() if _passes(name)}
    for name in PATHS & kept.keys():
        if kept[name]:
            kept[name] = _absolute(kept[name])
    if path := kept.get("PYTHONPATH"):
        kept["PYTHONPATH"] = os.pathsep.join(_absolute(part) for part in path.split(os.pathsep))
    return module_environ(kept)


def sink_defaults(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the options that the sidecar's own W&B variables give to sinks.

    A run's own values take precedence over them.
    """
    said = said_of_run(environ)
    return {f"default_{name}": said[field] for name, field in DEFAULTS.items() if field in said}


@contextmanager
def own_surroundings(directory: Path) -> Iterator[dict[str, str]]:
    """Give this process a sink's surroundings for a while; yields the default options.

    For a sink that was started by hand, or by a replay. directory must exist, and hold
    no file that a library would read as its configuration.
    """
    before, cwd = dict(os.environ), _open_cwd()
    wanted = sink_environ(before)
    _set_environ(wanted)
    os.chdir(directory)
    try:
        yield sink_defaults(before)
    finally:
        if cwd is not None:
            os.fchdir(cwd)
            os.close(cwd)
        _set_environ(before)


def _open_cwd() -> int | None:
    """Return a descriptor of the working directory; None if it was removed."""
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None


def _set_environ(wanted: Mapping[str, str]) -> None:
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


def _passes(name: str) -> bool:
    if name in WANDB_KEPT or name in PATHS:
        return True
    return not name.startswith(("WANDB_", "TELEMETRY_")) and name not in PYTHON_HOOKS


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
