"""The fault catalogue is whole: each of its rows is named by a test that `make test` runs."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
NAMED = re.compile(r"\b(?:Row|Fault)s? (\d+(?:(?:, | and |, and )\d+)*)\b")

ROWS = {
    1: "kill -9 of the sidecar, many times, under load",
    2: "kill -9 of the trainer",
    3: "sidecar absent when the trainer starts",
    4: "sidecar frozen",
    5: "sidecar absent until every bound is reached",
    6: "journal cut at every byte of its last records",
    7: "journal cut on a record boundary, or a segment missing",
    8: "any bit of a record flipped",
    9: "zero-filled tail",
    10: "a huge length field",
    11: "short write, ENOSPC, EDQUOT",
    12: "EIO from fdatasync",
    13: "data directory that can't be had",
    14: "two sidecars on one directory or socket",
    15: "wandb server failing, slow or away",
    16: "wandb key refused, also in mid-run",
    17: "wandb not installed or crashing, wandb-core killed or frozen",
    18: "kill -9 of a sink at every point of its commit",
    19: "replay twice, or killed and repeated",
    20: "SIGTERM with a backlog, twice, and SIGKILL in the drain",
    21: "a forked worker emits",
    22: "trainer exits in every way with no sidecar",
    23: "events that are too large, or none",
    24: "hostile bytes on the wire",
    26: "idle, slow and flooding peers",
    27: "hostile run ids, names and links",
    28: "wall clock steps back",
    30: "events of a newer and an older schema",
    31: "secrets found nowhere",
    32: "a million events through a slow sink",
    33: "restart from an earlier checkpoint",
    34: "ranks far apart, clock back between sessions",
    35: "a disk that freezes",
    36: "soak",
    37: "a disk that stands still under the data directory",
    38: "few file descriptors",
    39: "ever new runs, large frames, peers that never read",
    40: "restarts at once, cells run again, two jobs with one id, workers that emit",
    41: "values, names and configurations that can't be recorded",
    42: "W&B's variables and files of a sweep, a service, a fork",
    43: "a row at which a sink crashes every time",
    44: "any content of run.json, cursors and the durable mark",
    46: "a spool that arrives before what came before it, or late for a removed run",
    47: "kills of a sink while a row is announced",
    48: "event files cut and written on while TensorBoard has them open",
}
"""Rows 25 and 29 are of other parts: keys and GPUs. Row 45 is of
sidecars that forward to one another."""


@functools.cache
def named_by_tests() -> dict[int, list[str]]:
    """Which tests name each row, without those that only `make test-faults` runs."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            is_slow = any(ast.unparse(d).endswith("mark.faults") for d in node.decorator_list)
            for match in NAMED.finditer(ast.get_docstring(node) or ""):
                for number in re.findall(r"\d+", match[1]):
                    if not is_slow:
                        found[int(number)].append(f"{path.name}: {node.name}")
    return found


@pytest.mark.parametrize("row", ROWS)
def test_each_row_of_the_fault_catalogue_has_a_test(row: int) -> None:
    """Whoever deletes the last test of a row is told which promise goes with it."""
    assert named_by_tests()[row], f"no test names row {row}: {ROWS[row]}"
