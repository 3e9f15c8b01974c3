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
from typing import Any

from shared.text import clean
from telemetry.ingest.runs import RUN_FILE
from telemetry.journal.layout import read_mark
from telemetry.json_files import read_json
from telemetry.logs import LINE_MAX_CHARS
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
        info = read_json(runs_dir / run_id / RUN_FILE) or {}
        sinks = {sink for run, sink in behind if run == run_id}
        for line in _lines(runs_dir / run_id, info, sinks, commands):
            print(clean(line, LINE_MAX_CHARS), file=sys.stderr)


def launched_runs(runs_dir: Path, launch_id: str) -> dict[str, dict[str, Any]]:
    """Return run.json of every run that one launch began, by run id."""
    try:
        names = [path.name for path in runs_dir.iterdir()]
    except OSError:
        return {}
    found = {name: read_json(runs_dir / name / RUN_FILE) or {} for name in names}
    return {name: info for name, info in found.items() if info.get("launch_id") == launch_id}


def unsynced_wandb_runs(run_dir: Path) -> list[Path]:
    """Return the offline runs of wandb that are still to be uploaded, in order of their start.

    One without anything in it, as a kill may leave it, is not.
    """
    found = sorted((run_dir / "wandb").glob("offline-run-*"))
    return [p for p in found if not any(p.glob("*.synced")) and not _is_empty(p)]


def _is_empty(fragment: Path) -> bool:
    """Return True if nothing of a run came into a fragment's file."""
    from telemetry.sinks.wandb.wandb_file import holds_a_run

    files = list(fragment.glob("*.wandb"))
    return bool(files) and not any(map(holds_a_run, files))


def _lines(run_dir: Path, info: dict[str, Any], behind: set[str], commands: Commands) -> list[str]:
    mark = read_mark(run_dir / "journal")
    rows = mark.next_row if mark else 0
    name = info.get("name", "without a name")
    lines = [f"telemetry: run {run_dir.name} ({name}): {rows:,} events, {_state(info)}"]

    def add(label: str, *words: object) -> None:
        lines.append(f"telemetry:   {label + ':':<13} {commands.line(*words)}")

    if (run_dir / "tensorboard").is_dir():
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


def _state(info: dict[str, Any]) -> str:
    status, code = info.get("status"), info.get("exit_code")
    if not isinstance(status, str):
        return "ended" if info.get("state") == "ended" else "running"
    return f"{status}, exit code {code}" if code else status


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
