"""Capture of standard error: starts the process that passes it on, and asks for its last lines.

In: the standard error that `telemetry run` was given, a terminal or not.
Out: a descriptor for the command's standard error; at the end, its last lines without secrets.
Never: keeps a command from starting: without a pipe or a process it writes to ours directly.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pty
import signal
import socket
import subprocess
import termios
import time
import tty
from collections.abc import Mapping
from typing import Final

from shared.programs import module_command, module_environ
from shared.redact import SECRET, is_secret, redacted_text
from shared.text import clean
from telemetry.commands.stderr_tail import KEPT_BYTES, lines_of
from telemetry.exits import STDERR_MAX_CHARS

log = logging.getLogger("telemetry.commands.launch")

STDERR: Final = 2
ANSWER_S: Final = 2.0
LINE_MAX_CHARS: Final = 1_000
SECRET_MIN_CHARS: Final = 6
"""Values of secret variables that are shorter are words that may stand anywhere."""


class Capture:
    """The standard error of one command. Not thread-safe."""

    def __init__(self) -> None:
        self.fd = STDERR
        """The descriptor for the command; our own standard error where nothing is captured."""
        self._asker: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except OSError as exc:
            log.warning("standard error of the command is not recorded: %s", exc)

    def let_go(self) -> None:
        """Close our copy of the command's end, after the command has started."""
        if self.fd != STDERR:
            os.close(self.fd)
            self.fd = STDERR

    def last_lines(self, environ: Mapping[str, str]) -> str:
        """Return the last lines, without secrets; empty where they don't come within ANSWER_S.

        environ: the command's environment, whose secrets may stand in its lines.
        """
        if self._asker is None:
            return ""
        data, deadline_s = b"", time.monotonic() + ANSWER_S
        with self._asker as asker, contextlib.suppress(OSError):
            asker.shutdown(socket.SHUT_WR)
            while len(data) <= KEPT_BYTES and (left_s := deadline_s - time.monotonic()) > 0:
                asker.settimeout(left_s)
                if not (chunk := asker.recv(KEPT_BYTES)):
                    break
                data += chunk
        self._asker = None
        return without_secrets(data, environ)

    def _start(self) -> None:
        """Start the process that passes it on.

        Raises:
            OSError: there is no descriptor, no terminal or no process to be had.
        """
        with contextlib.ExitStack() as undo:
            source_fd, command_fd = _terminal() if os.isatty(STDERR) else os.pipe()
            undo.callback(os.close, source_fd)
            with contextlib.ExitStack() as on_failure:
                on_failure.callback(os.close, command_fd)
                ours, theirs = socket.socketpair()
                undo.callback(theirs.close)
                on_failure.callback(ours.close)
                fd = theirs.fileno()
                # A session of its own: Ctrl-C is for the command.
                self._process = subprocess.Popen(
                    module_command("telemetry.commands.stderr_tail", str(fd)),
                    env=module_environ(os.environ),
                    stdin=source_fd,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(fd,),
                    start_new_session=True,
                    preexec_fn=_ignore_signals,
                )
                on_failure.pop_all()
        self.fd, self._asker = command_fd, ours


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _terminal() -> tuple[int, int]:
    """Return the two ends of a terminal that changes no byte, with the size of ours.

    A command that draws progress bars does so only on a terminal.

    Raises:
        OSError: there is none to be had.
    """
    source_fd, command_fd = pty.openpty()
    try:
        tty.setraw(command_fd)
        size = fcntl.ioctl(STDERR, termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(command_fd, termios.TIOCSWINSZ, size)
    except (OSError, termios.error) as exc:
        os.close(source_fd)
        os.close(command_fd)
        raise OSError(str(exc)) from exc
    return source_fd, command_fd


def without_secrets(data: bytes, environ: Mapping[str, str]) -> str:
    """Return the lines of the last bytes, printable and without secrets; the oldest are cut."""
    secrets = [
        value
        for name, value in environ.items()
        if is_secret(name) and len(value) >= SECRET_MIN_CHARS
    ]
    lines: list[str] = []
    room = STDERR_MAX_CHARS
    for line in reversed(list(lines_of(data))):
        for secret in secrets:
            line = line.replace(secret, SECRET)
        shown = clean(redacted_text(line), LINE_MAX_CHARS)
        room -= len(shown) + 1
        if room < 0:
            break
        lines.append(shown)
    return "\n".join(reversed(lines))
