"""Errors that end a command, each with one sentence for the person who gave it."""

from __future__ import annotations

EXIT_OK = 0
EXIT_DAMAGED = 1
EXIT_CRASHED = 1
EXIT_USAGE = 2
EXIT_BACKLOG = 3
EXIT_FAULT = 4
EXIT_RUNNING = 5
EXIT_INTERRUPTED = 130


class CommandError(Exception):
    """A command that can't be done as given. The message names the cause and what to do."""

    def __init__(self, message: str, exit_code: int = EXIT_USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code
