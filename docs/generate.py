"""Generator of docs/FLAGS.md: every command, flag, default and environment variable.

In: the parsers and the configuration themselves.
Out: the page, written by `python -m docs.generate`; a test compares it with the code.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path

from telemetry import cli
from telemetry.config import PREFIX, ServeConfig
from trainer import args as trainer_args
from trainer.checkpoint_args import COMMANDS, make_checkpoint_parser

PATH = Path(__file__).parent / "FLAGS.md"
HEAD = """\
# Commands and flags

Made from the code by `python -m docs.generate`; a test fails where it is not up to date.
"""
SETTINGS = """\
`serve` and `run` take these settings, each as a flag, as a variable of the environment, or in
a TOML file given by `--config` (there without the dashes: `sample_hz = 2`). A flag goes before
a variable, a variable before the file, the file before the default. A value of several names
has commas between them.
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD, "## python -m telemetry\n"]
    for name, parser in _commands(cli.make_parser()).items():
        parts.append(f"### {name}\n\n{_sentence(parser)}\n")
        if name == "serve":
            parts += [SETTINGS, _table(_settings(), ("flag", "variable", "default", ""))]
        elif name != "run":
            parts.append(_table(_flags(parser), ("flag", "default", "")))
    parts.append("## python -m trainer\n")
    parts.append(_table(_training_flags(), ("flag", "default", "")))
    for command in COMMANDS:
        parser = make_checkpoint_parser(command)
        parts.append(f"### {command}\n\n{_sentence(parser)}\n")
        parts.append(_table(_flags(parser), ("flag", "default", "")))
    return "\n".join(parts)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (choices,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {choice.dest: choices.choices[choice.dest] for choice in choices._choices_actions}


def _sentence(parser: argparse.ArgumentParser) -> str:
    usage = " ".join(parser.format_usage().split()).removeprefix("usage: ")
    command = usage.partition(" [")[0]
    names = [a.metavar for a in parser._actions if not a.option_strings and a.metavar]
    shown = command if names and str(names[0]) in command else " ".join([command, *map(str, names)])
    return f"`{shown}`"


def _settings() -> Iterable[tuple[str, ...]]:
    for field in dataclasses.fields(ServeConfig):
        flag = "--" + field.name.replace("_", "-")
        yield (
            f"`{flag}`",
            f"`{PREFIX}{field.name.upper()}`",
            _default(field.default),
            (field.metadata["help"]),
        )


def _flags(parser: argparse.ArgumentParser) -> Iterable[tuple[str, ...]]:
    for action in parser._actions:
        if action.option_strings and action.dest != "help" and action.help != argparse.SUPPRESS:
            yield _named(action), _default(action.default), action.help or ""


def _training_flags() -> Iterable[tuple[str, ...]]:
    defaults = {field.name: field.default for field in dataclasses.fields(trainer_args.TrainArgs)}
    for action in trainer_args.make_parser()._actions:
        if action.dest != "help":
            text = (action.help or "").replace("%%", "%").partition(" (default:")[0]
            yield _named(action), _default(defaults[action.dest]), text


def _named(action: argparse.Action) -> str:
    flag = f"`{action.option_strings[0]}`"
    if action.choices:
        return f"{flag} {', '.join(map(str, action.choices))}"
    return f"{flag} {action.metavar}" if action.metavar and action.nargs != 0 else flag


def _default(value: object) -> str:
    if value is None or value in ("", ()) or value is argparse.SUPPRESS:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{','.join(value) if isinstance(value, tuple) else value}`"


def _table(rows: Iterable[tuple[str, ...]], head: tuple[str, ...]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |\n" for line in lines
    )


if __name__ == "__main__":
    PATH.write_text(page())
