"""The command line: parses and checks arguments, and calls the module of the command.

In: arguments and the environment.
Out: an exit code; one clear sentence on stderr where something can't be done.
Never: shows a traceback for a mistake in a command.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from shared.terminal import finish_streams, prepare_streams
from shared.text import clean
from telemetry.config import ServeConfig, as_flags, load, secret_environ
from telemetry.errors import (
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    CommandError,
)
from telemetry.logs import LINE_MAX_CHARS, configure_logs
from telemetry.look_cli import add_look_commands
from telemetry.output import OutputFailed
from telemetry.page_arguments import add_page_and_report
from telemetry.setting_values import check_sinks

DESCRIPTION = "Telemetry sidecar: records what a training run says, and forwards it."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code."""
    prepare_streams()
    try:
        code = _act(argv)
    except SystemExit as exc:
        # --help, or a mistake in the arguments that the parser has printed already.
        code = int(exc.code or 0)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    failure = finish_streams()
    return code if failure is None else _say_unwritable(failure)


def _act(argv: Sequence[str] | None) -> int:
    args = make_parser().parse_args(argv)
    configure_logs()
    try:
        code: int = args.act(args)
    except CommandError as exc:
        say(str(exc))
        return exc.exit_code
    except OutputFailed as exc:
        return _say_unwritable(exc.__cause__)
    return code


def _say_unwritable(failure: BaseException | None) -> int:
    """Say why output could not be written, and return the exit code for that."""
    if isinstance(failure, BrokenPipeError):
        # The reader closed the pipe, as `head` does: no error.
        return EXIT_OK
    say(f"the output can't be written: {failure}")
    return EXIT_FAULT


def say(text: str) -> None:
    """Print a sentence for the person at the terminal, on stderr."""
    with contextlib.suppress(OSError):
        print(f"telemetry: {clean(text, LINE_MAX_CHARS)}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one sentence that names --help."""

    def error(self, message: str) -> NoReturn:
        say(f"{message}; see {self.prog} --help")
        raise SystemExit(EXIT_USAGE)


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m telemetry", description=DESCRIPTION, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_monitor(commands)
    _add_run(commands)
    _add_sink(commands)
    _add_replay(commands)
    add_look_commands(commands, say)
    _add_doctor(commands)
    add_page_and_report(commands)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


RUN_DEFAULTS = {"http": "off", "page": "off", "host_run": False}
"""Defaults of `run`, whose sidecar lives as long as one command: several may run on one
machine, so none takes a fixed port, or the host's own run."""


MONITOR_DEFAULTS = {"http": "off", "page": "off"}
"""Defaults of `monitor`: several may look at one machine, so none takes a fixed port."""


def _add_config_flags(parser: argparse.ArgumentParser) -> None:
    for field in dataclasses.fields(ServeConfig):
        flag, text = "--" + field.name.replace("_", "-"), field.metadata["help"]
        if isinstance(field.default, bool):
            parser.add_argument(
                flag,
                dest=field.name,
                default=None,
                action=argparse.BooleanOptionalAction,
                help=text,
            )
            continue
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = text if default == "" else f"{text} (default: {default})"
        parser.add_argument(flag, dest=field.name, metavar="VALUE", help=shown)
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file with settings")


def _config(args: argparse.Namespace) -> ServeConfig:
    return load(vars(args), os.environ, args.config)


def _add_serve(commands: Commands) -> None:
    parser = commands.add_parser("serve", help="run the sidecar", allow_abbrev=False)
    _add_config_flags(parser)
    parser.add_argument("--lifeline", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(act=_serve)


def _serve(args: argparse.Namespace) -> int:
    config = _config(args)
    if args.lifeline is None:
        return _guard(config)
    from telemetry.guard import follow_guard

    # Before the imports of the service, which take a moment: the guard may die in it.
    pid = os.getppid()
    follow_guard(args.lifeline)
    from telemetry.starter import serve

    return serve(config, pid)


def _guard(config: ServeConfig) -> NoReturn:
    from telemetry.guard import become_guard

    # The configuration is checked by now, and goes to the service as flags: it reads no
    # file or environment again.
    os.environ.update(secret_environ(config))
    become_guard(as_flags(config))


def _add_monitor(commands: Commands) -> None:
    parser = commands.add_parser(
        "monitor", help="the machine and its runs on a live screen", allow_abbrev=False
    )
    _add_config_flags(parser)
    parser.add_argument(
        "--attach", type=Path, metavar="PATH",
        help="only look: at a data directory, or at the directory of one run",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="print the present state, and end")
    parser.add_argument("--json", action="store_true", help="print JSON, an object a line")
    parser.add_argument("--no-tui", action="store_true", help="print lines, not a screen")
    parser.add_argument(
        "--interval", type=float, default=5.0, metavar="SECONDS",
        help="time between two prints of --no-tui and --json (default: 5)",
    )  # fmt: skip
    parser.set_defaults(act=_monitor)


def _monitor(args: argparse.Namespace) -> int:
    from telemetry.monitor.command import Look, monitor

    if not 0.2 <= args.interval <= 86_400:
        raise CommandError(f"--interval is {args.interval:g}; it must be from 0.2 to 86400 seconds")
    look = Look(args.attach, args.once, args.json, args.no_tui, args.interval)
    return monitor(load(vars(args), os.environ, args.config, MONITOR_DEFAULTS), look)


def _add_run(commands: Commands) -> None:
    parser = commands.add_parser(
        "run", help="run a command together with a sidecar", allow_abbrev=False
    )
    _add_config_flags(parser)
    parser.add_argument("cmd", nargs=argparse.REMAINDER, metavar="-- CMD ...")
    parser.set_defaults(act=_run)


def _run(args: argparse.Namespace) -> int:
    from telemetry.commands.launch import launch

    command = args.cmd[1:] if args.cmd[:1] == ["--"] else args.cmd
    if not command:
        raise CommandError("run: no command given; use: python -m telemetry run -- CMD ...")
    return launch(command, load(vars(args), os.environ, args.config, RUN_DEFAULTS))


def _add_sink(commands: Commands) -> None:
    parser = commands.add_parser(
        "sink", help="bring one sink of one run up to date", allow_abbrev=False
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--follow", action="store_true", help="go on until the run has ended")
    parser.add_argument("--exit-with-stdin", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--report-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--option", action="append", default=[], help=argparse.SUPPRESS)
    parser.set_defaults(act=_sink)


def _sink(args: argparse.Namespace) -> int:
    from telemetry.sinks.runner import Reporter, SinkJob, run_sink, stop_with_stdin

    check_sinks((args.name,), "sink")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    if args.exit_with_stdin:
        stop_with_stdin(stop)
    options = dict(option.partition("=")[::2] for option in args.option)
    job = SinkJob(args.name, args.run_dir, args.run_dir, args.follow, options)
    return run_sink(job, stop, Reporter(args.report_fd))


def _add_replay(commands: Commands) -> None:
    parser = commands.add_parser(
        "replay", help="carry recorded runs into a sink", allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--to", required=True, metavar="SINK")
    parser.add_argument(
        "--out", type=Path, default=Path("replay"), metavar="DIR",
        help="where its files go, in DIR/<run id> (default: ./replay)",
    )  # fmt: skip
    parser.add_argument(
        "--wandb-mode", choices=("online", "offline"), help="default: as the run was recorded"
    )
    parser.add_argument(
        "--per-core", action="store_true", help="chart every processor core in TensorBoard"
    )
    parser.set_defaults(act=_replay)


def _replay(args: argparse.Namespace) -> int:
    from telemetry.commands.replay import replay

    check_sinks((args.to,), "--to")
    return replay(args.runs, args.to, args.out, args.wandb_mode, per_core=args.per_core)


def _add_doctor(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor", help="what works on this machine, and what to do", allow_abbrev=False
    )
    _add_config_flags(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(act=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from telemetry.commands.doctor import doctor

    is_asked = args.sinks is not None or bool(os.environ.get("TELEMETRY_SINKS"))
    return doctor(_config(args), os.environ, is_json=args.json, is_asked=is_asked)
