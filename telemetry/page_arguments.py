"""Arguments: the commands `page` and `report` on the command line.

In: the parser of all commands.
Out: the two, each of which imports what it needs when it is called.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from telemetry.errors import CommandError


def add_page_and_report(commands: Any) -> None:
    """Add both commands."""
    _add_page(commands)
    _add_report(commands)


def _add_page(commands: Any) -> None:
    """Add the command `page`."""
    parser = commands.add_parser(
        "page", help="the runs of a data directory in a browser", allow_abbrev=False
    )
    parser.add_argument("data_dir", type=Path, metavar="DATA_DIR")
    parser.add_argument(
        "--page", default="127.0.0.1:9465", metavar="HOST:PORT",
        help="address to serve at (default: 127.0.0.1:9465, or a free port if that is taken)",
    )  # fmt: skip
    parser.add_argument(
        "--page-host", default="", metavar="NAMES",
        help="names besides localhost by which browsers reach the page, with commas",
    )  # fmt: skip
    parser.add_argument("--exit-with-stdin", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--again", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(act=_page)


def _page(args: argparse.Namespace) -> int:
    from telemetry.setting_values import check_address

    check_address("--page", args.page)
    _check_installed()
    from telemetry.page.page_command import page

    hosts = tuple(name.strip() for name in args.page_host.split(",") if name.strip())
    return page(
        args.data_dir, args.page, hosts, exit_with_stdin=args.exit_with_stdin, is_again=args.again
    )


def _add_report(commands: Any) -> None:
    """Add the command `report`."""
    parser = commands.add_parser(
        "report", help="recorded runs as one HTML file that needs no network", allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.html")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.set_defaults(act=_report)


def _report(args: argparse.Namespace) -> int:
    _check_installed()
    from telemetry.page.report import report

    size = report(args.runs, args.out, may_replace=args.force)
    print(f"telemetry: {args.out}: {size / 1e6:.1f} MB", file=sys.stderr)
    return 0


def _check_installed() -> None:
    from telemetry.supervise.page_process import missing_libraries

    if missing := missing_libraries():
        raise CommandError(
            f"the page needs {', '.join(missing)}: pip install 'training-telemetry[page]'"
        )
