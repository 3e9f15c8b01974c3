"""Programs: commands that run our own modules as child processes from any directory.

In: the name of a module of ours, and its arguments.
Out: a command line and an environment that run that module, not one of the same name.
Never: imports what it starts.

`python -m` puts the working directory before everything else, and a training project
may well have a folder `telemetry`, `shared` or `trainer` of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
"""The directory that our packages were imported from."""

INSTALLED: Final = ("site-packages", "dist-packages")


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs one of our modules; it needs `module_environ`."""
    # -P: neither the working directory nor a script's is searched for modules.
    # utf8: under LC_ALL=C libraries fail for a path that is not ASCII.
    return [sys.executable, "-P", "-X", "utf8", "-m", module, *arguments]


def module_environ(environ: Mapping[str, str], root: Path = ROOT) -> dict[str, str]:
    """Return the environment in which `module_command` finds our packages first.

    Installed packages are found anyway, so PYTHONPATH is left alone: `site-packages` in
    front of the standard library could hide modules of the library.
    """
    result = dict(environ)
    if root.name not in INSTALLED:
        others = [part for part in environ.get("PYTHONPATH", "").split(os.pathsep) if part]
        result["PYTHONPATH"] = os.pathsep.join([str(root), *others])
    return result
