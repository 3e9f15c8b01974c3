"""Commands that look at recorded runs: the flags of `inspect`, `ls`, `query` and `rm`.

In: arguments.
Out: calls of the modules of the commands.
Never: imports those before they are asked for.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from telemetry.config import load
from telemetry.errors import CommandError

SORTS = ("started", "loss", "step", "duration", "size", "state", "name", "run")


def add_look_commands(commands: Any, say: Callable[[str], None]) -> None:
    """Add the commands to a parser. say: prints a sentence for the person at the terminal."""
    _add_ls(commands)
    _add_inspect(commands, say)
    _add_query(commands)
    _add_rm(commands)


def _add_inspect(commands: Any, say: Callable[[str], None]) -> None:
    parser = commands.add_parser("inspect", help="what is in a journal", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--json", action="store_true", help="print one JSON object a run")
    parser.add_argument(
        "--at-step", type=int, metavar="N", help="print the values of that step, of all sources"
    )
    parser.add_argument(
        "--follow", action="store_true", help="print rows as they become durable, until the end"
    )
    parser.add_argument(
        "--from-row", type=int, metavar="ROW",
        help="with --follow: begin at this row (default: at the next one that comes)",
    )  # fmt: skip
    parser.add_argument(
        "--repair", action="store_true", help="write a clean copy beside, RUN.repaired"
    )
    parser.set_defaults(act=lambda args: _inspect(args, say))


def _inspect(args: argparse.Namespace, say: Callable[[str], None]) -> int:
    forms = [args.follow, args.repair, args.at_step is not None]
    if sum(forms) > 1:
        raise CommandError("inspect: give one of --follow, --at-step and --repair")
    if any(forms) and len(args.runs) > 1:
        raise CommandError("inspect: --follow, --at-step and --repair take one run")
    if args.from_row is not None and not (args.follow and args.from_row >= 0):
        raise CommandError("inspect: --from-row is for --follow, and not below 0")
    run: Path = args.runs[0]
    if args.follow:
        from telemetry.commands.follow_rows import follow

        return follow(run, args.from_row, is_json=args.json)
    if args.at_step is not None:
        from telemetry.commands.inspect_step import inspect_step

        return inspect_step(run, args.at_step, is_json=args.json)
    from telemetry.commands.inspect_runs import inspect_runs

    if args.repair:
        from telemetry.commands.repair import repair

        run = repair(run)
        say(f"the clean copy is {run}")
        return inspect_runs([run], is_json=args.json)
    return inspect_runs(args.runs, is_json=args.json)


def _add_ls(commands: Any) -> None:
    parser = commands.add_parser("ls", help="the recorded runs", allow_abbrev=False)
    parser.add_argument(
        "data_dir", nargs="?", type=Path, metavar="DATA_DIR",
        help="default: that of the configuration",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object a run")
    parser.add_argument(
        "--sort", choices=SORTS, default="started",
        help="order: the newest, longest or largest first, the least loss first",
    )  # fmt: skip
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument(
        "--state", action="append", default=[], metavar="STATE",
        help="only runs in this state: running, silent, finished, failed, preempted, lost",
    )  # fmt: skip
    parser.add_argument(
        "--project", action="append", default=[], metavar="NAME", help="only runs of this project"
    )
    parser.add_argument(
        "--tag", action="append", default=[], metavar="TAG", help="only runs with all these tags"
    )
    parser.add_argument(
        "--match", default="", metavar="GLOB", help="only runs whose id or name is like this"
    )
    parser.set_defaults(act=_ls)


def _ls(args: argparse.Namespace) -> int:
    from telemetry.commands.list_runs import Choice, list_runs

    choice = Choice(
        tuple(args.state), tuple(args.project), tuple(args.tag),
        args.match, args.sort, args.reverse,
    )  # fmt: skip
    return list_runs(data_dir_of(args.data_dir), choice, is_json=args.json)


def data_dir_of(given: Path | None) -> Path:
    """Return the data directory that was given, or else that of the configuration."""
    return given if given is not None else load({}, os.environ, None).data_dir


def _add_query(commands: Any) -> None:
    parser = commands.add_parser(
        "query", help="a question in SQL over recorded runs", allow_abbrev=False
    )
    parser.add_argument("sql", metavar="SQL", help="one SELECT; docs/QUERY.md has the tables")
    parser.add_argument(
        "places", nargs="*", type=Path, metavar="DATA_DIR_OR_RUN",
        help="default: the data directory of the configuration",
    )  # fmt: skip
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print one JSON object a line")
    forms.add_argument("--csv", action="store_true", help="print CSV with a line of names")
    parser.add_argument(
        "--memory-mb", type=int, default=1024, metavar="MB", help="memory it may take"
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads it may take")
    parser.set_defaults(act=_query)


def _query(args: argparse.Namespace) -> int:
    try:
        from telemetry.query.query_command import CSV, JSON, TABLE, check_limits, query
    except ImportError as exc:
        raise CommandError(
            f"query needs {exc.name or 'DuckDB'}; install it with: "
            "pip install 'training-telemetry[query]'"
        ) from exc

    form = JSON if args.json else CSV if args.csv else TABLE
    limits = check_limits(args.memory_mb, args.threads)
    return query(args.sql, args.places or [data_dir_of(None)], form, limits)


def _add_rm(commands: Any) -> None:
    parser = commands.add_parser("rm", help="remove recorded runs", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument(
        "--force", action="store_true", help="also what is not safe elsewhere; never a live run"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument("--yes", action="store_true", help="don't ask at a terminal")
    parser.set_defaults(act=_rm)


def _rm(args: argparse.Namespace) -> int:
    from telemetry.commands.remove_runs import Consent, remove_runs

    return remove_runs(args.runs, Consent(args.force, args.dry_run, args.yes))
