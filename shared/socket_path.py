"""Socket path: the address of a sidecar on this machine, short enough for the kernel.

In: the directory of the sidecar's data, and the environment.
Out: the path of a Unix socket of at most 107 bytes, that only this user can reach.
Never: the same path for two directories of data.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

SOCKET_NAME: Final = "telemetry.sock"
PATH_MAX_BYTES: Final = 107
"""`sun_path` of Linux has 108 bytes, the last of them NUL."""


def fits(path: Path) -> bool:
    """True if the path is short enough for the kernel as the path of a socket."""
    return len(os.fsencode(path)) <= PATH_MAX_BYTES


def socket_path(data_dir: Path, environ: Mapping[str, str]) -> Path:
    """Return the path of the socket of a data directory.

    The socket is in the data directory if that path is short enough. Otherwise it is in a
    private temporary directory of this user, under a hash of the data directory: the same
    data directory and environment always give the same path. If no such directory can be
    made, the long path is returned, and binding it fails with a message.

    Raises:
        OSError, RuntimeError, ValueError: the path of the data can't be resolved.
    """
    resolved = data_dir.resolve()
    path = resolved / SOCKET_NAME
    if fits(path):
        return path
    name = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16] + ".sock"
    for parent in temporary_directories(environ):
        directory = parent / f"telemetry-{os.getuid()}"
        if fits(directory / name) and _make_private(directory):
            return directory / name
    return path


def temporary_directories(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield directories for files that live as long as a process, best first."""
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime)
    # gettempdir raises if it finds no directory that can be written.
    with contextlib.suppress(OSError):
        yield Path(tempfile.gettempdir()).absolute()
    for name in ("/tmp", "/dev/shm", "/var/tmp"):
        yield Path(name)


def _make_private(directory: Path) -> bool:
    """Make a directory that only this user can enter; return False if that is impossible.

    In a world-writable directory another user may have made it first, or a link there.
    """
    try:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        # The mode may be too wide, or empty after a umask of 0777.
        if stat.S_IMODE(found.st_mode) != 0o700:
            directory.chmod(0o700)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)
