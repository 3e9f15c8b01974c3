"""Page process: starts the page as a child of the sidecar, and restarts it.

In: the data directory, an address, and the names by which browsers may reach it.
Out: one process, started again after a time that doubles with each quick end.
Never: waits for it while the sidecar serves; takes its failure for one of the sidecar.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from shared.clock import Clock
from shared.programs import module_command, module_environ

log = logging.getLogger("telemetry.service")

RESTART_MIN_S: Final = 5.0
RESTART_MAX_S: Final = 300.0
STEADY_S: Final = 60.0
"""A page that ran for so long had started well: the next wait is the shortest again."""
LINK_S: Final = 10.0
"""A page that ran for so long had printed its link, which is not printed twice."""
TOKEN_BYTES: Final = 24
OFF: Final = "off"
NEEDED: Final = ("jinja2", "numpy", "plotly", "starlette", "uvicorn")
"""Libraries of the extra `page`."""


def missing_libraries() -> list[str]:
    """Return the libraries of the page that are not installed; none of them is imported."""
    return [name for name in NEEDED if find_spec(name) is None]


class PageProcess:
    """The page's process. Not thread-safe: the journal thread owns it."""

    def __init__(
        self, data_dir: Path, address: str, hosts: tuple[str, ...], token: str, clock: Clock
    ) -> None:
        """Prepare the process. address: HOST:PORT, or `off`; token: "" for a new one."""
        words = ["page", str(data_dir.absolute()), f"--page={address}", "--exit-with-stdin"]
        self._command = module_command("telemetry", *words, f"--page-host={','.join(hosts)}")
        self._token = token or secrets.token_urlsafe(TOKEN_BYTES)
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._is_wanted = address != OFF
        self._began_ns = self._not_before_ns = 0
        self._wait_s = RESTART_MIN_S
        self._was_up = False

    def keep(self) -> None:
        """Start the page if it is not running, unless it must wait."""
        if not self._is_wanted:
            return
        now = self._clock.monotonic_ns()
        if self._process is not None and self._process.poll() is not None:
            self._note_end(self._process.returncode, now)
        if self._process is None and now >= self._not_before_ns:
            self._start(now)

    def _start(self, now: int) -> None:
        if missing := missing_libraries():
            words = ", ".join(missing)
            log.info("no page: it needs %s: pip install 'training-telemetry[page]'", words)
            self._is_wanted = False
            return
        # One token for all starts: a browser that is open goes on where the page comes back.
        environ = module_environ(os.environ) | {"TELEMETRY_PAGE_TOKEN": self._token}
        again = ["--again"] if self._was_up else []
        try:
            self._process = subprocess.Popen(
                [*self._command, *again], env=environ, stdin=subprocess.PIPE, start_new_session=True
            )
        except OSError as exc:
            log.warning("the page can't be started: %s", exc)
            self._not_before_ns = now + int(self._wait_s * 1e9)
            return
        self._began_ns = now

    def _note_end(self, code: int, now: int) -> None:
        assert self._process is not None
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
        self._was_up = self._was_up or now - self._began_ns > LINK_S * 1e9
        if now - self._began_ns > STEADY_S * 1e9:
            self._wait_s = RESTART_MIN_S
        log.warning("the page ended with exit code %d, retry_s=%.0f", code, self._wait_s)
        self._not_before_ns = now + int(self._wait_s * 1e9)
        self._wait_s = min(self._wait_s * 2, RESTART_MAX_S)

    def end(self) -> None:
        """End it within about 4 s, by a kill if need be. May be called twice."""
        self._is_wanted = False
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(3)
        except subprocess.TimeoutExpired:
            # It only reads: nothing is lost with it.
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
        self._process = None
