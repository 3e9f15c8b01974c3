"""Sockets: the address for trainers, the address of the status pages, and descriptors.

In: the configuration of the sidecar.
Out: findings; an address that the running sidecar has is asked, a free one is tried.
Never: takes an address away from a program that has it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shared.socket_path import PATH_MAX_BYTES
from telemetry.checks.check import ABSENT, DOUBTFUL, FAILS, WORKS, Finding
from telemetry.config import ServeConfig
from telemetry.datadir import holder_of, is_held
from telemetry.descriptors import LIMIT_MIN

PART: Final = "socket"
STATUS: Final = "status"
TIMEOUT_S: Final = 3.0


def look_at_socket(config: ServeConfig) -> Iterator[Finding]:
    """Yield findings on the address that trainers send to."""
    address = config.address
    transport, _, rest = address.partition("://")
    if transport == "ipc" and len(os.fsencode(rest)) > PATH_MAX_BYTES:
        size = len(os.fsencode(rest))
        text = f"the path has {size} bytes, the kernel takes {PATH_MAX_BYTES}: {rest}"
        yield Finding(PART, FAILS, text, "give a shorter --bind or --data-dir")
        return
    if is_held(config.data_dir):
        pid, served = holder_of(config.data_dir)
        yield _asked(pid, served or address)
    elif transport == "ipc":
        yield _ipc_to_be_made(rest)
    else:
        yield _tried(PART, "--bind", rest)


def _asked(pid: str, address: str) -> Finding:
    """Return a finding on the address of the sidecar that runs now."""
    text = f"the sidecar with pid {pid} serves {address}"
    try:
        _connect(address).close()
    except OSError as exc:
        why = exc.strerror or str(exc)
        advice = f"end the process {pid} and start the sidecar again"
        return Finding(PART, FAILS, f"{text}, but no connection is taken: {why}", advice)
    return Finding(PART, WORKS, text)


def _connect(address: str) -> socket.socket:
    """Connect to an ipc or tcp address.

    Raises:
        OSError: nobody takes the connection within TIMEOUT_S.
    """
    transport, _, rest = address.partition("://")
    if transport == "ipc":
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(TIMEOUT_S)
        try:
            client.connect("\0" + rest[1:] if rest.startswith("@") else rest)
        except OSError:
            client.close()
            raise
        return client
    host, _, port = rest.rpartition(":")
    name = host.strip("[]")
    return socket.create_connection(
        ("127.0.0.1" if name in ("*", "0.0.0.0") else name, int(port)), TIMEOUT_S
    )


def _ipc_to_be_made(rest: str) -> Finding:
    if rest.startswith("@"):
        return Finding(PART, WORKS, f"ipc://{rest}: abstract, it needs no file")
    parent = Path(rest).parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        text = f"no socket can be made in {parent}"
        return Finding(PART, FAILS, text, "give another --bind, or let this user write there")
    size = len(os.fsencode(rest))
    return Finding(PART, WORKS, f"ipc://{rest}: {size} of at most {PATH_MAX_BYTES} bytes")


def _tried(part: str, flag: str, address: str) -> Finding:
    """Bind a TCP address for a moment, to see that it can be had."""
    host, _, port = address.rpartition(":")
    name = host.strip("[]")
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("" if name == "*" else name or "127.0.0.1", int(port)))
    except (OSError, ValueError, OverflowError) as exc:
        why = getattr(exc, "strerror", None) or exc
        text = f"{address} can't be had: {why}"
        return Finding(part, FAILS, text, f"choose another with {flag}")
    return Finding(part, WORKS, f"{address} is free")


def look_at_status(config: ServeConfig) -> Iterator[Finding]:
    """Yield findings on the address of /livez, /readyz and /metrics."""
    if config.http == "off":
        yield Finding(STATUS, ABSENT, "no status pages: --http is off")
    elif not is_held(config.data_dir):
        yield _tried(STATUS, "--http", config.http)
    else:
        yield from _readiness(config.http)


def _readiness(address: str) -> Iterator[Finding]:
    """Ask the sidecar that runs. It may have been started with another --http."""
    host, _, port = address.rpartition(":")
    url = f"http://{host or '127.0.0.1'}:{port}/readyz"
    try:
        with _direct().open(url, timeout=TIMEOUT_S) as answer:
            answer.read(1000)
        yield Finding(STATUS, WORKS, f"{url} answers that the sidecar is ready")
    except urllib.error.HTTPError as exc:
        with exc, contextlib.suppress(OSError):
            said = exc.read(1000).decode("utf-8", "replace").strip()
            yield Finding(STATUS, FAILS, f"the sidecar is not ready: {said}", "see its log")
    except OSError:
        text = f"{url} does not answer; the sidecar may have another --http"
        yield Finding(STATUS, DOUBTFUL, text, "look into the sidecar's log for its address")


def _direct() -> urllib.request.OpenerDirector:
    # Never through a proxy of the environment: the address is this machine's.
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def look_at_descriptors() -> Iterator[Finding]:
    """Yield a finding on the limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "no limit" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    text = f"open files: {soft:,} now, {most} at most; the sidecar raises it by itself"
    if hard != resource.RLIM_INFINITY and hard < LIMIT_MIN:
        yield Finding("limits", FAILS, text, f"raise it to {LIMIT_MIN} or more: ulimit -n")
    else:
        yield Finding("limits", WORKS, text)
