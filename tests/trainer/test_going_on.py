"""Going on from a checkpoint: what may differ, what is said, and whose checkpoints stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.events import RunStarted
from trainer.__main__ import main
from trainer.training.checkpoint import CheckpointDirectory, read_checkpoint


@pytest.fixture
def run(small_run, recorder) -> list[str]:
    """A run of eight steps with a checkpoint in the middle; done once."""
    arguments = [*small_run, "--max_steps", "8", "--save_interval", "4", "--eval_interval", "100"]
    arguments += ["--quant_interval", "0", "--model_option", "layers=1"]
    assert main([*arguments, "--run_id", "first"]) == 0
    return arguments


def out(run: list[str]) -> Path:
    return Path(run[run.index("--output_dir") + 1])


def resumed(run: list[str], *more: str) -> int:
    return main([*run, *more, "--resume_from", str(out(run) / "checkpoints" / "step-000004")])


def without(run: list[str], flag: str) -> list[str]:
    while flag in run:
        at = run.index(flag)
        run = run[:at] + run[at + 2 :]
    return run


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--max_steps 80", "total_steps 8 is 80 now"),
        ("--max_steps 80", "stage full_ternary, and would be in warmup"),
        ("--learning_rate 1e-4", "learning_rate 0.0003 is 0.0001 now"),
        ("--scheduler linear", "scheduler cosine is linear now"),
        ("--warmup_steps 3", "warmup_steps 1 is 3 now"),
    ],
)
def test_another_schedule_is_refused_unless_it_is_asked_for(run, recorder, capsys, change, named):
    """One sentence says what was and what would be; with the flag it goes on and says so."""
    capsys.readouterr()
    recorder.events.clear()

    refused = resumed(run, *change.split())
    error = capsys.readouterr().err
    told = len(recorder.events)
    allowed = resumed(run, *change.split(), "--change_schedule")

    [line] = [line for line in error.splitlines() if line.startswith("error: ")]
    assert (refused, told, allowed) == (2, 0, 0)
    assert named in line and "--change_schedule" in line
    assert named in capsys.readouterr().err


def test_steps_by_epochs_are_compared_too(run, capsys):
    """A change of the batch changes how many steps the epochs are."""
    assert resumed(without(run, "--max_steps"), "--num_epochs", "1") == 2

    assert "total_steps 8 is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--batch_size 2", ["--batch_size 4 is 2 now", "a step had 4 rows and has 2"]),
        ("--weight_decay 0.1", ["--weight_decay 0.01 is 0.1 now"]),
        ("--grad_clip 0.5", ["--grad_clip 1.0 is 0.5 now"]),
        ("--bf16", ["--bf16 not given is given now"]),
        ("--mlm_probability 0.3", ["--mlm_probability 0.15 is 0.3 now"]),
        ("--gradient_accumulation_steps 2", ["a step had 4 rows and has 8"]),
    ],
)
def test_another_way_to_train_is_said(run, capsys, change, said):
    """It does not bend the schedule, so it is no reason to refuse."""
    capsys.readouterr()

    code = resumed(run, *change.split())

    error = capsys.readouterr().err
    assert code == 0
    assert all(part in error for part in said)


def test_another_place_is_said(run, capsys, monkeypatch):
    """The noise of GPUs goes on only where there are as many; of processes likewise."""
    state = out(run) / "checkpoints" / "step-000004" / "state.json"
    values = json.loads(state.read_text())
    values["random"] = [{**values["random"][0], "cuda": ["AAAA"]}] * 2
    state.write_text(json.dumps(values))
    capsys.readouterr()

    code = resumed(run)

    error = capsys.readouterr().err
    assert code == 0
    assert "2 processes are 1 now, 1 visible GPUs are 0 now" in error


def test_the_same_again_is_not_worth_a_word(run, capsys):
    """What is only about records may change."""
    capsys.readouterr()

    code = resumed(run, "--log_interval", "3")

    assert code == 0
    assert " now" not in capsys.readouterr().err


def test_a_checkpoint_of_an_older_version_has_its_own_spans(run, recorder, capsys):
    """It knows less of its schedule; what it knows is compared."""
    state = out(run) / "checkpoints" / "step-000004" / "state.json"
    values = json.loads(state.read_text())
    del values["schedule"], values["rows_per_step"], values["evaluation_seed"]
    values["best_val_loss"] = 0.001  # on other masks
    values["model_config"]["qdrop_anneal_steps"] = 30_000
    values["identity"]["qdrop_anneal_steps"] = 30_000
    state.write_text(json.dumps(values))

    same, other = resumed(run), resumed(run, "--max_steps", "80")

    assert (same, other) == (0, 2)
    last = CheckpointDirectory(out(run)).resolve("latest")
    assert read_checkpoint(last)["model_config"]["qdrop_anneal_steps"] == 30_000
    assert recorder.events[-1].summary["best_val_loss"] > 1


def test_a_second_run_leaves_the_checkpoints_of_the_first(run, recorder, capsys):
    """Its own lie in a directory with its name, `latest` is the newest of all."""
    first = out(run) / "checkpoints" / "step-000008"
    before = (first / "model.safetensors").read_bytes()
    capsys.readouterr()

    code = main([*run, "--run_id", "second", "--seed", "1", "--keep_checkpoints", "1"])

    latest = CheckpointDirectory(out(run)).resolve("latest")
    assert code == 0
    assert (first / "model.safetensors").read_bytes() == before
    assert latest == out(run) / "checkpoints" / "second" / "step-000008"
    assert read_checkpoint(latest)["run_id"] == "second"
    assert f"checkpoints of another run: those of this run go to {latest.parent}" in (
        capsys.readouterr().err
    )
    assert sorted(path.name for path in first.parent.iterdir()) == [
        "latest", "second", "step-000004", "step-000008",
    ]  # fmt: skip


def test_latest_goes_on_with_the_run_that_wrote_it_beside_its_checkpoints(run):
    """Neither run gets in the other's way when it goes on."""
    main([*run, "--run_id", "second", "--seed", "1"])
    seconds = out(run) / "checkpoints" / "second"

    assert main([*run, "--seed", "1", "--resume_from", str(seconds / "step-000004")]) == 0
    assert resumed(run) == 0

    assert CheckpointDirectory(out(run)).resolve("latest").parent == seconds.parent
    assert {path.name for path in seconds.iterdir()} == {"step-000004", "step-000008"}
    assert read_checkpoint(seconds / "step-000008")["run_id"] == "second"
    assert read_checkpoint(seconds.parent / "step-000008")["run_id"] == "first"


def test_a_run_that_begins_again_under_its_name_leaves_what_it_had(run):
    """Started anew, by whoever requeues it, is not gone on."""
    assert main([*run, "--run_id", "first"]) == 0
    assert main([*run, "--run_id", "first"]) == 0

    names = sorted(path.name for path in (out(run) / "checkpoints").iterdir())
    assert names == ["first", "first-2", "latest", "step-000004", "step-000008"]


def test_the_tokenizer_in_the_config_is_the_one_that_was_used(run, recorder):
    """The default one is not what the sample is tokenized with; a resumed run has the same."""
    assert resumed(run) == 0

    first, second = recorder.of(RunStarted)
    assert first.config["tokenizer"] == second.config["tokenizer"] == "shipped"
    kept = read_checkpoint(CheckpointDirectory(out(run)).resolve("latest"))
    assert kept["arguments"]["tokenizer"] == "shipped"


@pytest.mark.parametrize(
    ("option", "stages"),
    [
        ("weight_mode=float activation_mode=float", ["float"]),
        ("weight_mode=float", ["warmup", "float_weights"]),
    ],
)
def test_a_run_with_float_weights_has_no_ternary_stage(small_run, recorder, capsys, option, stages):
    """Neither in its lines nor in the stages of its metrics."""
    run = [*small_run, "--max_steps", "20", "--eval_interval", "100", "--quant_interval", "0"]

    main([*run, "--model_option", "layers=1", *option.split()])

    found = list(dict.fromkeys(recorder.metrics("train", "train/training_stage").values()))
    assert found == stages
    assert "ternary" not in capsys.readouterr().err
