"""`evaluate` and `export` on the checkpoint of a short run."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.test_readme import EXAMPLES
from tests.trainer.model.test_encoder import make_model
from trainer.__main__ import main
from trainer.data.masking import Masking
from trainer.evaluation.calibrate import calibrate
from trainer.evaluation.export import load_exported
from trainer.evaluation.text import Text
from trainer.model.calibration import group_means
from trainer.model.config import NOT_PREDICTED
from trainer.training.checkpoint import CheckpointDirectory, read_checkpoint
from trainer.training.evaluate import Evaluation


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """Of a run of four steps that validated on one batch."""
    out = tmp_path_factory.mktemp("evaluated")
    run = (
        f"--model_size tiny --dataset sample --max_length 16 --batch_size 4 --max_steps 4 "
        f"--num_workers 0 --eval_batches 1 --no_sidecar --output_dir {out} --cache_dir {cache_dir} "
        f"--model_option layers=2"
    )
    assert main(run.split()) == 0
    return CheckpointDirectory(out).resolve("latest")


@pytest.fixture
def command(checkpoint: Path, cache_dir: Path) -> list[str]:
    return [str(checkpoint), "--cache_dir", str(cache_dir), "--eval_batches", "1"]


def test_evaluate_gives_the_loss_that_the_run_had(checkpoint, command, capsys):
    """Same text, same masks, same bits in force; another split is other text."""
    expected = read_checkpoint(checkpoint)["best_val_loss"]

    assert main(["evaluate", *command]) == 0
    assert main(["evaluate", *command, "--split", "test"]) == 0

    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Step 4 of")]
    assert f"on sample validation: loss {expected:.4f}, perplexity" in lines[0]
    assert "on sample test: loss" in lines[1]
    assert f"loss {expected:.4f}" not in lines[1]


def test_calibration_is_kept_only_where_it_helps(command, capsys):
    """Both losses are said."""
    assert main(["evaluate", *command, "--calibrate"]) == 0

    said = capsys.readouterr().out
    [(after, before, kept)] = re.findall(
        r"Calibrated on training text: loss ([\d.]+) where it was ([\d.]+); (not kept|kept)", said
    )
    assert (kept == "kept") == (float(after) < float(before))
    assert (", calibrated: loss" in said) == (kept == "kept")


@pytest.mark.parametrize("is_better", [True, False])
def test_means_are_measured_on_some_training_text_and_judged_on_other(is_better):
    """The text of the evaluation has no part in it; what does not help is taken back."""
    model = make_model()
    rows = torch.randint(5, 50, (64, 16), generator=torch.Generator().manual_seed(1))
    text = Text({"train": rows, "test": rows + 100}, 4, Masking.of(200, range(5), 4, 0, 0.3))
    measured, judged, said = [], [], []

    def measure(encoder, batches):
        measured.extend(unmasked(batch) for batch in batches)
        return {"blocks.0.ffn_norm": torch.zeros(8)}

    def judge(encoder, batches, device):
        judged.append(torch.cat([unmasked(batch) for batch in batches()]))
        loss = 2.0 if len(judged) == 1 else 1.0 if is_better else 3.0
        return Evaluation(torch.tensor(loss), torch.tensor(0.5))

    kept = calibrate(model, text, torch.device("cpu"), said.append, measure, judge)

    before, after = judged
    used, other = ({tuple(row) for row in part.tolist()} for part in (torch.cat(measured), before))
    assert torch.equal(before, after)
    assert len(used) == len(other) == 32 and not used & other
    assert used | other == {tuple(row) for row in rows.tolist()}
    assert kept == is_better == bool(group_means(model))
    assert ("not kept" not in said[0]) == is_better


def unmasked(batch):
    return torch.where(batch.labels != NOT_PREDICTED, batch.labels, batch.input_ids).cpu()


@pytest.mark.parametrize("batch_size", [1, 8, 16, 32])
def test_one_checkpoint_has_one_loss(checkpoint, cache_dir, capsys, batch_size):
    """Whatever rows are taken together: 160 of them, in batches of any size."""
    limit = ["--eval_batches", str(160 // batch_size), "--batch_size", str(batch_size)]
    shared = ["evaluate", str(checkpoint), "--cache_dir", str(cache_dir)]
    main([*shared, "--batch_size", "160", "--eval_batches", "1"])

    main([*shared, *limit])

    whole, parts = (
        float(re.search(r"loss ([\d.]+)", line)[1])
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("Step 4 of")
    )
    assert parts == pytest.approx(whole, abs=2e-4)


def test_evaluate_says_the_accuracy(command, capsys):
    """The share of predicted tokens that were right, after loss and perplexity."""
    main(["evaluate", *command])

    assert re.search(r"perplexity [\d.,]+, accuracy \d+\.\d %\.", capsys.readouterr().out)


@pytest.mark.parametrize("has_rich", [True, False])
def test_the_quantization_is_told_site_by_site(checkpoint, command, capsys, monkeypatch, has_rich):
    """A table of weights, activations and norms, with rich and without; no name is cut."""
    if not has_rich:
        monkeypatch.setitem(sys.modules, "rich.table", None)

    assert main(["evaluate", *command, "--analyze_quantization"]) == 0

    said = capsys.readouterr().out
    sites = {line.split()[0] for line in said.splitlines() if line.startswith("layers.")}
    assert {"layers.0.ffn.up", "layers.1.attention.qk_input", "layers.1.ffn_norm"} <= sites
    assert {"Weights", "Activations", "Norms"} <= {line.strip() for line in said.splitlines()}
    page = checkpoint.parent / "quantization-step-000004.html"
    assert f"Pictures: {page}" in said
    assert page.read_text().count("<h2>") == 9


def test_the_page_of_pictures_is_written_where_the_user_wants_it(command, tmp_path, capsys):
    """With the loss above; where it cannot be written, one sentence names the flag."""
    report = tmp_path / "report.html"
    analyze = ["evaluate", *command, "--analyze_quantization", "--report"]

    written, refused = main([*analyze, str(report)]), main([*analyze, str(tmp_path / "no/where")])

    output = capsys.readouterr()
    assert (written, refused) == (0, 2)
    assert "on sample validation: loss" in report.read_text()
    assert "--report" in output.err and "cannot be written" in output.err


def test_export_says_its_size_and_can_be_loaded(command, tmp_path, capsys):
    """What it packs evaluates; the checkpoint stays as it was."""
    out = tmp_path / "export"

    code = main(["export", *command, "--out", str(out)])

    said = capsys.readouterr().out
    assert code == 0
    assert re.search(rf"Exported step 4 to {out}: [\d.]+ MB \(ternary .* in float32\.", said)
    assert load_exported(out).config.layers == 2


def test_the_documented_example_of_an_export_works(command, tmp_path, capsys, monkeypatch):
    """As it stands, in the directory where the export was made."""
    (example,) = (example for example in EXAMPLES if "from_pretrained" in example)
    monkeypatch.chdir(tmp_path)
    main(["export", *command, "--out", "packed"])
    capsys.readouterr()

    exec(compile(example, "TRAINER.md", "exec"), {})

    [line] = capsys.readouterr().out.splitlines()
    assert len(ast.literal_eval(line)) == 5


def test_an_export_without_its_tokenizer_says_so(checkpoint, command, tmp_path, capsys):
    """The weights are there all the same: a machine without a hub can pack, too."""
    other = tmp_path / "step-000004"
    shutil.copytree(checkpoint, other)
    state = other / "state.json"
    state.write_text(state.read_text().replace('"shipped ', '"shipped 0'))

    code = main(["export", str(other), *command[1:], "--out", str(tmp_path / "packed")])

    assert code == 0
    assert (
        "Without its tokenizer: the checkpoint's tokenizer is shipped 0" in capsys.readouterr().out
    )
    assert load_exported(tmp_path / "packed").config.layers == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("evaluate", "CHECKPOINT"),
        ("evaluate /nowhere/step-000001", "/nowhere/step-000001"),
        ("evaluate x --split train", "--split"),
        ("evaluate x --batch_size 0", "--batch_size"),
        ("evaluate x --eval_batches some", "--eval_batches"),
        ("export x", "--out"),
        ("evaluate x --device toaster", "--device toaster"),
    ],
)
def test_bad_input_is_one_sentence(arguments, named, capsys):
    """Exit code 2, no traceback."""
    code = main(arguments.split())

    [line] = capsys.readouterr().err.splitlines()
    assert code == 2
    assert named in line


def test_an_export_that_cannot_be_written_is_one_sentence(command, tmp_path, capsys):
    """The directory is named."""
    (tmp_path / "file").touch()

    code = main(["export", *command, "--out", str(tmp_path / "file")])

    assert code == 2
    assert f"--out {tmp_path / 'file'} cannot be written" in capsys.readouterr().err
