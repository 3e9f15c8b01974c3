"""`python -m telemetry`: the commands of the sidecar."""

from __future__ import annotations

import sys
from pathlib import Path

# `python -m` searches the working directory before everything else. Where we were found
# elsewhere, a folder `shared` in it is somebody's own, and not for us.
ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__" and not sys.flags.safe_path and Path(sys.path[0]).resolve() != ROOT:
    del sys.path[0]

from telemetry.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
