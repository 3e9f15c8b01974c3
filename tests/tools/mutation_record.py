"""Record of the mutants: tests/mutations.json, and the page that is made from it.

`python -m tests.tools.mutation_record` writes tests/MUTATIONS.md from the record and from
tests/mutations.toml, where the reason of each survivor is written down by hand.

In: the results of `tests.tools.mutants --record`, and the reasons.
Out: a table with the counts of each module, and its survivors with their reasons.
"""

from __future__ import annotations

import fcntl
import json
import textwrap
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

TESTS: Final = Path("tests")
RECORDS: Final = TESTS / "mutations.json"
REASONS: Final = TESTS / "mutations.toml"
PAGE: Final = TESTS / "MUTATIONS.md"
PACKAGES: Final = ("shared", "telemetry/journal", "telemetry/sinks")
"""The code on which durability hangs."""


class Record(msgspec.Struct, frozen=True):
    """Results of one module: the latest of each mutant that its source still has."""

    tests: list[str] = []
    of: int = 0
    killed: list[str] = []
    by_time: list[str] = []
    """Killed since the tests did not end: also in `killed`."""

    survived: list[str] = []

    def with_results(
        self,
        tests: Sequence[str],
        everything: Sequence[str],
        tried: Sequence[str],
        survived: Sequence[str],
        timed_out: Sequence[str],
    ) -> Record:
        """Return the record after some mutants were tried again."""
        old_tests = self.tests if set(tried) < set(everything) else []
        killed = {*self.killed, *tried} - {*survived}
        by_time = ({*self.by_time} - {*tried}) | {*timed_out}
        left = ({*self.survived} - {*tried}) | {*survived}
        return Record(
            tests=sorted({*old_tests, *tests}),
            of=len(everything),
            killed=[name for name in everything if name in killed],
            by_time=[name for name in everything if name in by_time],
            survived=[name for name in everything if name in left],
        )


def read_records() -> dict[str, Record]:
    """Return the record of each module."""
    if not RECORDS.exists():
        return {}
    return msgspec.json.decode(RECORDS.read_bytes(), type=dict[str, Record])


def write_record(module: str, record: Record) -> None:
    """Put the record of one module in place of its old one; other runs may do so as well."""
    with RECORDS.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        records = read_records() if file.tell() else {}
        records[module] = record
        text = json.dumps(msgspec.to_builtins(dict(sorted(records.items()))), indent=1)
        RECORDS.write_text(text + "\n")


def page(records: dict[str, Record], reasons: dict[str, dict[str, str]]) -> str:
    """Return the page: counts of each module, then every survivor with its reason."""
    table, lists, of, tried, open_ones = [], [], 0, 0, 0
    for module, record in records.items():
        judged = reasons.get(module, {})
        unjudged = [name for name in record.survived if name not in judged]
        count = len(record.killed) + len(record.survived)
        of, tried, open_ones = of + record.of, tried + count, open_ones + len(unjudged)
        table.append(
            f"| {module} | {count} of {record.of} | {len(record.killed)} | {len(record.by_time)} "
            f"| {len(record.survived) - len(unjudged)} | {len(unjudged)} |"
        )
        if record.survived:
            lists.append(f"\n### {module}\n")
            lists += [f"- `{n}`: {judged.get(n, 'not judged')}" for n in record.survived]
    sums = (
        f"\n{tried} of {of} mutants of {len(records)} modules were tried; "
        f"{open_ones} survivors are not judged.\n"
    )
    return "\n".join([HEAD, *table, sums, _untried(records), "## Survivors", *lists, ""])


def _untried(records: dict[str, Record]) -> str:
    """Return the line that names the modules of the chosen packages without a record."""
    found = [str(path) for root in PACKAGES for path in sorted(Path(root).rglob("*.py"))]
    left = [name for name in found if name not in records and not name.endswith("__init__.py")]
    line = f"No mutant of these was tried with this tool: {', '.join(left)}."
    return textwrap.fill(line, 98, break_on_hyphens=False) + "\n"


HEAD: Final = """\
# Mutations

`python -m tests.tools.mutants telemetry/journal/scan.py tests/telemetry/journal` puts small
faults into one module, one at a time, and names each that the given tests do not notice:
conditions negated or left out, comparisons and signs changed, numbers one higher, calls and
assignments dropped, and what changes the disk in another order. With few examples a property, so
a survivor may still fall to all of them. `--record` notes the result in `mutations.json`,
`--again` tries the survivors noted there. This page is made from that and from the reasons in
`mutations.toml`, by `python -m tests.tools.mutation_record`.

A survivor is judged if a reason is written for it: *equivalent* (no behaviour differs that
anybody relies on), or *not durability* (words, a speed, a report). A mutant under which the tests
did not end counts as killed, by time.

| module | tried of all | killed | of them by time | survivors with a reason | not judged |
|---|---|---|---|---|---|"""


if __name__ == "__main__":
    PAGE.write_text(page(read_records(), tomllib.loads(REASONS.read_text())))
