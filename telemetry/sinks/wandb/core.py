"""The library and its wandb-core process: loading the one, ending the other.

In: whatever state wandb is in.
Out: wandb, or our exception in its place; wandb-core gone when it has to be.
Never: waits for wandb-core without a limit, or lets a secret into a message.
"""

from __future__ import annotations

import functools
import importlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import psutil

from telemetry.sinks.base import SinkUnavailable

INSTALL: Final = "wandb is not installed: pip install 'training-telemetry[wandb]'"


def check_installed() -> None:
    """Import wandb.

    Raises:
        SinkUnavailable: it is not installed, or broken; the message says what to do.
    """
    library()


def let_go() -> None:
    """End wandb-core in this process, whatever it is at.

    Asked to end, it first waits for a server to take all it has, for ever, and a
    failed start that is not let go of makes a second one say that the id is in use.
    """
    setup = importlib.import_module("wandb.sdk.wandb_setup")
    service = getattr(getattr(setup, "_singleton", None), "_connection", None)
    core = getattr(service, "_proc", None)
    kill_core()
    # SystemExit: so wandb takes it that its core has ended with a signal.
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
    """Bound a call that waits for wandb-core: without it, it fails at once."""
    timer = threading.Timer(limit_s, kill_core)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class RowRefused(Exception):
    """The library raised on what one row holds. Another row may be fine."""


@contextmanager
def translated(*, of_row: bool = False) -> Iterator[None]:
    """Turn what wandb raises into SinkUnavailable; of a row's content, into RowRefused.

    Raises:
        SinkUnavailable: wandb-core is gone, too slow, or says no.
        RowRefused: anything else was raised, and of_row says that a row was handed over.
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
    """An exception in one line, without what could be a key or a password."""
    text = f"{type(exc).__name__}: {' '.join(str(exc).split())}"
    text = re.sub(r"//[^/@\s]*@", "//", text)
    return re.sub(r"[A-Za-z0-9_-]{40,}", "[removed]", text)[:300]


@functools.cache
def library() -> Any:
    try:
        return importlib.import_module("wandb")
    except ModuleNotFoundError as exc:
        raise SinkUnavailable(INSTALL if exc.name == "wandb" else without_secrets(exc)) from exc
    # A broken installation raises whatever it likes, a protobuf mismatch TypeError.
    except Exception as exc:
        raise SinkUnavailable(f"wandb can't be imported: {without_secrets(exc)}") from exc


def api_failure() -> type[Exception]:
    """What a question to the server ends in when it fails."""
    service = importlib.import_module("wandb.sdk.lib.service.service_connection")
    failure: type[Exception] = service.WandbApiFailedError
    return failure


@functools.cache
def _failures() -> tuple[type[BaseException], ...]:
    """All that wandb raises for a service or a server that can't be had."""
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
