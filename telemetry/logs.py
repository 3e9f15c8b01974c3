"""Log lines of the sidecar's processes: one form on stderr, safe from forged lines."""

from __future__ import annotations

import logging
import sys
from typing import Final

from shared.text import clean

LINE_MAX_CHARS: Final = 4_000


class CleanFormatter(logging.Formatter):
    """A formatter that lets no record be more than one line, or act on a terminal.

    Names and reasons in a message may come from any client. A traceback keeps its lines.
    """

    def format(self, record: logging.LogRecord) -> str:
        message = clean(record.getMessage(), LINE_MAX_CHARS)
        lines = [f"telemetry: {message}"]
        if record.exc_info:
            text = self.formatException(record.exc_info)
            # Indented, so that no line of it looks like a log message of the sidecar.
            lines += [f"  {clean(line, LINE_MAX_CHARS)}" for line in text.split("\n")]
        return "\n".join(lines)


def configure_logs() -> None:
    """Send log records to stderr, marked `telemetry:` among the lines of the trainer."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(CleanFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
