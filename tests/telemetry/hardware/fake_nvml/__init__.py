"""A libnvidia-ml.so.1 in C that plays scenarios, compiled for the tests that load it.

In: the C source beside this file, and gcc.
Out: a directory for LD_LIBRARY_PATH, and scenarios that can change under a running process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")


def compiled(directory: Path, *, is_old_driver: bool = False) -> Path:
    """Compile the library into a directory and return that; skip the test without gcc."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed: the fake libnvidia-ml.so.1 cannot be compiled")
    directory.mkdir(parents=True, exist_ok=True)
    flags = ["-DOLD_DRIVER"] if is_old_driver else []
    target = directory / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-Wall", "-O1", *flags, "-o", str(target)]
    subprocess.run([*command, str(SOURCE)], check=True)
    return directory


class Machine:
    """GPUs as a scenario says they are. play() changes it, also under a running process."""

    def __init__(self, library: Path, directory: Path) -> None:
        self.library = library
        self._scenario = directory / "scenario"
        self._calls = directory / "calls"
        self._values: dict[str, object] = {}
        self.play()

    def play(self, **values: object) -> None:
        """Set keys of the scenario: `gpu__0__lost=1` is the line `gpu.0.lost=1`; None drops one."""
        self._values |= {key.replace("__", "."): value for key, value in values.items()}
        lines = [f"{k}={v}\n" for k, v in self._values.items() if v is not None]
        # The library reads a scenario again when the file is another one: see load() there.
        new = self._scenario.with_suffix(".new")
        new.write_text("".join(lines))
        new.replace(self._scenario)

    def environ(self) -> dict[str, str]:
        """Return the environment of a process that finds this machine's GPUs."""
        return os.environ | {
            "LD_LIBRARY_PATH": str(self.library),
            "FAKE_NVML_SCENARIO": str(self._scenario),
            "FAKE_NVML_CALLS": str(self._calls),
        }

    def calls(self) -> list[tuple[str, int]]:
        """Return (function, GPU) of each call so far; GPU -1 for a call about none."""
        lines = self._calls.read_text().splitlines()
        return [(function, int(gpu)) for function, gpu in map(str.split, lines)]
