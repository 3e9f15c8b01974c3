"""Arguments: the original flags, their defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.args import parse_args
from trainer.errors import BadInput

ORIGINAL_DEFAULTS = {
    "model_size": "base",
    "dataset": "wikitext-103-v1",
    "tokenizer": "bert-base-uncased",
    "max_length": 512,
    "mlm_probability": 0.15,
    "cache_dir": Path("./cache"),
    "batch_size": 32,
    "num_epochs": 10,
    "learning_rate": 3e-4,
    "weight_decay": 0.01,
    "warmup_steps": 10000,
    "grad_clip": 1.0,
    "gradient_accumulation_steps": 1,
    "fp16": False,
    "num_workers": 4,
    "output_dir": Path("./outputs"),
    "log_interval": 100,
    "eval_interval": 1000,
    "save_interval": 5000,
    "resume_from": None,
    "wandb_project": "bitnet-qdyt-v2",
    "wandb_run_name": None,
    "wandb_tags": (),
    "wandb_notes": "",
    # Of the original it was online; now that is so where there is a key.
    "wandb_mode": "",
    "disable_wandb": False,
    "scheduler": "cosine",
}
NEW_DEFAULTS = {
    "max_steps": None,
    "run_id": None,
    "seed": 42,
    "quant_interval": 500,
    "telemetry_endpoint": None,
    "no_sidecar": False,
    "device": "auto",
}


@pytest.mark.parametrize(("name", "default"), (ORIGINAL_DEFAULTS | NEW_DEFAULTS).items())
def test_a_flag_that_is_not_given_has_its_published_default(name, default):
    """The defaults are those of the original training script."""
    args = parse_args([], environ={})

    assert getattr(args, name) == default


@pytest.mark.parametrize("size", ["tiny", "small", "base", "rtx", "large"])
def test_every_original_size_is_accepted(size):
    """The choices of --model_size."""
    assert parse_args(["--model_size", size], environ={}).model_size == size


def test_every_flag_takes_a_value_of_its_kind():
    """Numbers are numbers, paths are paths, and several tags are a tuple."""
    args = parse_args(
        [
            "--batch_size",
            "8",
            "--learning_rate",
            "2e-4",
            "--output_dir",
            "/x",
            "--wandb_tags",
            "a",
            "b",
            "--fp16",
        ],
        environ={},
    )

    assert (args.batch_size, args.learning_rate, args.output_dir) == (8, 2e-4, Path("/x"))
    assert args.wandb_tags == ("a", "b")
    assert args.fp16
    assert args.given == {"batch_size", "learning_rate", "output_dir", "wandb_tags", "fp16"}


@pytest.mark.parametrize(
    "bad",
    [
        "--nonsense 1",
        "--model_size giant",
        "--dataset imagenet",
        "--scheduler step",
        "--wandb_mode sometimes",
        "--batch_size 0",
        "--batch_size many",
        "--max_steps -5",
        "--mlm_probability 1.5",
        "--mlm_probability 0",
        "--learning_rate nan",
        "--learning_rate 0",
        "--warmup_steps -1",
        "--log_interval 0",
        "--batch",
        "--batch_siz 3",
        "stray",
    ],
)
def test_a_bad_flag_or_value_is_refused_by_name(bad):
    """The sentence names what was wrong, and stands on one line."""
    with pytest.raises(BadInput) as refusal:
        parse_args(bad.split(), environ={})

    assert bad.split()[0].lstrip("-") in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_environment_stands_behind_its_flags():
    """TELEMETRY_ENDPOINT and TELEMETRY_SPOOL_DIR count where the flag is not given."""
    environ = {"TELEMETRY_ENDPOINT": "tcp://there:1", "TELEMETRY_SPOOL_DIR": "/spool"}

    behind = parse_args([], environ)
    before = parse_args(["--telemetry_endpoint", "tcp://here:2"], environ)

    assert (behind.telemetry_endpoint, behind.spool_dir) == ("tcp://there:1", Path("/spool"))
    assert before.telemetry_endpoint == "tcp://here:2"


def test_either_flag_disables_wandb():
    """--disable_wandb and --wandb_mode disabled mean the same."""
    modes = [
        parse_args(text.split(), environ={}).effective_wandb_mode()
        for text in ("", "--disable_wandb", "--wandb_mode disabled", "--wandb_mode offline")
    ]

    assert modes == ["", "disabled", "disabled", "offline"]


def test_wandbs_variables_stand_behind_flags_that_were_not_given():
    """A user of wandb sets them once for all programs."""
    environ = {
        "WANDB_PROJECT": "p", "WANDB_NAME": "n", "WANDB_TAGS": "a,b", "WANDB_NOTES": "why",
        "WANDB_MODE": "disabled",
    }  # fmt: skip

    behind = parse_args([], environ=environ)
    flags = ["--wandb_project", "P", "--wandb_mode", "offline", "--wandb_tags", "T"]
    before = parse_args(flags, environ=environ)

    assert (behind.wandb_project, behind.wandb_run_name) == ("p", "n")
    assert (behind.wandb_tags, behind.wandb_notes) == (("a", "b"), "why")
    assert behind.effective_wandb_mode() == "disabled"
    assert (before.wandb_project, before.wandb_tags) == ("P", ("T",))
    assert (before.effective_wandb_mode(), before.wandb_notes) == ("offline", "why")


def test_wandb_disabled_in_the_environment_is_heeded():
    """As other trainers read it."""
    assert parse_args([], environ={"WANDB_DISABLED": "true"}).effective_wandb_mode() == "disabled"


def test_the_config_holds_every_argument_as_a_scalar():
    """What is recorded of a run can be read without this program."""
    config = parse_args(["--wandb_tags", "a", "b"], environ={}).as_config()

    assert all(isinstance(value, str | int | float | bool) for value in config.values())
    assert config.keys() >= ORIGINAL_DEFAULTS.keys() - {"resume_from", "wandb_run_name"}
