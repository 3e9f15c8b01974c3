"""Log lines of the sidecar's processes: one form, on stderr."""

from __future__ import annotations

import logging
import sys


def configure_logs() -> None:
    """What happens goes to stderr, marked as ours among the trainer's own lines."""
    logging.basicConfig(level=logging.INFO, format="telemetry: %(message)s", stream=sys.stderr)
