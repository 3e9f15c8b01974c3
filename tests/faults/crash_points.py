"""Crash points: a story that is broken off at each of its system calls.

In: what a process does with a directory, noting what it promises on the way; and a check.
Out: the check, after a power cut at every call that changes anything, several throws each.
Never: leaves a call out, unlike a search by chance.

`cut_everywhere` cuts the power where the process dies. `kill_everywhere` lets the
machine live on: a second process begins where the first was killed, makes promises of
what it finds there, and only then goes the power.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.forgetful_disk import Died, ForgetfulDisk

Story = Callable[[Path, dict[str, Any]], None]
"""(root, promises): what a process does. It closes what it opens, also when it dies."""


def cut_everywhere(story: Story, check: Story, throws: int = 4) -> int:
    """Cut the power at every call of a story; returns how many calls it has."""
    return _everywhere([story], check, throws)


def kill_everywhere(story: Story, restart: Story, check: Story, throws: int = 4) -> int:
    """Kill the process at every call, start again, and cut the power when that is done."""
    return _everywhere([story, restart], check, throws)


def _everywhere(stories: list[Story], check: Story, throws: int) -> int:
    calls = 0
    while True:
        deaths = [_dies_at(calls, stories, check, f"{calls}.{n}") for n in range(throws)]
        if not any(deaths):
            return calls
        calls += 1


def _dies_at(calls: int, stories: list[Story], check: Story, seed: str) -> bool:
    promises: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tm-crash-") as name:
        root = Path(name).resolve()
        with ForgetfulDisk(root) as disk:
            disk.calls_left = calls
            has_died = _tell(stories[0], root, promises, disk)
            disk.calls_left = None
            for story in stories[1:]:
                _tell(story, root, promises, disk)
            disk.power_cut(random.Random(seed))
            check(root, promises)
    return has_died


def _tell(story: Story, root: Path, promises: dict[str, Any], disk: ForgetfulDisk) -> bool:
    """Return True if the process died in the story."""
    opened = _open_descriptors(disk)
    try:
        story(root, promises)
    except Died:
        return True
    # A process of many days would run out of what a story leaves open.
    assert _open_descriptors(disk) == opened
    return False


def _open_descriptors(disk: ForgetfulDisk) -> int:
    return len(list(Path("/proc/self/fd").iterdir())) - disk.held_descriptors
