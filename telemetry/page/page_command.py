"""Page command: serves the page of one data directory, until it is told to stop.

In: a data directory, an address, a token.
Out: the link, once; then answers to browsers.
Never: touches what is recorded. Beside a journal it keeps columns, which may be deleted.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

from telemetry.errors import CommandError
from telemetry.page.access import new_token
from telemetry.page.page_app import PageApp
from telemetry.page.page_server import bound_socket, link_of, serve
from telemetry.page.warming import Warming
from telemetry.run_dir import RunDir, runs_of

log = logging.getLogger("telemetry.page")

DEFAULT_ADDRESS: Final = "127.0.0.1:9465"
TOKEN_VARIABLE: Final = "TELEMETRY_PAGE_TOKEN"
NICE: Final = 5
TOKEN_MIN_CHARS: Final = 16


def page(
    data_dir: Path,
    address: str,
    hosts: tuple[str, ...] = (),
    *,
    exit_with_stdin: bool = False,
    is_again: bool = False,
) -> int:
    """Serve the page; return the exit code.

    hosts: names by which other machines reach it; is_again: the link was printed before.

    Raises:
        CommandError: the directory is not there, or the address can't be had.
    """
    _check_data_dir(data_dir)
    token = os.environ.pop(TOKEN_VARIABLE, "") or new_token()
    if len(token) < TOKEN_MIN_CHARS:
        raise CommandError(f"{TOKEN_VARIABLE} must have at least {TOKEN_MIN_CHARS} characters")
    listening = bound_socket(address, or_any_port=address == DEFAULT_ADDRESS)
    with listening:
        port = listening.getsockname()[1]
        log.info("page: %s", link_of(listening, "" if is_again else token))
        app = PageApp(data_dir).guarded(token, port, hosts)
        _give_way()
        Warming(data_dir).start()
        serve(app, listening, exit_with_stdin=exit_with_stdin)
    return 0


def _check_data_dir(path: Path) -> None:
    """Check that a path is a directory that has runs, or may get some.

    Raises:
        CommandError: it is none; the message says what to give instead.
    """
    if not path.is_dir():
        raise CommandError(f"there is no directory {path}")
    if RunDir(path).journal.is_dir():
        raise CommandError(f"{path} is one run; give the data directory that it is in")
    if path.name == runs_of(path).name and not runs_of(path).is_dir():
        raise CommandError(f"{path} has the runs of a data directory; give {path.parent}")


def _give_way() -> None:
    """Let training and recording go first where processors are short."""
    with contextlib.suppress(OSError):
        os.nice(NICE)
