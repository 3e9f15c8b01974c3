"""`python -m telemetry`: the commands of the sidecar."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# `python -m` searches the working directory first. Where this package was found elsewhere, a
# folder `shared` in the working directory is another project's and must not be imported.
ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__" and not sys.flags.safe_path and Path(sys.path[0]).resolve() != ROOT:
    del sys.path[0]
found = importlib.util.find_spec("shared")
places = [] if found is None else list(found.submodule_search_locations or [])
if places and Path(places[0]).resolve() != ROOT / "shared":
    sys.exit(f"telemetry: {places[0]} hides our package `shared`; take it out of PYTHONPATH")

try:
    from telemetry.cli import main
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
