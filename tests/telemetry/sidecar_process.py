"""A real sidecar in a process of its own, without sinks and sampler unless asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from shared.closing import Closing
from telemetry.datadir import holder_of, is_held
from tests.telemetry.waiting import wait_until

QUIET = ("--sinks=", "--sample-hz=0", "--no-host-run", "--http=off", "--page=off")


def clean_env(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TELEMETRY_", "WANDB_"))}
    return kept | extra


class SidecarProcess(Closing):
    """`python -m telemetry serve` over a data directory; `start` may be called again."""

    def __init__(self, data_dir: Path, *flags: str, env: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.endpoint = f"ipc://{data_dir}/telemetry.sock"
        self.log_path = data_dir.with_name(data_dir.name + ".log")
        self._flags = flags
        self._env = env or clean_env()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, is_ready: bool = True) -> SidecarProcess:
        command = [sys.executable, "-m", "telemetry", "serve", "--data-dir", str(self.data_dir)]
        with self.log_path.open("ab") as log, Path("/dev/full").open("wb") as full:
            self.process = subprocess.Popen(
                [*command, *QUIET, *self._flags],
                env=self._env, stdin=subprocess.PIPE, stdout=full, stderr=log,
            )  # fmt: skip
        if is_ready:
            wait_until(lambda: self._is_ready() or self.process.poll() is not None)
            assert self.process.poll() is None, self.log
        return self

    def _is_ready(self) -> bool:
        pid, address = holder_of(self.data_dir)
        return is_held(self.data_dir) and pid == str(self.process.pid) and bool(address)

    @property
    def service(self) -> psutil.Process:
        """The process that serves: the only child of the one that was started, its guard."""
        (child,) = wait_until(lambda: psutil.Process(self.process.pid).children())
        return child

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(30)
        self.process.stdin.close()
        return code

    def __enter__(self) -> SidecarProcess:
        return self.start()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()


def http_get(address: str, path: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()
