"""The summary: lists the recorded runs, and the commands that show or complete them.

In: the directories of runs, and the sinks that are behind.
Out: lines on stderr, each command on one line, to be copied as it stands.
Never: fails for what a producer called its run.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shared.text import clean
from telemetry.journal.layout import read_mark
from telemetry.logs import LINE_MAX_CHARS
from telemetry.run_dir import ENDED, RUNNING, RunDir, RunFile, read
from telemetry.run_names import logdir_of

PYTHON = ("python", "-m", "telemetry")


@dataclass(frozen=True)
class Commands:
    """The form in which commands are printed: for this machine, or for outside a container."""

    form: str = ""
    """With {program} and {arguments}; empty where commands run right here."""
    tensorboard_url: str = ""

    def line(self, *words: object) -> str:
        """Return the command on one line, quoted for a shell."""
        program, *arguments = map(str, words)
        if not self.form:
            return shlex.join([_found(program), *map(_short, arguments)])
        text = self.form.replace("{arguments}", shlex.join(arguments))
        return text.replace("{program}", program)


def print_summary(
    runs_dir: Path,
    run_ids: Iterable[str],
    backlog: Iterable[tuple[str, str]],
    commands: Commands = Commands(),
) -> None:
    """Print a summary of each run, with the commands that show it."""
    behind = set(backlog)
    for run_id in run_ids:
        sinks = {sink for run, sink in behind if run == run_id}
        for line in _lines(runs_dir / run_id, sinks, commands):
            print(clean(line, LINE_MAX_CHARS), file=sys.stderr)


def launched_runs(runs_dir: Path, launch_id: str) -> dict[str, RunFile]:
    """Return run.json of every run that one launch began, by run id."""
    try:
        names = [path.name for path in runs_dir.iterdir()]
    except OSError:
        return {}
    found = {name: read(RunDir(runs_dir / name).run_file, RunFile) for name in names}
    return {name: run for name, run in found.items() if run and run.launch_id == launch_id}


def unsynced_wandb_runs(run_dir: Path) -> list[Path]:
    """Return the offline runs of wandb that are still to be uploaded, in order of their start.

    One without anything in it, as a kill may leave it, is not.
    """
    found = sorted(RunDir(run_dir).wandb.glob("offline-run-*"))
    return [p for p in found if not any(p.glob("*.synced")) and not _is_empty(p)]


def _is_empty(fragment: Path) -> bool:
    """Return True if nothing of a run came into a fragment's file."""
    from telemetry.sinks.wandb.wandb_file import holds_a_run

    files = list(fragment.glob("*.wandb"))
    return bool(files) and not any(map(holds_a_run, files))


def _lines(run_dir: Path, behind: set[str], commands: Commands) -> list[str]:
    place = RunDir(run_dir)
    run, mark = read(place.run_file, RunFile) or RunFile(), read_mark(place.journal)
    rows = mark.next_row if mark else 0
    name = run.name if run.is_shown else "without a name"
    lines = [f"telemetry: run {run_dir.name} ({name}): {rows:,} events, {_state(run)}"]

    def add(label: str, *words: object) -> None:
        lines.append(f"telemetry:   {label + ':':<13} {commands.line(*words)}")

    if place.tensorboard.is_dir():
        if commands.tensorboard_url:
            lines.append(f"telemetry:   {'look:':<13} {commands.tensorboard_url}")
        else:
            add("look", "tensorboard", "--logdir", logdir_of(run_dir))
    # One command each: with several paths, wandb stops at the first that a kill has torn.
    for path in unsynced_wandb_runs(run_dir):
        add("upload", "wandb", "sync", path)
    add("contents", *PYTHON, "inspect", run_dir)
    add("replay", *PYTHON, "replay", run_dir, "--to", "tensorboard")
    for sink in sorted(behind):
        add("not finished", *PYTHON, "sink", sink, run_dir)
    return lines


def _state(run: RunFile) -> str:
    if run.status is None:
        return ENDED if run.is_ended else RUNNING
    return f"{run.status}, exit code {run.exit_code}" if run.exit_code else run.status


def _found(program: str) -> str:
    """Return a program by its name where a shell finds ours under it; else by its path."""
    beside = Path(sys.executable).with_name(program)
    if not beside.exists() or shutil.which(program) == str(beside):
        return program
    return _short(str(beside))


def _short(word: str) -> str:
    """Return a path below the working directory relative to that, and anything else as it is."""
    try:
        here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118 - the slash counts
    except OSError:
        return word
    is_below = word.startswith(here) and len(word) > len(here)
    return word.removeprefix(here) if is_below else word
