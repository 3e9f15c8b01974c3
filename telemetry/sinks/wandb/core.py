"""Core: loads the wandb library, translates its errors, and ends its wandb-core process.

In: the library in any state, also broken or missing.
Out: the library, or our exception in its place; wandb-core ended when it has to be.
Never: waits for wandb-core without a limit, or lets a secret into a message.
"""

from __future__ import annotations

import functools
import importlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

import psutil

from telemetry.sinks.base import SinkUnavailable

INSTALL: Final = "wandb is not installed: pip install 'training-telemetry[wandb]'"


def check_installed() -> None:
    """Import wandb.

    Raises:
        SinkUnavailable: wandb is not installed, or broken; the message says what to do.
    """
    library()


class Access(NamedTuple):
    """The server that wandb is set up for, and what wandb would authenticate with there.

    auth: None if wandb has no key for the server, or refuses the form of the key.
    refusal: wandb's reason, where there is a key of a form that it refuses.
    """

    base_url: str
    auth: Any = None
    refusal: str = ""


def access() -> Access:
    """Return the server that wandb is set up for, and the key that it has for it.

    Raises:
        SinkUnavailable: wandb is not installed, or fails.
    """
    wandb = library()
    wbauth = importlib.import_module("wandb.sdk.lib.wbauth")
    with translated():
        base_url = wandb.setup(wandb.Settings(silent=True)).settings.base_url
        try:
            auth = wbauth.authenticate_session(
                host=base_url, source="telemetry", prompt=False, update_session=False
            )
        except wandb.errors.AuthenticationError as exc:
            return Access(base_url, refusal=without_secrets(exc))
    return Access(base_url, auth)


def let_go() -> None:
    """Kill this process's wandb-core, and reset the library.

    wandb-core is killed because, asked to end, it waits without limit for a server to
    take its data. After a failed start the library has to be reset, or the next start
    fails because the run id is in use.
    """
    setup = importlib.import_module("wandb.sdk.wandb_setup")
    service = getattr(getattr(setup, "_singleton", None), "_connection", None)
    core = getattr(service, "_proc", None)
    kill_core()
    # wandb raises SystemExit when its core was ended by a signal.
    with suppress(SystemExit, SinkUnavailable), translated():
        library().teardown()
    if core is not None:
        core.join()


def kill_core() -> None:
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if child.name() == "wandb-core":
                child.kill()


@contextmanager
def core_killed_after(limit_s: float) -> Iterator[None]:
    """Bound a call that waits for wandb-core: kill the core after limit_s, so the call fails."""
    timer = threading.Timer(limit_s, kill_core)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class RowRefused(Exception):
    """Error: the library raised for the content of one row. Other rows may be fine."""


@contextmanager
def translated(*, of_row: bool = False) -> Iterator[None]:
    """Translate wandb's exceptions into SinkUnavailable or, with of_row, RowRefused.

    of_row: the call hands over the content of a row.

    Raises:
        SinkUnavailable: wandb-core has ended, is too slow, or refuses.
        RowRefused: of_row is set, and wandb raised anything else.
    """
    failures = _failures()
    try:
        yield
    except (SinkUnavailable, RowRefused):
        raise
    except failures as exc:
        raise SinkUnavailable(without_secrets(exc)) from exc
    except MemoryError:
        raise
    except Exception as exc:
        if not of_row:
            raise
        raise RowRefused(without_secrets(exc)) from exc


def without_secrets(exc: BaseException) -> str:
    """Return an exception as one line, without anything that could be a key or a password."""
    text = f"{type(exc).__name__}: {' '.join(str(exc).split())}"
    text = re.sub(r"//[^/@\s]*@", "//", text)
    return re.sub(r"[A-Za-z0-9_-]{40,}", "[removed]", text)[:300]


@functools.cache
def library() -> Any:
    try:
        return importlib.import_module("wandb")
    except ModuleNotFoundError as exc:
        raise SinkUnavailable(INSTALL if exc.name == "wandb" else without_secrets(exc)) from exc
    # A broken installation may raise anything, a protobuf mismatch for example TypeError.
    except Exception as exc:
        raise SinkUnavailable(f"wandb can't be imported: {without_secrets(exc)}") from exc


def api_failure() -> type[Exception]:
    """Return the class of the exception for a failed question to the server."""
    service = importlib.import_module("wandb.sdk.lib.service.service_connection")
    failure: type[Exception] = service.WandbApiFailedError
    return failure


@functools.cache
def _failures() -> tuple[type[BaseException], ...]:
    """Return the exceptions that wandb raises if its core or a server can't be reached."""
    errors = importlib.import_module("wandb.errors")
    mailbox = importlib.import_module("wandb.sdk.mailbox.mailbox_handle")
    closed = importlib.import_module("wandb.sdk.mailbox.mailbox")
    service = importlib.import_module("wandb.sdk.lib.service.service_token")
    return (
        errors.Error,
        OSError,  # ConnectionResetError, BrokenPipeError, TimeoutError
        closed.MailboxClosedError,
        mailbox.HandleAbandonedError,
        mailbox.ServerResponseError,
        service.WandbServiceConnectionError,
    )
