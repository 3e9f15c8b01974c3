"""What the trainer makes of W&B: its variables behind the flags, its limits, and its sweeps."""

from __future__ import annotations

from trainer.__main__ import main
from trainer.reporting import telemetry_link

ONE_STEP = ["--max_steps", "1"]


def test_names_that_wandb_does_not_take_are_said_when_the_run_begins(small_run, recorder, capfd):
    """In a line each; the run goes on, and says of itself what it was told."""
    flags = ["--wandb_project", "team/p:1", "--wandb_tags", "t" * 80, "--wandb_run_name", "fine"]

    code = main([*small_run, *flags, *ONE_STEP])

    said = capfd.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "in W&B" in line]
    assert code == 0 and len(lines) == 2
    assert lines[0].startswith("project 'team/p:1' is 'team-p-1' in W&B") and "tags" in lines[1]
    assert recorder.events[0].project == "team/p:1"


def test_names_that_wandb_takes_are_not_spoken_of(small_run, recorder, capfd):
    """Nothing to say."""
    main([*small_run, *ONE_STEP])

    said = capfd.readouterr()
    assert "in W&B" not in said.out + said.err


def test_wandbs_variables_reach_the_run_below_the_flags(small_run, recorder, monkeypatch):
    """Also those that have no flag here."""
    for name, value in {
        "WANDB_MODE": "disabled", "WANDB_PROJECT": "theirs", "WANDB_NOTES": "why",
        "WANDB_NAME": "called so", "WANDB_TAGS": "one,two",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)

    main([*small_run, *ONE_STEP, "--wandb_project", "mine"])

    started = recorder.events[0]
    assert (started.project, started.wandb_mode, started.notes) == ("mine", "disabled", "why")
    assert started.name == "called so" and started.tags[:2] == ["one", "two"]


def test_under_a_sweep_agent_a_run_has_the_sweeps_id_and_a_resumed_one_its_own(
    small_run, recorder, monkeypatch
):
    """The agent looks for its own id; a checkpoint goes on as who it was."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    monkeypatch.delenv("TELEMETRY_SWEEP_RUN_TAKEN", raising=False)
    run_ids: list[str] = []
    monkeypatch.setattr(
        telemetry_link, "open_emitter", lambda *args: (run_ids.append(args[1]), recorder)[1]
    )
    main([*small_run, *ONE_STEP])
    monkeypatch.setenv("WANDB_RUN_ID", "def456")

    main([*small_run, *ONE_STEP, "--resume_from", "latest"])
    main([*small_run, *ONE_STEP])

    assert run_ids == ["abc123", "abc123", "def456"]
