"""Sampler process: starts the sampler as a child of the sidecar, and restarts it.

In: the address of the sidecar, and the sampling rate.
Out: one process, started again RESTART_NS after it ended.
Never: waits for it while the sidecar serves.
"""

from __future__ import annotations

import logging
import os
import subprocess
from typing import Final

from shared.clock import Clock
from shared.programs import module_command, module_environ

log = logging.getLogger("telemetry.service")

RESTART_NS: Final = 5_000_000_000


class SamplerProcess:
    """The sampler's process. Not thread-safe: the journal thread owns it."""

    def __init__(self, endpoint: str, host: str, hz: float, clock: Clock) -> None:
        self._command = module_command(
            "telemetry.hardware.sampler", "--endpoint", endpoint, "--host", host, "--hz", str(hz)
        )
        self._is_wanted = hz > 0
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before_ns = 0

    def keep(self) -> None:
        """Start the sampler if it is not running."""
        if not self._is_wanted:
            return
        now = self._clock.monotonic_ns()
        if self._process is not None and self._process.poll() is not None:
            log.warning("sampler ended with exit code %s", self._process.returncode)
            self.end()
            self._not_before_ns = now + RESTART_NS
        if self._process is None and now >= self._not_before_ns:
            self._process = subprocess.Popen(
                self._command,
                env=module_environ(os.environ),
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    def ask_to_end(self) -> None:
        """Close its standard input: it sends its last values and ends by itself."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def end(self) -> None:
        """End it within about 2 s, by a kill if need be. May be called twice."""
        if self._process is None:
            return
        self.ask_to_end()
        self._process.terminate()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
