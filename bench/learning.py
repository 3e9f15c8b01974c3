"""Does the quantized encoder learn? Small character models, side by side.

In: the embedded sample text; which variants, how many steps, which seeds.
Out: a Markdown table, a JSON file with every curve, and a picture of the curves.
Never: takes a figure from anywhere but a run. A variant that was not run has no row.

    python -m bench.learning --only dense,float,ternary --seeds 0,1,2 --output outputs/learning
    python -m bench.learning --list

All variants see the same batches for a seed: lower-case characters in rows of 32, 15 %
of them predicted (80/10/10). Validation is on [MASK] positions of another novel only,
since the tenth that stays visible could be copied. The unigram loss is what a model
reaches that knows how frequent each character is and nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.learning_variants import VARIANTS, Variant
from trainer.data.corpus import load_sample
from trainer.data.masking import Batch, Masking, mask_for_evaluation, mask_for_training
from trainer.model import BitNetQDyT, ModelConfig
from trainer.model.calibration import freeze_group_means, measure_group_means
from trainer.model.schedule import learning_rate

MASK_PROBABILITY = 0.15
RAREST_COUNT = 2_000  # a character that is rarer in 4 million is left out
EVALUATION_ROWS = 512
EVALUATIONS = 12


@dataclass(frozen=True)
class Recipe:
    """How every variant is trained."""

    steps: int = 900
    rows: int = 32
    length: int = 32
    warmup_steps: int = 45
    grad_clip: float = 1.0


@dataclass(frozen=True)
class Characters:
    """Text as ids; shapes: train, validation (N,) int64."""

    train: Tensor
    validation: Tensor
    masking: Masking
    vocabulary: int
    unigram_nats: float


@dataclass(frozen=True)
class Result:
    """One run: validation losses in nats after so many steps."""

    variant: str
    seed: int
    steps: list[int]
    losses: list[float]
    calibrated: float | None
    seconds: float  # wall-clock, of use only on an idle machine


def load_characters() -> Characters:
    """The sample in lower case; paragraphs are joined by spaces."""
    splits = load_sample().splits
    texts = {name: " ".join(splits[name]).lower() for name in ("train", "validation")}
    kept = sorted(c for c in set(texts["train"]) if texts["train"].count(c) >= RAREST_COUNT)
    train, validation = (
        torch.tensor([kept.index(c) for c in texts[name] if c in kept]) for name in texts
    )
    frequencies = torch.bincount(train, minlength=len(kept)).double() / len(train)
    mask_id = len(kept)
    return Characters(
        train=train,
        validation=validation,
        masking=Masking.of(mask_id + 1, [mask_id], mask_id, -1, MASK_PROBABILITY),
        vocabulary=mask_id + 1,
        unigram_nats=-frequencies[validation].log().mean().item(),
    )


def windows(stream: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Rows from random places of a stream: (N,) -> (rows, length)."""
    starts = torch.randint(len(stream) - length, (rows, 1), generator=generator)
    return stream[starts + torch.arange(length)]


def validation_batches(text: Characters, length: int, seed: int) -> list[Batch]:
    """The same rows and masks for every variant and every evaluation."""
    generator = torch.Generator().manual_seed(seed)
    rows = windows(text.validation, EVALUATION_ROWS, length, generator)
    parts = enumerate(rows.split(128))
    return [mask_for_evaluation(part, text.masking, 128 * number) for number, part in parts]


@torch.no_grad()
def evaluate(model: BitNetQDyT, batches: list[Batch]) -> float:
    """Mean nats of a predicted character."""
    model.eval()
    total = sum(model(*batch.inputs).loss.item() * len(batch.predicted) for batch in batches)
    model.train()
    return total / sum(len(batch.predicted) for batch in batches)


def train(variant: Variant, text: Characters, recipe: Recipe, seed: int) -> Result:
    """Train one variant from one seed; the seed decides weights, batches and noise."""
    torch.manual_seed(seed)
    base = ModelConfig.for_size("tiny", text.vocabulary, max_length=recipe.length)
    model = BitNetQDyT(variant.configure(base), seed=seed)
    groups = model.parameter_groups(0.01)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-8)
    generator = torch.Generator().manual_seed(10_000 + seed)
    held_out = validation_batches(text, recipe.length, seed=1)
    steps, losses = [], []
    started = time.perf_counter()
    for step in range(recipe.steps):
        schedule = model.apply_schedule(step, recipe.steps)
        factor = variant.learning_rate * schedule.learning_rate_factor
        set_rate(optimizer, step, recipe, factor)
        rows = windows(text.train, recipe.rows, recipe.length, generator)
        batch = mask_for_training(rows, text.masking, generator)
        model(*batch.inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % math.ceil(recipe.steps / EVALUATIONS) == 0 or step + 1 == recipe.steps:
            steps.append(step + 1)
            losses.append(evaluate(model, held_out))
    calibrated = calibrated_loss(model, text, recipe, held_out)
    seconds = time.perf_counter() - started
    return Result(variant.name, seed, steps, losses, calibrated, seconds)


def set_rate(optimizer: torch.optim.Optimizer, step: int, recipe: Recipe, factor: float) -> None:
    """Warmup and cosine, times factor, the variant's rate in its stage, and the group's scale."""
    rate = learning_rate(
        step,
        base=1.0,
        warmup_steps=recipe.warmup_steps,
        total_steps=recipe.steps,
        kind="cosine",
        factor=factor,
    )
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def calibrated_loss(
    model: BitNetQDyT, text: Characters, recipe: Recipe, held_out: list[Batch]
) -> float | None:
    """The loss with frozen group means, measured on other rows; None without any QDyT."""
    means = measure_group_means(model, validation_batches(text, recipe.length, seed=2))
    if not means:
        return None
    freeze_group_means(model, means)
    loss = evaluate(model, held_out)
    freeze_group_means(model, {})
    return loss


def table(results: list[Result], unigram_nats: float) -> str:
    """Markdown: mean and range over seeds, and against the dense baseline and own float form."""
    finals = {name: [r.losses[-1] for r in results if r.variant == name] for name in VARIANTS}
    means = {name: sum(values) / len(values) for name, values in finals.items() if values}
    lines = [
        "| variant | seeds | nats | lowest to highest | against dense | against float "
        "| calibrated |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, mean in means.items():
        runs = [r for r in results if r.variant == name]
        calibrated = [r.calibrated for r in runs if r.calibrated is not None]
        cells = [
            VARIANTS[name].title,
            ", ".join(str(r.seed) for r in runs),
            f"{mean:.3f}",
            f"{min(finals[name]):.3f} to {max(finals[name]):.3f}",
            _percent(mean, means.get("dense")),
            _percent(mean, means.get("float")),
            f"{sum(calibrated) / len(calibrated):.3f}" if calibrated else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Unigram loss: {unigram_nats:.3f} nats."])


def _percent(value: float, base: float | None) -> str:
    return "" if base is None else f"{100 * (value / base - 1):+.1f} %"


def main() -> None:
    """Run what was asked for, printing each run's loss as it ends."""
    args = parse_arguments()
    if args.list:
        print("\n".join(f"{name:18} {variant.title}" for name, variant in VARIANTS.items()))
        return
    torch.set_num_threads(args.threads)
    recipe = Recipe(args.steps, args.rows, args.length, warmup_steps=args.steps // 20)
    text = load_characters()
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "learning.json"
    saved = [run for earlier in args.earlier for run in json.loads(earlier.read_text())]
    results = [Result(**run) for run in saved]
    for name in args.only:
        for seed in args.seeds:
            results.append(train(VARIANTS[name], text, recipe, seed))
            print(f"{name:18} seed {seed}: {results[-1].losses[-1]:.3f} nats", flush=True)
            path.write_text(json.dumps([asdict(result) for result in results], indent=1))
    print(f"\n{table(results, text.unigram_nats)}")
    if not args.no_picture:
        from bench.learning_picture import draw

        print(draw(results, text.unigram_nats, args.output / "learning.png"))


def parse_arguments() -> argparse.Namespace:
    """Command line; a list is separated by commas."""
    parser = argparse.ArgumentParser(prog="python -m bench.learning", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--only", type=_names, default=list(VARIANTS), metavar="NAME,…", help="'' runs nothing"
    )
    parser.add_argument("--seeds", type=_numbers, default=[0], metavar="N,…")
    recipe = Recipe()
    for name in ("steps", "rows", "length"):
        parser.add_argument(f"--{name}", type=int, default=getattr(recipe, name))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("outputs/learning"))
    help_earlier = "learning.json of other runs of the same recipe, to show them together"
    parser.add_argument("--earlier", type=Path, nargs="*", default=[], help=help_earlier)
    parser.add_argument("--no_picture", action="store_true")
    parser.add_argument("--list", action="store_true", help="name the variants, and stop")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",") if text else []
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no variant {', '.join(unknown)}; see --list")
    return names


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
