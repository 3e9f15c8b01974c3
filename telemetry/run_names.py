"""Run names: a directory in which TensorBoard shows every run under its name.

In: the directory of a run, and what the run is called.
Out: a link DATA_DIR/tensorboard/NAME to the run's event files.
Never: touches other files than its own links, or fails a sink. The directory of links can
be deleted at any time.

    DATA_DIR/tensorboard/
      base-lr3e-4                   -> ../runs/20260731-101500-9cb107f9/tensorboard
      base-lr3e-4-20260731-121500-… -> the second run of that name

Links are relative, so that they hold where the data directory is copied or
mounted elsewhere. Sinks of several runs make theirs at once: a link is made in
one call that fails where the name is taken.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Final

from shared.text import clean

NAME_MAX_BYTES: Final = 100
_RUNS: Final = "runs"
_TARGET: Final = re.compile(r"\.\./runs/([A-Za-z0-9_-]{1,64})/tensorboard")

log = logging.getLogger(__name__)


def logdir_of(run_dir: Path) -> Path:
    """Return the directory for `tensorboard --logdir`: that of all names, if this run is there."""
    view = _view_of(run_dir)
    if view is not None and run_dir.name in _links(view).values():
        return view
    return run_dir / "tensorboard"


def name_run(run_dir: Path, name: str) -> Path | None:
    """Link a run's event files under its name; return the link, or None without one."""
    view = _view_of(run_dir)
    if view is None:
        return None
    try:
        view.mkdir(exist_ok=True)
        return _link(view, run_dir.name, link_name(name, run_dir.name))
    except OSError as exc:
        log.info("run %s has no name in %s: %s", run_dir.name, view, exc)
        return None


def link_name(name: str, run_id: str) -> str:
    """Return a run's name as one part of a path: cleaned, without slashes, and bounded."""
    shown = re.sub(r"[/\\]+", "-", clean(name)).strip(". ")
    return shown.encode()[:NAME_MAX_BYTES].decode(errors="ignore").strip(". ") or run_id


def _link(view: Path, run_id: str, wanted: str) -> Path | None:
    names = (wanted, f"{wanted}-{run_id}")
    for link, linked_id in _links(view).items():
        if linked_id == run_id:
            if link.name in names:
                return link
            link.unlink()  # it has another name by now
        elif not (view.parent / _RUNS / linked_id).exists():
            link.unlink()  # that run was removed
    for name in names:
        try:
            (view / name).symlink_to(f"../{_RUNS}/{run_id}/tensorboard")
            return view / name
        except FileExistsError:
            continue
    return None


def _links(view: Path) -> dict[Path, str]:
    """Return the links that this module made, each with its run id."""
    links = {}
    for path in view.iterdir() if view.is_dir() else ():
        match = _TARGET.fullmatch(str(path.readlink())) if path.is_symlink() else None
        if match:
            links[path] = match[1]
    return links


def _view_of(run_dir: Path) -> Path | None:
    run_dir = run_dir.absolute()
    return run_dir.parent.parent / "tensorboard" if run_dir.parent.name == _RUNS else None
