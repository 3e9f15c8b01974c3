"""W&B's variables: read where a run begins, below what its code says, and nowhere else."""

from __future__ import annotations

import pytest

from shared.emitter import Emitter
from shared.events import MetricsLogged, RunStarted
from shared.ids import RUN_ID, new_run_id
from shared.wandb_variables import filled_in, said_of_run, wandb_mode
from tests.fakes import FakeSidecar

ALL = {
    "WANDB_PROJECT": "p",
    "WANDB_NAME": "n",
    "WANDB_TAGS": "a, b,,c",
    "WANDB_NOTES": "why",
    "WANDB_RUN_GROUP": "g",
    "WANDB_JOB_TYPE": "eval",
    "WANDB_ENTITY": "team",
    "WANDB_MODE": "offline",
    "WANDB_BASE_URL": "https://wandb.example",
}


def test_what_the_code_left_empty_comes_from_the_environment():
    """Every variable that speaks of a run."""
    event = filled_in(RunStarted(), ALL, "r")

    assert event == RunStarted(
        project="p", name="n", tags=["a", "b", "c"], notes="why", group="g", job_type="eval",
        entity="team", wandb_mode="offline", wandb_base_url="https://wandb.example",
    )  # fmt: skip


def test_what_the_code_said_stays():
    """Flags and explicit fields rank above the environment."""
    said = RunStarted(
        project="P", name="N", tags=["T"], notes="X", group="G", job_type="J", entity="E",
        wandb_mode="online", wandb_base_url="https://other.example",
    )  # fmt: skip

    assert filled_in(said, ALL, "r") is said


@pytest.mark.parametrize("user", ["me:hunter2", ":hunter2", "local-hunter2:x-hunter2"])
def test_a_password_in_the_servers_address_comes_into_no_journal(user):
    """A server that several people share is often written down with one."""
    event = filled_in(RunStarted(), {"WANDB_BASE_URL": f"https://{user}@wandb.example:8080"}, "r")

    assert "hunter2" not in event.wandb_base_url
    assert event.wandb_base_url.endswith("@wandb.example:8080")


def test_none_counts_as_not_said():
    """As a script passes on an argument that it was not given."""
    event = filled_in(RunStarted(project=None, name=None, tags=None, notes=None), ALL, "r")

    assert (event.project, event.name, event.tags, event.notes) == (
        "p",
        "n",
        ["a", "b", "c"],
        "why",
    )


@pytest.mark.parametrize(
    ("environ", "mode"),
    [
        ({}, ""),
        ({"WANDB_MODE": ""}, ""),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": " Offline "}, "offline"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "run"}, "online"),
        ({"WANDB_MODE": "shared"}, "online"),
        ({"WANDB_MODE": "offfline"}, "offline"),
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled"),
        ({"WANDB_DISABLED": "false", "WANDB_MODE": "online"}, "online"),
        ({"WANDB_DISABLED": "", "WANDB_MODE": "online"}, "online"),
    ],
)
def test_a_mode_is_never_read_as_more_than_was_meant(environ, mode):
    """A word that W&B does not know uploads nothing."""
    assert wandb_mode(environ) == mode


def test_bytes_that_are_no_text_become_text():
    """Python shows them as lone surrogates, which no message could carry."""
    assert said_of_run({"WANDB_NOTES": "caf\udce9"}) == {"notes": "caf\\udce9"}


@pytest.mark.parametrize("name", ["WANDB_RESUME", "WANDB_RUN_ID", "WANDB_FORK_FROM", "WANDB_DIR"])
def test_other_variables_say_nothing_of_a_run(name):
    """They concern wandb's own process, and we have that elsewhere."""
    assert filled_in(RunStarted(), {name: "x"}, "r") == RunStarted()


def test_under_a_sweep_agent_the_first_run_has_the_id_that_the_agent_gave():
    """And only the first: a second run, or one of a child process, is not the sweep's."""
    environ = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "abc123"}

    first, second = new_run_id(environ), new_run_id(environ)
    in_child = new_run_id(dict(environ))
    next_of_agent = new_run_id({"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "def456"})

    assert (first, next_of_agent) == ("abc123", "def456")
    assert all(RUN_ID.fullmatch(other) and other != "abc123" for other in (second, in_child))


@pytest.mark.parametrize(
    "environ", [{"WANDB_RUN_ID": "abc"}, {"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "a/../b"}]
)
def test_without_a_sweep_or_with_an_id_that_we_can_not_have_an_id_is_fresh(environ):
    """A run id becomes the name of a directory."""
    assert new_run_id(environ) not in environ.values()


def test_only_the_run_that_has_the_sweeps_id_is_told_to_be_of_the_sweep():
    """A script that names its run itself is no run of the sweep."""
    environ = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "abc123"}

    own, other = (filled_in(RunStarted(), environ, run_id) for run_id in ("abc123", "mine"))

    assert (own.wandb_sweep_id, other.wandb_sweep_id) == ("s1", "")


def test_the_emitter_reads_them_when_the_run_begins(monkeypatch, place):
    """Not when it was made: a script sets its variables between the two."""
    endpoint = f"ipc://{place}/s"
    with FakeSidecar(endpoint) as sidecar:
        out = Emitter(endpoint, run_id="r", source="rank0")
        monkeypatch.setenv("WANDB_MODE", "disabled")

        out.emit(RunStarted(project="p", name="n"))
        out.emit(MetricsLogged(kind="train", step=1, values={"a": 1.0}))

        assert out.close(10)
        started, row = sidecar.disk.typed(sidecar.disk.key_of("r"))
    assert started.wandb_mode == "disabled" and row.values == {"a": 1.0}
