"""Our programs as child processes: found whatever lies in the working directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.programs import ROOT, module_command, module_environ

NAMESAKES = ("shared", "telemetry", "trainer")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody's project, with folders that are called as our packages are."""
    for name in NAMESAKES:
        (tmp_path / "project" / name).mkdir(parents=True)
        (tmp_path / "project" / name / "__init__.py").write_text("raise SystemExit('theirs')")
    return tmp_path / "project"


def test_a_child_runs_our_module_in_a_directory_with_namesakes(project):
    """Neither the working directory nor a search path of the user's goes before us."""
    environ = module_environ({**os.environ, "PYTHONPATH": str(project)})

    done = subprocess.run(
        module_command("telemetry", "--help"),
        cwd=project, env=environ, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0 and "sidecar" in done.stdout, done.stderr


def test_installed_the_search_path_stays_as_it_is():
    """In front of the standard library, site-packages could hide modules of it."""
    site = Path("/usr/lib/python3/site-packages")

    assert module_environ({"PYTHONPATH": "/mine"}, site) == {"PYTHONPATH": "/mine"}


@pytest.mark.parametrize("module", ["telemetry", "trainer"])
def test_installed_a_folder_shared_of_the_users_own_is_not_ours(tmp_path, module):
    """`python -m telemetry` in a project with a folder `shared`."""
    site = tmp_path / "lib" / "site-packages"
    for name in NAMESAKES:
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "project" / "shared").mkdir(parents=True)
    (tmp_path / "project" / "shared" / "__init__.py").write_text("raise SystemExit('theirs')")

    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=tmp_path / "project", capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip

    assert done.returncode == 0 and "usage" in done.stdout, done.stderr
