"""Recorded machines: parts of /proc and /sys, unpacked for the probes to read."""

from __future__ import annotations

import re
from pathlib import Path

RECORDED = Path(__file__).parents[2] / "data/machines"
HEAD = re.compile(r"^-- (.+) --\n", re.MULTILINE)


class RecordedMachine:
    """One machine of tests/data/machines, in a directory of the test's own."""

    def __init__(self, name: str, root: Path) -> None:
        self.proc, self.sys = root / "proc", root / "sys"
        self._root = root
        _, *parts = HEAD.split((RECORDED / f"{name}.txtar").read_text())
        for path, text in zip(parts[::2], parts[1::2], strict=True):
            self.write(path, text)

    def write(self, path: str, text: str) -> None:
        """Write one file, by its path from the root of the machine."""
        place = self._root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def change(self, path: str, before: str, after: str) -> None:
        """Change one place of a recorded file, which must be there once."""
        text = (self._root / path).read_text()
        assert text.count(before) == 1, f"{before!r} is {text.count(before)} times in {path}"
        self.write(path, text.replace(before, after))

    @property
    def cgroups(self) -> tuple[Path, Path]:
        """The tree of control groups, and the file with the groups of this process."""
        return self.sys / "fs/cgroup", self.proc / "self/cgroup"
