"""`python -m telemetry`: the commands of the sidecar."""

from __future__ import annotations

# Ctrl-C while modules load ends the process at once, without a traceback. This module is built
# in: to import `signal` takes long enough to be interrupted.
import _signal  # type: ignore[import-not-found]
import sys

interruptible = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
if interruptible:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import importlib.util  # noqa: E402
from pathlib import Path  # noqa: E402

# `python -m` searches the working directory first. Where this package was found elsewhere, a
# folder `shared` in the working directory is another project's and must not be imported.
ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__" and not sys.flags.safe_path and Path(sys.path[0]).resolve() != ROOT:
    del sys.path[0]
found = importlib.util.find_spec("shared")
places = [] if found is None else list(found.submodule_search_locations or [])
if places and Path(places[0]).resolve() != ROOT / "shared":
    sys.exit(f"telemetry: {places[0]} hides our package `shared`; take it out of PYTHONPATH")

from telemetry.cli import main  # noqa: E402

if interruptible:
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)

if __name__ == "__main__":
    sys.exit(main())
