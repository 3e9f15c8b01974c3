"""The commands `evaluate` and `export`, which read a checkpoint.

In: a checkpoint and text.
Out: loss and perplexity, tables and pictures of the quantization, or a packed export.
Never: changes the checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import torch

from shared.files import write_atomically
from shared.terminal import Say
from trainer.data.masking import Batch
from trainer.errors import BadInput
from trainer.evaluation.calibrate import calibrate, evaluate_batches
from trainer.evaluation.checkpoint_args import CheckpointArgs
from trainer.evaluation.export import export_encoder
from trainer.evaluation.text import load_own_tokenizer, load_text
from trainer.model import BitNetQDyT
from trainer.model.diagnostics.diagnostics import Diagnostics
from trainer.reporting.progress import perplexity
from trainer.reporting.quantization_report import make_page, print_tables
from trainer.training.checkpoint import Checkpoint, read_checkpoint
from trainer.training.device import resolve_device, use_device
from trainer.training.evaluate import Evaluation
from trainer.training.processes import Place
from trainer.training.resume import rebuild_model


def run_command(args: CheckpointArgs, say: Say) -> int:
    """Evaluate or export a checkpoint as the arguments say; return the exit code.

    Raises:
        BadInput: an argument cannot be carried out.
    """
    device = resolve_device(args.device, fp16=False, place=Place())
    use_device(device)
    checkpoint = read_checkpoint(args.checkpoint)
    model = rebuild_model(checkpoint).to(device)
    if args.command == "evaluate" or args.calibrate:
        evaluate_checkpoint(model, checkpoint, args, device, say)
    # An export is calibrated if that lowered the loss.
    if args.command == "export":
        assert args.out is not None
        export_checkpoint(model, checkpoint, args.out, say)
    return 0


def evaluate_checkpoint(
    model: BitNetQDyT,
    checkpoint: Checkpoint,
    args: CheckpointArgs,
    device: torch.device,
    say: Say,
) -> None:
    """Print loss and accuracy; with --calibrate also those of the calibrated model.

    Raises:
        BadInput: the text cannot be loaded, or the page of pictures cannot be written.
    """
    text = load_text(args, checkpoint, say)
    batches = text.batches(args.split, args.eval_batches)
    found = evaluate_batches(model, batches, device)
    result = (
        f"{_name(args, checkpoint)}: {_losses(found)}, "
        f"accuracy {100 * found.accuracy.item():.1f} %."
    )
    say(result)
    if args.calibrate and calibrate(model, text, device, say):
        calibrated = _losses(evaluate_batches(model, batches, device))
        say(f"{_name(args, checkpoint)}, calibrated: {calibrated}.")
    if args.analyze_quantization:
        observe_quantization(model, next(batches()).to(device))
        print_tables(model)
        write_page(model, args, result, say)


def export_checkpoint(model: BitNetQDyT, checkpoint: Checkpoint, out: Path, say: Say) -> None:
    """Write the export and its tokenizer, and print the size.

    Raises:
        BadInput: the directory cannot be written.
    """
    try:
        size = export_encoder(model, out)
    except OSError as exc:
        raise BadInput(f"--out {out} cannot be written: {exc.strerror}") from exc
    say(f"Exported step {checkpoint['step']:,} to {out}: {size}.")
    export_tokenizer(checkpoint, out, say)


def export_tokenizer(checkpoint: Checkpoint, directory: Path, say: Say) -> None:
    """Save the tokenizer beside the weights, where AutoTokenizer finds it.

    If it cannot be loaded or saved, a line says so, and the export stays without it.
    """
    try:
        load_own_tokenizer(checkpoint, say).backend.save_pretrained(directory)
    except (BadInput, OSError) as exc:
        say(f"Without its tokenizer: {exc}.")


@torch.no_grad()
def observe_quantization(model: BitNetQDyT, batch: Batch) -> None:
    """Run one forward in training mode, since only there the modules take readings."""
    model.train()
    diagnostics = Diagnostics(model)
    diagnostics.observe(True)
    model(*batch.inputs)
    diagnostics.observe(False)
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
        write_atomically(path, page.encode())
    except OSError as exc:
        raise BadInput(f"--report {path} cannot be written: {exc.strerror}") from exc
    say(f"Pictures: {path}")


def _losses(found: Evaluation) -> str:
    loss = found.loss.item()
    return f"loss {loss:.4f}, perplexity {perplexity(loss):,.1f}"


def _name(args: CheckpointArgs, checkpoint: Checkpoint) -> str:
    dataset = args.dataset or checkpoint["arguments"]["dataset"]
    return f"Step {checkpoint['step']:,} of run {checkpoint['run_id']} on {dataset} {args.split}"
