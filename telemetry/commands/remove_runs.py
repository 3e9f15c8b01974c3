"""Remove: takes recorded runs away that are safe elsewhere, or that the user says may go.

In: directories of runs.
Out: tombstones in their place, as retention leaves them.
Never: removes a run that a process writes or reads into a sink, or any if one may not go.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.files import bytes_on_disk
from shared.ids import RUN_ID
from shared.locks import Locked, LocksUnsupported, lock
from shared.record import CorruptRecord
from shared.text import clean
from telemetry.datadir import check_run_dir, is_held
from telemetry.errors import (
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_RUNNING,
    EXIT_USAGE,
    CommandError,
)
from telemetry.journal.layout import Mark, read_mark
from telemetry.journal.readable import is_written, readable_end
from telemetry.run_dir import RunDir, RunState, read, runs_of
from telemetry.supervise.removal import clear_leftovers, obstacle, remove_run

REASON: Final = "removed by `telemetry rm`"
ELSEWHERE: Final = ("wandb",)
"""Sinks whose output is not in the directory of the run, so that it stays when that goes."""
NOWHERE_ELSE: Final = "no sink has it outside its own directory"


@dataclass(frozen=True)
class Consent:
    """The answers that were given as flags: may it go without being safe elsewhere, and at once."""

    is_forced: bool = False
    is_dry: bool = False
    is_agreed: bool = False


def remove_runs(paths: Sequence[Path], consent: Consent) -> int:
    """Remove runs, and return the exit code.

    Raises:
        CommandError: one of them is no run, or may not go; then none was removed.
    """
    runs = list(dict.fromkeys(_checked(path) for path in paths))
    for run in runs:
        if why := _refusal(run, is_forced=consent.is_forced):
            raise CommandError(why, EXIT_RUNNING if _is_live(run) else EXIT_USAGE)
    for run in runs:
        size = bytes_on_disk(run) / 1e6
        _say(f"{'would remove' if consent.is_dry else 'to remove'}: {run}, {size:,.1f} MB")
    if consent.is_dry:
        return EXIT_OK
    if not consent.is_agreed and sys.stdin.isatty() and not _is_confirmed(len(runs)):
        _say("nothing was removed")
        return EXIT_INTERRUPTED
    for run in runs:
        _remove(run, is_forced=consent.is_forced)
        _say(f"removed: {run}")
    return EXIT_OK


def _checked(path: Path) -> Path:
    """Return the absolute path of a run in a data directory.

    Raises:
        CommandError: it is none.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - a link is not followed
    if absolute.is_symlink():
        raise CommandError(f"{path} is a link; give the directory of a run, DATA_DIR/runs/RUN")
    check_run_dir(absolute)
    is_in_runs = absolute.parent == runs_of(absolute.parent.parent)
    if not (is_in_runs and RUN_ID.fullmatch(absolute.name)):
        raise CommandError(
            f"{path} is not in a data directory, DATA_DIR/runs/RUN: a copy is no sidecar's to "
            "remove; delete it by hand"
        )
    return absolute


def _refusal(run: Path, *, is_forced: bool) -> str:
    """Return why a run may not be removed, as one line; empty if it may."""
    if _is_live(run):
        return f"{run} is running; end it first"
    if is_forced:
        return ""
    why = obstacle(run, _begun_sinks(run), _end_of(run))
    if not why and not _is_elsewhere(run):
        why = NOWHERE_ELSE
    return f"{run}: {why}; --force removes it all the same" if why else ""


def _is_live(run: Path) -> bool:
    """Return True while a process writes the run, or a sidecar at work may go on with it."""
    told = read(RunDir(run).run_file, RunState)
    is_over = told is None or told.is_ended
    return is_written(RunDir(run).journal) or (not is_over and is_held(run.parent.parent))


def _is_elsewhere(run: Path) -> bool:
    """Return True if a sink whose output stays has begun; `obstacle` says if it is done."""
    return any(sink in _begun_sinks(run) for sink in ELSEWHERE)


def _begun_sinks(run: Path) -> list[str]:
    paths = RunDir(run).cursors.glob("*.*")
    return sorted({path.stem for path in paths if path.suffix in (".json", ".state")})


def _end_of(run: Path) -> Mark:
    journal = RunDir(run).journal
    with contextlib.suppress(OSError):
        return readable_end(journal) or Mark(0, 0, 0)
    return Mark(0, 0, 0)


def _remove(run: Path, *, is_forced: bool) -> None:
    end = _end_of(run)

    def may_go() -> bool:
        if is_forced:
            return True
        newest = max(end, read_mark(RunDir(run).journal) or end)
        return not obstacle(run, _begun_sinks(run), newest)

    try:
        clear_leftovers(run.parent)
        with _sinks_kept_out(run):
            if not remove_run(run, REASON, may_go):
                raise CommandError(f"{run} was continued meanwhile; it was not removed")
    except Locked as exc:
        why = "a process writes its journal" if exc.strerror else str(exc)
        raise CommandError(f"{run} is in use: {why}", EXIT_RUNNING) from exc
    except CorruptRecord as exc:
        raise CommandError(
            f"{run}: its journal is too damaged to leave a tombstone ({exc}); delete it by hand"
        ) from exc
    except OSError as exc:
        raise CommandError(f"{run} can't be removed: {exc.strerror or exc}", EXIT_FAULT) from exc


@contextlib.contextmanager
def _sinks_kept_out(run: Path) -> Iterator[None]:
    """Hold the locks of the run's sinks, so that none begins or goes on meanwhile.

    Raises:
        Locked: one of them is at work.
    """
    with contextlib.ExitStack() as held:
        for path in sorted(RunDir(run).cursors.glob("*.lock")):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            held.callback(os.close, fd)
            try:
                lock(fd)
            except Locked as exc:
                raise Locked(f"sink {path.stem} is at work") from exc
            except LocksUnsupported:
                continue
        yield


def _is_confirmed(count: int) -> bool:
    print(f"Remove {'this run' if count == 1 else f'these {count} runs'} for ever? [y/N] ", end="")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _say(text: str) -> None:
    print(f"telemetry: {clean(text, 8_000)}", file=sys.stderr)
