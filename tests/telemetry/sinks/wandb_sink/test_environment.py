"""What lies around for other runs of wandb has no influence on a sink, with the real wandb."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.clock import SystemClock
from shared.events import encode_event, join_events
from shared.ids import StreamId
from shared.programs import ROOT
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import read_json, write_json
from telemetry.sinks.wandb import server as server_module
from telemetry.sinks.wandb import wandb_file
from telemetry.supervise.supervisor import Supervisor
from tests import wandb_contents
from tests.fake_wandb import KEY, FakeWandb
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import metric

from .surroundings import RUN_ID

COUNT = 20


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A recorded run that has ended, and wants to be offline."""
    return recorded(tmp_path / "runs", wandb_mode="offline")


def recorded(runs: Path, **said: object) -> Path:
    run_dir = runs / RUN_ID
    run_dir.mkdir(parents=True)
    info = {"run_id": RUN_ID, "name": "mine", "project": "tests", "endings": 1}
    write_json(run_dir / "run.json", info | {"state": "ended", "status": "finished"} | said)
    with JournalWriter(run_dir / "journal") as writer:
        payload = join_events([encode_event(metric(row), row, row) for row in range(COUNT)])
        writer.append(StreamId(RUN_ID, "s1", "rank0"), 0, COUNT, payload)
        writer.sync()
    return run_dir


def sink(run_dir: Path, cwd: Path, **environment: str) -> tuple[int, str]:
    """Exit code and all that was said."""
    done = subprocess.run(
        [sys.executable, "-m", "telemetry", "sink", "wandb", str(run_dir)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100, check=False,
        cwd=cwd,
    )  # fmt: skip
    return done.returncode, done.stdout


def check_own(run_dir: Path) -> Path:
    """One whole fragment of this run, under its own id; its file."""
    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    assert path.name == f"run-{RUN_ID}.wandb"
    assert len(list(wandb_contents.history_rows(path))) == COUNT
    config = wandb_contents.config(path)
    assert set(config) == {"telemetry/journal_uuid"}
    run = next(r.run for r in wandb_file.clean_records(path) if r.HasField("run"))
    assert (run.project, run.display_name, run.run_group) == ("tests", "mine", "")
    return path


LEAKS = [
    {"WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "agentrun"},
    {"WANDB_SERVICE": "3-1-tcp-localhost-1-1"},
    {"WANDB_SERVICE": "2-999999-unix-/nowhere.sock"},
    {"WANDB_FORK_FROM": "other?_step=5"},
    {"WANDB_RESUME_FROM": f"{RUN_ID}?_step=5"},
    {"WANDB_RESUME": "must", "WANDB_RUN_ID": "other"},
    {"WANDB_RESUME": "nonsense"},
    {"WANDB_CONFIG_PATHS": "/nowhere.yaml"},
    {"WANDB_LAUNCH": "true", "WANDB_CONFIG": '{"leaked": 1}'},
    {"WANDB_SILENT": "maybe", "WANDB_CONSOLE": "wrap", "WANDB_QUIET": "x"},
    {"WANDB_MODE": "nonsense", "WANDB_DISABLED": "true"},
    {"WANDB_PROJECT": "a/b", "WANDB_NAME": "x", "WANDB_RUN_GROUP": "g", "WANDB_TAGS": ",,"},
]


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: "+".join(leak))
def test_variables_for_other_runs_have_no_influence(run_dir: Path, leak: dict[str, str]) -> None:
    """A sweep's, a dead service's, a fork's, a launch's. Fault 42."""
    code, said = sink(run_dir, run_dir.parent, **leak)

    assert code == 0, said
    check_own(run_dir)


def test_files_in_the_working_directory_have_no_influence(run_dir: Path, tmp_path: Path) -> None:
    """A user's own configuration of wandb lies where they train. Fault 42."""
    here = tmp_path / "here"
    (here / "wandb").mkdir(parents=True)
    (here / "config-defaults.yaml").write_text("leaked: {value: 1}\nbroken: [\n")
    (here / "wandb" / "settings").write_text("[default]\nrun_id = other\nmode = disabled\n")

    code, said = sink(run_dir, here)

    assert code == 0, said
    check_own(run_dir)


def test_a_supervised_sink_has_none_of_it(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, as the sidecar of a trainer under an agent finds it. Fault 42."""
    for leak in LEAKS:
        for name, value in leak.items():
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config-defaults.yaml").write_text("leaked: {value: 1}\n")
    supervisor = Supervisor(
        run_dir.parent, ("wandb",), SystemClock(), max_processes=1, sink_timeout_s=60
    )
    supervisor.start()
    cursor = run_dir / "cursors" / "wandb.json"
    wait_until(lambda: (read_json(cursor) or {}).get("done"), 60)
    supervisor.end(10)

    check_own(run_dir)


def test_the_key_of_a_netrc_counts_as_wandb_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has logged in has a key; for another server it is none."""
    netrc = Path(os.environ["NETRC"])
    netrc.write_text(f"machine 127.0.0.1:1\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    with_key = server_module.account()
    netrc.write_text(f"machine wandb.example\n  login user\n  password {KEY}\n")
    without = server_module.account()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    by_variable = server_module.account()

    assert (with_key.has_key, without.has_key, by_variable.has_key) == (True, False, True)


def test_nobody_asked_and_there_is_no_key(tmp_path: Path) -> None:
    """Offline, said in one line, exit 0."""
    run_dir = recorded(tmp_path / "runs", wandb_mode="")

    code, said = sink(run_dir, tmp_path)

    lines = [line for line in said.splitlines() if "sink=wandb" in line]
    assert code == 0 and len(lines) == 1 and "no W&B API key" in lines[0]
    check_own(run_dir)


def test_nobody_asked_and_there_is_a_key(tmp_path: Path, server: FakeWandb) -> None:
    """Online."""
    run_dir = recorded(tmp_path / "runs", wandb_mode="")

    code, said = sink(run_dir, tmp_path)

    assert code == 0, said
    assert server.runs[RUN_ID].steps() == list(range(COUNT))


def test_a_key_that_comes_later_does_not_upload_what_stayed_offline(
    tmp_path: Path, server: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode was decided when the sink first started."""
    run_dir = recorded(tmp_path / "runs", wandb_mode="")
    monkeypatch.delenv("WANDB_API_KEY")
    sink(run_dir, tmp_path)

    code, _ = sink(run_dir, tmp_path, WANDB_API_KEY=KEY)

    assert code == 0 and server.runs == {}


def test_a_key_that_is_gone_later_is_a_server_that_is_away(
    tmp_path: Path, server: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a run that stays offline for good: it is caught up when the key is back."""
    run_dir = recorded(tmp_path / "runs", wandb_mode="")
    server.fail("500")
    first, _ = sink(run_dir, tmp_path)
    server.calm()

    without, said = sink(run_dir, tmp_path, WANDB_API_KEY="")
    again, _ = sink(run_dir, tmp_path)

    assert (first, without, again) == (3, 3, 0)
    assert "no W&B API key" in said
    assert server.runs[RUN_ID].steps() == list(range(COUNT))


@pytest.mark.parametrize(
    ("said_by_run", "said_by_sidecar", "is_online"),
    [("", "disabled", False), ("", "offline", False), ("online", "offline", True)],
)
def test_the_sidecars_own_mode_is_for_runs_that_say_nothing(
    tmp_path: Path, server: FakeWandb, said_by_run: str, said_by_sidecar: str, is_online: bool
) -> None:
    """With a key, `disabled` uploads nothing."""
    run_dir = recorded(tmp_path / "runs", wandb_mode=said_by_run)

    code, said = sink(run_dir, tmp_path, WANDB_MODE=said_by_sidecar)

    assert code == 0, said
    assert bool(server.runs) == is_online
    assert bool(list(run_dir.glob("wandb/offline-run-*"))) == (
        said_by_sidecar == "offline" and not is_online
    )


def test_a_run_that_is_meant_for_another_server_stays_offline(
    tmp_path: Path, server: FakeWandb
) -> None:
    """The key here is not that server's; it is said."""
    run_dir = recorded(
        tmp_path / "runs", wandb_mode="online", wandb_base_url="https://me:pw@wandb.example/"
    )

    code, said = sink(run_dir, tmp_path)

    assert code == 0 and server.runs == {}
    assert said.count("is set up for") == 1 and "wandb.example" in said and "pw" not in said
    check_own(run_dir)


def test_a_run_that_is_meant_for_this_server_goes_there(tmp_path: Path, server: FakeWandb) -> None:
    """A slash more is no other server."""
    run_dir = recorded(tmp_path / "runs", wandb_mode="", wandb_base_url=f"{server.url}/")

    sink(run_dir, tmp_path)

    assert server.runs[RUN_ID].steps() == list(range(COUNT))


def test_a_sweeps_run_is_of_its_sweep_and_never_preempting(
    tmp_path: Path, server: FakeWandb
) -> None:
    """An agent would be given a preempted run once more."""
    run_dir = recorded(
        tmp_path / "runs", wandb_mode="online", wandb_sweep_id="s1", status="preempted",
        exit_code=143,
    )  # fmt: skip

    code, said = sink(run_dir, tmp_path, WANDB_SWEEP_ID="other", WANDB_RUN_ID="other")

    run = server.runs[RUN_ID]
    assert code == 0, said
    assert list(server.runs) == [RUN_ID] and run.sweep == "s1"
    assert run.steps() == list(range(COUNT)) and "preempting" not in run.states


def test_a_run_that_nobody_introduced_stays_offline(tmp_path: Path, server: FakeWandb) -> None:
    """A project and a mode can't be taken back."""
    run_dir = recorded(tmp_path / "runs", is_introduced=False, wandb_mode="")

    code, said = sink(run_dir, tmp_path)

    assert code == 0, said
    assert server.runs == {} and list(run_dir.glob("wandb/offline-run-*"))
