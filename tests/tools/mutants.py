"""Mutants of one module, each run against tests that should notice it.

`python -m tests.tools.mutants telemetry/journal/scan.py tests/telemetry/journal`

In: a module, and the tests that hold it. The first run notes which test runs which line.
Out: one line for each mutant that no test noticed. Works on a copy; the checkout stays as it is.
A mutant is run against the tests that reach its line, with few examples a property; one that
survives is run against all of the tests. Tests of other processes are not traced.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.tools.mutations import sites

PRODUCT = ("shared", "telemetry", "trainer")
COPIED = (*PRODUCT, "tests", "docs", "pyproject.toml", "README.md", "Makefile", "CHANGELOG.md")
KILLED_BY_TIME = 99


class Selection:
    """A pytest plugin: the tests to run, and with `trace` the lines that each of them runs."""

    def __init__(self, module: Path, only: list[str] | None, is_quick: bool) -> None:
        self.module, self.only, self.is_quick = str(module), only, is_quick
        self.lines: dict[str, set[int]] = {}
        self.seconds: dict[str, float] = {}

    def pytest_configure(self) -> None:
        if self.is_quick:
            settings.register_profile("quick", max_examples=20, stateful_step_count=15,
                deadline=None, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck))  # fmt: skip
            settings.load_profile("quick")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.only is not None:
            place = {name: at for at, name in enumerate(self.only)}
            items[:] = sorted(
                (i for i in items if i.nodeid in place), key=lambda i: place[i.nodeid]
            )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        if self.only is not None:
            return (yield)
        seen, start = self.lines.setdefault(item.nodeid, set()), time.monotonic()

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
            self.seconds[item.nodeid] = time.monotonic() - start


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
    parser.add_argument("--quick", action="store_true", help="no second look at a survivor")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        return _try_all(Path(name).resolve(), args)


def _try_all(scratch: Path, args: argparse.Namespace) -> int:
    _copy(scratch)
    module, started_s = scratch / args.module, time.monotonic()
    source = module.read_text()
    # 1. The tests as they are: they have to pass, and say which lines they run.
    code = _run(scratch, Selection(module, None, True), args.tests, 1800.0)
    if code:
        print(f"{args.module}: the tests fail without a mutant, exit code {code}")
        print((scratch / "output").read_text()[-3000:])
        return 2
    noted = json.loads((scratch / "noted.json").read_text())
    _load_libraries(noted["loaded"])
    # Compiled code of the module itself would hide its mutants.
    for compiled in (module.parent / "__pycache__").glob(f"{module.stem}.*"):
        compiled.unlink()
    count = len(list(sites(ast.parse(source))))
    tried = timed_out = survived = 0
    # 2. One mutant after another.
    for number in args.only or range(args.first, count, args.every):
        if time.monotonic() - started_s > args.seconds:
            print(f"stopped by --seconds; go on with --first {number}")
            break
        tree = ast.parse(source)
        first, last, text, act = list(sites(tree))[number]
        act()
        module.write_text(ast.unparse(ast.fix_missing_locations(tree)))
        code = _judge(scratch, module, noted, range(first, last + 1), args)
        tried, timed_out = tried + 1, timed_out + (code == KILLED_BY_TIME)
        if code == 0:
            survived += 1
            print(f"SURVIVED {number} {args.module}:{first} {text}", flush=True)
        elif code not in (1, KILLED_BY_TIME):
            print(
                f"ODD {number} {args.module}:{first} {text}: pytest ended with {code}", flush=True
            )
    took_s = time.monotonic() - started_s
    print(f"DONE {args.module}: {tried} of {count} tried, {tried - survived} killed "
          f"({timed_out} by time), {survived} survived, {took_s:.0f} s", flush=True)  # fmt: skip
    return 1 if survived else 0


def _copy(scratch: Path) -> None:
    for name in COPIED:
        if Path(name).is_dir():
            shutil.copytree(name, scratch / name)
        else:
            shutil.copy(name, scratch / name)
    (scratch / ".venv").symlink_to(Path(".venv").resolve())


def _judge(
    scratch: Path, module: Path, noted: dict[str, Any], lines: range, args: argparse.Namespace
) -> int:
    """Return the exit code of pytest for the mutant that lies in the copy."""
    seconds = noted["seconds"]
    reaching = [name for name, seen in noted["lines"].items() if not set(lines).isdisjoint(seen)]
    reaching.sort(key=seconds.__getitem__)
    if reaching:
        limit_s = 20 + 5 * sum(seconds[name] for name in reaching)
        files = list(dict.fromkeys(name.split("::")[0] for name in reaching))
        code = _run(scratch, Selection(module, reaching, True), files, limit_s)
        if code:
            return code
    # Nothing noticed it, or only another process runs the line: all tests, as they are.
    everything = Selection(module, list(seconds), False)
    return (
        0
        if args.quick and reaching
        else _run(scratch, everything, args.tests, 60 + 20 * sum(seconds.values()))
    )


def _run(scratch: Path, selection: Selection, tests: list[str], limit_s: float) -> int:
    """Run pytest in a fork of this process, which has loaded the libraries already."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(_in_child(scratch, selection, tests))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(98)
    if not select.select([os.pidfd_open(pid)], [], [], limit_s)[0]:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return KILLED_BY_TIME
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _in_child(scratch: Path, selection: Selection, tests: list[str]) -> int:
    os.setsid()
    os.chdir(scratch)
    is_noting = selection.only is None
    sys.dont_write_bytecode = not is_noting
    os.environ |= {"PYTHONPATH": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in [name for name in sys.modules if _is_ours(name)]:
        del sys.modules[name]
    sys.path[0] = str(scratch)
    output = os.open(scratch / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = int(
        pytest.main(
            [
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                "-W",
                "ignore::pytest.PytestAssertRewriteWarning",
                *tests,
            ],
            plugins=[selection],
        )
    )
    if is_noting:
        lines = {name: sorted(seen) for name, seen in selection.lines.items()}
        loaded = [n for n, m in list(sys.modules.items()) if not _is_ours(n) and m is not None]
        noted = {"lines": lines, "seconds": selection.seconds, "loaded": loaded}
        Path("noted.json").write_text(json.dumps(noted))
    return code


def _is_ours(name: str) -> bool:
    return name.split(".")[0] in (*PRODUCT, "tests")


def _load_libraries(names: list[str]) -> None:
    """Import what the tests import, once for all mutants; not wandb, which a test looks for."""
    for name in names:
        if not name.startswith(("wandb", "torch", "__", "test_", "conftest")):
            with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
                import_module(name)


if __name__ == "__main__":
    sys.exit(main())
