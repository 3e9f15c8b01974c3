"""The commands `evaluate` and `export`, which read a checkpoint.

In: a checkpoint and text.
Out: loss and perplexity, tables and pictures of the quantization, or a packed export.
Never: changes the checkpoint.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.files import write_atomically
from trainer.args import TrainArgs
from trainer.data.batches import Batch, Masking, evaluation_batches
from trainer.data.corpus import load_corpus
from trainer.data.token_cache import load_rows
from trainer.data.tokenizer import LoadedTokenizer, load_tokenizer
from trainer.errors import BadInput
from trainer.evaluation.checkpoint_args import CheckpointArgs
from trainer.evaluation.evaluate import Evaluation, evaluate
from trainer.evaluation.export import export_encoder
from trainer.evaluation.rebuild import rebuild_model
from trainer.model import BitNetQDyT
from trainer.model.calibration import freeze_group_means, measure_group_means
from trainer.reporting.progress import perplexity
from trainer.reporting.quantization_report import make_page, print_tables
from trainer.training.checkpoint import Checkpoint, read_checkpoint, tokenizer_of
from trainer.training.device import resolve_device, use_device
from trainer.training.processes import Place

CALIBRATION_BATCHES = 32

Say = Callable[[str], None]
Batches = Callable[[], Iterator[Batch]]


def assess(args: CheckpointArgs, say: Say) -> int:
    """Evaluate or export a checkpoint as the arguments say; return the exit code.

    Raises:
        BadInput: an argument cannot be carried out.
    """
    device = resolve_device(args.device, fp16=False, place=Place())
    use_device(device)
    checkpoint = read_checkpoint(args.checkpoint)
    model = rebuild_model(checkpoint).to(device)
    # Loss and accuracy; with --calibrate also those of the calibrated model.
    if args.command == "evaluate" or args.calibrate:
        text = load_text(args, checkpoint, say)
        batches = text.batches(args.split, args.eval_batches)
        found = _evaluate(model, batches, device)
        result = (
            f"{_name(args, checkpoint)}: {_losses(found)}, "
            f"accuracy {100 * found.accuracy.item():.1f} %."
        )
        say(result)
        if args.calibrate and calibrate(model, text, device, say):
            calibrated = _losses(_evaluate(model, batches, device))
            say(f"{_name(args, checkpoint)}, calibrated: {calibrated}.")
        if args.analyze_quantization:
            observe_quantization(model, next(batches()).to(device))
            print_tables(model)
            write_page(model, args, result, say)
    # The export, which is calibrated if that lowered the loss.
    if args.command == "export":
        assert args.out is not None
        try:
            size = export_encoder(model, args.out)
        except OSError as exc:
            raise BadInput(f"--out {args.out} cannot be written: {exc.strerror}") from exc
        say(f"Exported step {checkpoint['step']:,} to {args.out}: {size}.")
        export_tokenizer(checkpoint, args.out, say)
    return 0


@dataclass(frozen=True)
class Text:
    """Packed rows by split, with the batch size and masking of their evaluation."""

    rows: Mapping[str, Tensor]
    batch_size: int
    masking: Masking

    def batches(self, split: str, limit: int = 0) -> Batches:
        """Return a function that gives the first `limit` batches of a split; all if limit is 0."""
        rows = self.rows[split]
        return lambda: evaluation_batches(rows, self.batch_size, self.masking, limit)


def load_text(args: CheckpointArgs, checkpoint: Checkpoint, say: Say) -> Text:
    """Load the text of --dataset, or that of the run, with the run's own tokenizer.

    Raises:
        BadInput: text or tokenizer cannot be loaded, or the tokenizer is not the run's.
    """
    ours: dict[str, Any] = checkpoint["arguments"]
    dataset = args.dataset or ours["dataset"]
    corpus = load_corpus(dataset, say)
    tokenizer = load_own_tokenizer(checkpoint, say)
    length = checkpoint["identity"]["row length"]
    rows = load_rows(corpus, tokenizer, length, args.cache_dir, say)
    masking = Masking.of(
        tokenizer.vocabulary_size,
        tokenizer.special_ids,
        tokenizer.mask_id,
        tokenizer.pad_id,
        ours.get("mlm_probability", TrainArgs.mlm_probability),
    )
    return Text(rows, args.batch_size or ours["batch_size"], masking)


def load_own_tokenizer(checkpoint: Checkpoint, say: Say) -> LoadedTokenizer:
    """Load the tokenizer of the checkpoint's run.

    Raises:
        BadInput: it cannot be loaded, or the one of that name has changed since.
    """
    dataset = checkpoint["arguments"]["dataset"]
    tokenizer = load_tokenizer(tokenizer_of(checkpoint), dataset, say, is_chosen=True)
    found = f"{tokenizer.name} {tokenizer.sha256[:16]}"
    if found != checkpoint["identity"]["tokenizer"]:
        raise BadInput(
            f"the checkpoint's tokenizer is {checkpoint['identity']['tokenizer']}, and what can "
            f"be loaded here is {found}: its numbers would mean other words"
        )
    return tokenizer


def export_tokenizer(checkpoint: Checkpoint, directory: Path, say: Say) -> None:
    """Save the tokenizer beside the weights, where AutoTokenizer finds it.

    If it cannot be loaded or saved, a line says so, and the export stays without it.
    """
    try:
        load_own_tokenizer(checkpoint, say).backend.save_pretrained(directory)
    except (BadInput, OSError) as exc:
        say(f"Without its tokenizer: {exc}.")


def calibrate(model: BitNetQDyT, text: Text, device: torch.device, say: Say) -> bool:
    """Fix the group means of the norms if that lowers the loss; return True if it does.

    The means are measured on every second of the first batches of the training text, and
    the losses are compared on the others. The text of the evaluation, validation or test,
    is not used for either.
    """
    measured, judged = _halves(text.batches("train", 2 * CALIBRATION_BATCHES))
    before = _evaluate(model, judged, device)
    freeze_group_means(model, measure_group_means(model, (b.to(device) for b in measured())))
    after = _evaluate(model, judged, device)
    is_better = bool(after.loss < before.loss)
    if not is_better:
        freeze_group_means(model, {})
    say(
        f"Calibrated on training text: loss {after.loss.item():.4f} where it was "
        f"{before.loss.item():.4f}; {'kept' if is_better else 'not kept'}."
    )
    return is_better


def _halves(batches: Batches) -> tuple[Batches, Batches]:
    """Split batches into those with an even number and those with an odd number."""
    return (
        lambda: itertools.islice(batches(), 0, None, 2),
        lambda: itertools.islice(batches(), 1, None, 2),
    )


@torch.no_grad()
def observe_quantization(model: BitNetQDyT, batch: Batch) -> None:
    """Run one forward in training mode, since only there the modules take readings."""
    model.train()
    model.observe(True)
    model(*batch.inputs)
    model.observe(False)
    model.eval()


def write_page(model: BitNetQDyT, args: CheckpointArgs, result: str, say: Say) -> None:
    """Write the page of pictures to --report, or beside the checkpoint by default.

    Raises:
        BadInput: the page cannot be written there.
    """
    checkpoint = args.checkpoint.resolve()
    path = args.report or checkpoint.with_name(f"quantization-{checkpoint.name}.html")
    page = make_page(model, f"Quantization of {checkpoint.name}", [result, str(checkpoint)])
    try:
        write_atomically(path, lambda file: file.write(page.encode()))
    except OSError as exc:
        raise BadInput(f"--report {path} cannot be written: {exc.strerror}") from exc
    say(f"Pictures: {path}")


def _evaluate(model: BitNetQDyT, batches: Batches, device: torch.device) -> Evaluation:
    found = evaluate(model, batches(), device)
    model.eval()
    if found is None:
        raise BadInput("there is nothing to predict in this text")
    return found


def _losses(found: Evaluation) -> str:
    loss = found.loss.item()
    return f"loss {loss:.4f}, perplexity {perplexity(loss):,.1f}"


def _name(args: CheckpointArgs, checkpoint: Checkpoint) -> str:
    dataset = args.dataset or checkpoint["arguments"]["dataset"]
    return f"Step {checkpoint['step']:,} of run {checkpoint['run_id']} on {dataset} {args.split}"
