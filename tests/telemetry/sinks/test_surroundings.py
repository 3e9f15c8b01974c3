"""A sink's environment is of our own making, and in it a sink finds this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.programs import ROOT, module_command
from telemetry.sinks.surroundings import own_surroundings, sink_defaults, sink_environ

KEPT = {
    "WANDB_API_KEY": "k",
    "WANDB_BASE_URL": "https://w",
    "WANDB_HTTPS_PROXY": "http://p",
    "WANDB_CACHE_DIR": "/cache",
    "WANDB_CONFIG_DIR": "/config",
    "WANDB_DATA_DIR": "/data",
    "WANDB_IDENTITY_TOKEN_FILE": "/token",
    "WANDB_CREDENTIALS_FILE": "/credentials",
    "SSL_CERT_FILE": "/ca",
    "HTTPS_PROXY": "http://p",
    "HOME": "/home/me",
    "PATH": "/bin",
    "CUDA_VISIBLE_DEVICES": "0",
    "SOMETHING_NEW": "1",
}
DROPPED = [
    "WANDB_MODE", "WANDB_DISABLED", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_NAME", "WANDB_TAGS",
    "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SERVICE", "WANDB_FORK_FROM", "WANDB_RESUME_FROM",
    "WANDB_RESUME", "WANDB_CONFIG_PATHS", "WANDB_SILENT", "WANDB_DIR", "WANDB_LAUNCH",
    "WANDB_SOMETHING_NEW", "TELEMETRY_ENDPOINT", "TELEMETRY_DATA_DIR", "PYTHONSTARTUP",
    "PYTHONBREAKPOINT", "PYTHONINSPECT", "PYTHONWARNINGS",
]  # fmt: skip


def test_all_passes_but_what_is_meant_for_other_programs():
    """Of W&B's variables, only how its server is reached and where wandb keeps its own."""
    made = sink_environ(KEPT | dict.fromkeys(DROPPED, "x"))

    assert {name: made[name] for name in KEPT} == KEPT
    assert made.keys().isdisjoint(DROPPED)


def test_paths_are_made_absolute_since_a_sink_works_elsewhere(tmp_path, monkeypatch):
    """Relative ones meant the directory that the sidecar was started in."""
    monkeypatch.chdir(tmp_path)

    made = sink_environ(
        {"WANDB_CACHE_DIR": "cache", "NETRC": "~/n", "PYTHONPATH": f"src{os.pathsep}/x"}
    )

    assert made["WANDB_CACHE_DIR"] == str(tmp_path / "cache")
    assert made["NETRC"] == str(Path.home() / "n")
    assert made["PYTHONPATH"].split(os.pathsep)[-2:] == [str(tmp_path / "src"), "/x"]


@pytest.mark.parametrize("path", [None, "", "."])
def test_the_package_is_found_from_any_directory(path, tmp_path, monkeypatch):
    """Also where the sidecar found it by its working directory only."""
    monkeypatch.chdir(ROOT)
    environ = {"PATH": os.environ["PATH"]} | ({} if path is None else {"PYTHONPATH": path})
    (tmp_path / "telemetry").mkdir()
    (tmp_path / "telemetry" / "__init__.py").write_text("raise ImportError('not ours')")

    done = subprocess.run(
        module_command("telemetry", "sink", "--help"),
        env=sink_environ(environ), cwd=tmp_path, capture_output=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr


def test_python_does_at_a_sinks_start_what_it_always_does(tmp_path):
    """Whatever the sidecar's own environment asks of Python."""
    environ = dict(os.environ, PYTHONWARNINGS="error", PYTHONINSPECT="1", PYTHONVERBOSE="1")
    script = "import warnings; warnings.warn('old', DeprecationWarning)"

    done = subprocess.run(
        [sys.executable, "-c", script], env=sink_environ(environ), stdin=subprocess.DEVNULL,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0 and done.stderr.count(b"\n") <= 2


def test_the_sidecars_own_mode_and_entity_are_for_runs_that_say_nothing():
    """As options, below what the run says."""
    assert sink_defaults(
        {"WANDB_MODE": "dryrun", "WANDB_ENTITY": "team", "WANDB_PROJECT": "p"}
    ) == {
        "default_mode": "offline",
        "default_entity": "team",
    }


def test_a_sink_started_by_hand_has_the_same_surroundings_and_gives_them_back(
    tmp_path, monkeypatch
):
    """Also where the sink fails."""
    monkeypatch.setenv("WANDB_RUN_ID", "other")
    monkeypatch.setenv("WANDB_MODE", "offline")
    before, cwd = dict(os.environ), Path.cwd()

    with pytest.raises(ZeroDivisionError), own_surroundings(tmp_path) as defaults:
        assert "WANDB_RUN_ID" not in os.environ and Path.cwd() == tmp_path
        assert defaults == {"default_mode": "offline"}
        os.environ["WANDB_SERVICE"] = "left behind by the library"
        1 / 0  # noqa: B018

    assert dict(os.environ) == before and Path.cwd() == cwd
