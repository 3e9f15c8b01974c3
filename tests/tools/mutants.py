"""Mutants of one module, each run against tests that should notice it.

`python -m tests.tools.mutants telemetry/journal/scan.py tests/telemetry/journal`

In: a module, and the tests that hold it. The first run notes which test runs which line.
Out: one line for each mutant that no test noticed; with --record also tests/mutations.json.
Works on a copy; the checkout stays as it is.
The tests are collected once. For each mutant this process forks, gives the functions their new
code, and runs the tests that reach its line, with few examples a property. A line that only
other processes run is tried with all of the tests.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import json
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import HealthCheck, settings

from tests.tools.mutation_record import Record, read_records, write_record
from tests.tools.mutations import Mutation, mutations

PRODUCT = ("shared", "telemetry", "trainer")
COPIED = (*PRODUCT, "tests", "docs", "pyproject.toml", "README.md", "Makefile", "CHANGELOG.md")
KILLED_BY_TIME = 99
UNFITTING = 97
"""A mutant that can't be put in place of its function; counted as a survivor."""

OUTPUT = os.dup(1)


class Unfitting(Exception):
    """Error: new code uses other variables of its surroundings, such as no super() any more."""


class Noting:
    """A pytest plugin that notes which lines of a module each test runs, and for how long."""

    def __init__(self, module: Path) -> None:
        self.module = str(module)
        self.lines: dict[str, list[int]] = {}
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        seen, start = set[int](), time.monotonic()

        def lines(frame: Any, event: str, _: Any) -> Any:
            seen.add(frame.f_lineno)
            return lines

        def calls(frame: Any, event: str, _: Any) -> Any:
            return lines if frame.f_code.co_filename == self.module else None

        threading.settrace(calls)
        sys.settrace(calls)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self.lines[item.nodeid] = sorted(seen)
            self.seconds[item.nodeid] = time.monotonic() - start


class Trying:
    """A pytest plugin that runs the collected tests once for each mutant, in a fork each."""

    def __init__(self, module: Path, noted: dict[str, Any], args: argparse.Namespace) -> None:
        self.module, self.noted, self.args = module, noted, args
        self.source = module.read_text()
        self.everything = [m.name for m in mutations(ast.parse(self.source))]
        self.tried: list[str] = []
        self.survived: list[str] = []
        self.timed_out: list[str] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        started_s = time.monotonic()
        for number in self._chosen():
            if time.monotonic() - started_s > self.args.seconds:
                print(f"stopped by --seconds; go on with --first {number}")
                break
            tree = ast.parse(self.source)
            mutation = mutations(tree)[number]
            mutation.act()
            # The file is for the processes that tests start; in this one the code is replaced.
            self.module.write_text(ast.unparse(ast.fix_missing_locations(tree)))
            code = compile(tree, str(self.module), "exec")
            self._note(number, mutation, self._judge(session, mutation, code))
        say(f"DONE {self.args.module}: {len(self.tried)} of {len(self.everything)} tried, "
            f"{len(self.survived)} survived, {len(self.timed_out)} killed by time, "
            f"{time.monotonic() - started_s:.0f} s")  # fmt: skip
        return True

    def _chosen(self) -> list[int]:
        old = read_records().get(self.args.module, Record())
        numbers = self.args.only or range(self.args.first, len(self.everything), self.args.every)
        return [
            number
            for number in numbers
            if re.search(self.args.name, self.everything[number])
            and (not self.args.again or self.everything[number] in old.survived)
        ]

    def _note(self, number: int, mutation: Mutation, code: int) -> None:
        self.tried.append(mutation.name)
        if code == KILLED_BY_TIME:
            self.timed_out.append(mutation.name)
        if code in (0, UNFITTING):
            self.survived.append(mutation.name)
            word = "UNFITTING" if code else "SURVIVED"
            say(f"{word} {number} {self.args.module}:{mutation.first_line} {mutation.name}")

    def _judge(self, session: pytest.Session, mutation: Mutation, code: CodeType) -> int:
        """Return 0 if the tests pass with a mutant; first those that are over soon."""
        seconds, lines = self.noted["seconds"], self.noted["lines"]
        changed = range(mutation.first_line, mutation.last_line + 1)
        reaching = [i for i in session.items if not set(changed).isdisjoint(lines[i.nodeid])]
        # If only another process runs the line, all tests may notice.
        reaching = reaching or list(session.items)
        reaching.sort(key=lambda item: float(seconds[item.nodeid]))
        fast = [item for item in reaching if seconds[item.nodeid] < 0.5]
        for chosen in (fast, reaching[len(fast) :]):
            limit_s = 20 + 5 * sum(seconds[item.nodeid] for item in chosen)
            if chosen and (end := _forked(lambda c=chosen: _run(c, code, changed), limit_s)):
                return end
        return 0


def _run(items: list[pytest.Item], code: CodeType, changed: range) -> int:
    """Put the mutant in place, and run tests until one of them fails. Ends this process."""
    try:
        replace_code(code, changed)
    except Unfitting:
        return UNFITTING
    quiet()
    for item, after in zip(items, [*items[1:], None], strict=True):
        reports = runtestprotocol(item, nextitem=after, log=False)
        if any(report.failed for report in reports):
            return 1
    return 0


def replace_code(code: CodeType, changed: range) -> None:
    """Give the functions that run a changed line their new code, wherever they are in use."""
    new = {(one.co_name, one.co_firstlineno): one for one in _codes(code)}
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__.co_filename == code.co_filename:
            old = function.__code__
            mutant = new.get((old.co_name, old.co_firstlineno))
            lines = [line for *_, line in old.co_lines() if line is not None]
            if mutant is None or not lines or min(lines) > changed[-1]:
                continue
            if old.co_freevars != mutant.co_freevars:
                raise Unfitting
            function.__code__ = mutant


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def say(text: str) -> None:
    """Print a line, past the capture of pytest."""
    os.write(OUTPUT, f"{text}\n".encode())


def quiet() -> None:
    """Send the output of tests nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def main() -> int:
    """Try the mutants of one module; return 1 if one of them survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("module", help="a file of the product, such as telemetry/journal/scan.py")
    parser.add_argument("tests", nargs="+", help="files or directories of tests")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no mutant after this")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant to try")
    parser.add_argument("--every", type=int, default=1, help="try every n-th only")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the mutants to try")
    parser.add_argument("--name", default="", help="try those whose names this pattern is found in")
    parser.add_argument("--again", action="store_true", help="try the recorded survivors only")
    parser.add_argument("--record", action="store_true", help="note the result in mutations.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        return _try_all(Path(name).resolve(), args)


def _try_all(scratch: Path, args: argparse.Namespace) -> int:
    _copy(scratch)
    here, module = Path.cwd(), scratch / args.module
    # 1. The tests as they are: they have to pass, and say which lines they run.
    code = _forked(lambda: _note_lines(scratch, module, args.tests), 1800.0)
    if code:
        say(f"{args.module}: the tests fail without a mutant, exit code {code}")
        say((scratch / "output").read_text()[-3000:])
        return 2
    trying = Trying(module, json.loads((scratch / "noted.json").read_text()), args)
    # Compiled code of the module itself would hide its mutants.
    for compiled in (module.parent / "__pycache__").glob(f"{module.stem}.*"):
        compiled.unlink()
    # 2. One mutant after another.
    _pytest(scratch, args.tests, trying)
    if args.record:
        os.chdir(here)
        old = read_records().get(args.module, Record())
        tried = trying.tried, trying.survived, trying.timed_out
        write_record(args.module, old.with_results(args.tests, trying.everything, *tried))
    return 1 if trying.survived else 0


def _copy(scratch: Path) -> None:
    for name in COPIED:
        if Path(name).is_dir():
            shutil.copytree(name, scratch / name)
        else:
            shutil.copy(name, scratch / name)
    (scratch / ".venv").symlink_to(Path(".venv").resolve())


def _note_lines(scratch: Path, module: Path, tests: list[str]) -> int:
    output = os.open(scratch / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    noting = Noting(module)
    code = _pytest(scratch, tests, noting)
    (scratch / "noted.json").write_text(json.dumps(vars(noting)))
    return code


def _pytest(scratch: Path, tests: list[str], plugin: object) -> int:
    """Run pytest in the copy, with few examples a property and always the same."""
    os.chdir(scratch)
    os.environ |= {"PYTHONPATH": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path[0] = str(scratch)
    for name in [name for name in sys.modules if _is_ours(name)]:
        del sys.modules[name]
    settings.register_profile("quick", max_examples=20, stateful_step_count=15,
        deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck))  # fmt: skip
    settings.load_profile("quick")
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    return int(pytest.main([*options, *tests], plugins=[plugin]))


def _is_ours(name: str) -> bool:
    return name.split(".")[0] in (*PRODUCT, "tests")


def _forked(act: Callable[[], int], limit_s: float) -> int:
    """Act in a fork of this process, and return the exit code."""
    pid = os.fork()
    if pid == 0:
        code = 98
        try:
            os.setsid()
            code = act()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if not select.select([os.pidfd_open(pid)], [], [], limit_s)[0]:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return KILLED_BY_TIME
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # children that a failed test has left
    return code


if __name__ == "__main__":
    sys.exit(main())
