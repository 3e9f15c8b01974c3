"""Generator of the pages that the code itself says: flags, formats and metrics.

In: the parsers and the configuration; the docstrings that draw a format field by field; the
lists of metrics.
Out: docs/FLAGS.md, docs/FORMATS.md and docs/METRICS.md, written by `python -m docs.generate`; a
test compares them with the code.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

import msgspec

from docs.metrics_page import metrics_page
from shared.events import EVENT_TYPES
from telemetry import cli
from telemetry.config import PREFIX, ServeConfig
from trainer import args as trainer_args
from trainer.evaluation.checkpoint_args import COMMANDS, make_checkpoint_parser

DOCS = Path(__file__).parent
FLAGS_HEAD = """\
# Commands and flags

Made from the code by `python -m docs.generate`; a test fails where it is not up to date.
"""
SETTINGS = """\
`serve` and `run` take these settings, each as a flag, as a variable of the environment, or in
a TOML file given by `--config` (there without the dashes: `sample_hz = 2`). A flag goes before
a variable, a variable before the file, the file before the default. A value of several names
has commas between them.
"""
DOCTOR = """\
Takes the settings of `serve`, and checks what they name. Exit code 1 if something that was
configured does not work.
"""


FORMATS_HEAD = """\
# Formats

Every byte on disk and on the wire, field by field. Made by `python -m docs.generate` from the
modules that write them; a test fails where it is not up to date. Fields are only ever added,
with defaults; what the first version wrote is kept under `tests/data/first/` and read by tests.

## Data directory

```
DATA_DIR/
  sidecar.lock              held by the sidecar at work here: its pid and address
  runs/<run_id>/            one run; can be copied, archived and replayed anywhere
    journal/                every event, in order: the only thing that must be kept
    run.json                what the journal says of the run, for people, tools and sinks
    cursors/<sink>.json     how far each sink has got, and <sink>.lock while one is at work
    cursors/<sink>.skipped  rows at which this sink crashed twice
    tensorboard/  wandb/  parquet/  perfetto/   what the sinks made
      superseded-…          in wandb/: files whose rows the server has; `wandb sync` passes them by
    quarantine/             what could not be decoded or accepted
    wandb-unresolved/       offline runs with rows that a server may have already
  tensorboard/              the runs by name, for `tensorboard --logdir`
  removed/<run_id>.json     what is remembered of a run that made room for others
  spool/                    what trainers under `run` keep while no sidecar answers
  exits/                    how commands under `run` ended, for a sidecar that was away
```
"""
FORMATS = (
    ("Events", "shared/events.py"),
    ("Wire", "shared/wire.py"),
    ("Segments and records", "shared/record.py"),
    ("Journal and durable mark", "telemetry/journal/layout.py"),
    ("Cursor of a sink", "telemetry/sinks/cursor.py"),
    ("Parquet files", "telemetry/sinks/parquet/__init__.py"),
    ("Trace", "telemetry/sinks/perfetto.py"),
    ("Kept columns", "telemetry/views/column_chunk.py"),
    ("Spool", "shared/emitter/spool.py"),
    ("A run as JSON", "telemetry/commands/inspect_json.py"),
    ("Removed runs", "telemetry/supervise/tombstones.py"),
    ("Checkpoint", "trainer/training/checkpoint.py"),
    ("Export", "trainer/evaluation/export.py"),
)


def pages() -> dict[Path, str]:
    """Return each page that is made here, by its path."""
    return {
        DOCS / "FLAGS.md": _flags_page(),
        DOCS / "FORMATS.md": _formats_page(),
        DOCS / "METRICS.md": metrics_page(_table),
    }


def _formats_page() -> str:
    """Return the layouts that modules draw in their docstrings."""
    parts = [FORMATS_HEAD]
    for title, name in FORMATS:
        text = ast.get_docstring(ast.parse((DOCS.parent / name).read_text())) or ""
        parts.append(f"## {title}\n\n*[{name}](../{name})*\n\n{_as_markdown(text)}\n")
        if title == "Events":
            parts.append(_table(_event_fields(), ("event", "tag", "fields of its body")))
    return "\n".join(parts)


def _event_fields() -> Iterable[tuple[str, ...]]:
    for tag, event in EVENT_TYPES.items():
        fields = [
            f"`{field.name}`" + ("" if field.required else f" ({_shown(field)})")
            for field in msgspec.structs.fields(event)
        ]
        yield f"`{event.__name__}`", f"`{tag}`", ", ".join(fields)


def _shown(field: msgspec.structs.FieldInfo) -> str:
    """Return a field's default; a container begins empty."""
    if field.default is msgspec.NODEFAULT:
        return "empty"
    return "empty" if field.default == "" else repr(field.default)


def _as_markdown(docstring: str) -> str:
    """Return a docstring with its drawings fenced, without its In, Out and Never."""
    blocks = []
    for block in re.split(r"\n\n(?=\S)|(?<=\S)\n\n(?=    )", docstring):
        if block.startswith(("In: ", "Out: ", "Never: ")):
            continue
        drawing = block.startswith("    ")
        text = textwrap.dedent(block).strip("\n")
        blocks.append(f"```\n{text}\n```" if drawing else text)
    return "\n\n".join(blocks)


def _flags_page() -> str:
    """Return every command, flag, default and variable of the environment."""
    parts = [FLAGS_HEAD, "## python -m telemetry\n"]
    for name, parser in _commands(cli.make_parser()).items():
        parts.append(f"### {name}\n\n{_sentence(parser)}\n")
        if name == "serve":
            parts += [SETTINGS, _table(_settings(), ("flag", "variable", "default", ""))]
        elif name == "doctor":
            settings = frozenset(field.name for field in dataclasses.fields(ServeConfig))
            parts += [DOCTOR, _table(_flags(parser, settings), ("flag", "default", ""))]
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


def _flags(
    parser: argparse.ArgumentParser, without: frozenset[str] = frozenset()
) -> Iterable[tuple[str, ...]]:
    for action in parser._actions:
        is_shown = action.dest != "help" and action.help != argparse.SUPPRESS
        if action.option_strings and is_shown and action.dest not in without:
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
    for path, text in pages().items():
        path.write_text(text)
