"""How long is a step? Ours against a dense one, and telemetry on against off.

In: sizes, a batch, a number of rounds.
Out: a Markdown table of medians and ratios.
Never: compares figures of two runs. All contenders take turns, a few steps each, so that
what else the machine does at the time falls on all of them; a ratio is the median over
the rounds of the ratio within a round, beside it the quartiles.

    python -m bench.train_step --sizes small base
    python -m bench.train_step --sizes small --telemetry

A step is forward, backward, clip and fused AdamW on batches that are made already.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.dense import DenseEncoder
from shared.ids import new_run_id
from trainer.data.masking import Batch, Masking, mask_for_training
from trainer.model import BitNetQDyT, ModelConfig
from trainer.model.diagnostics.diagnostics import Diagnostics
from trainer.reporting.observer import Observer, RunFacts, open_emitter
from trainer.reporting.progress import Progress
from trainer.reporting.reports import Reading, Reporter
from trainer.reporting.sidecar import PrivateAddress, serve_command, start_sidecar
from trainer.training.device import keep_freed_memory
from trainer.training.processes import Place, Processes
from trainer.training.scalar_copies import ScalarCopies
from trainer.training.step import Stepper

VOCABULARY = 30_522
TOTAL_STEPS = 100_000
# One step of each stage, the last behind QDrop's and the dropout's spans.
STAGE_STEPS = {"warmup": 5_000, "partial_ternary": 20_000, "full_ternary": 90_000}
DIAGNOSTICS_INTERVAL = 500

Step = Callable[[], Any]


class Contender:
    """A model and its optimizer, with one method that takes a step."""

    def __init__(self, model: Any, batches: list[Batch], options: argparse.Namespace) -> None:
        device = torch.device(options.device)
        self.model, self.batches = model.to(device), batches
        precision = torch.bfloat16 if options.bf16 else None
        self.stepper = Stepper(model, device, precision, Processes(Place()))
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.taken = 0

    def step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and gradient norm, on the device."""
        batch = self.batches[self.taken % len(self.batches)]
        self.taken += 1
        loss = self.stepper.accumulate_gradients([batch])
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.stepper.update(self.optimizer)
        return loss, norm


class Listened:
    """The step of a contender with every step's metrics sent to a sidecar of its own."""

    def __init__(self, contender: Contender, reporter: Reporter) -> None:
        self.contender, self.reporter = contender, reporter
        self.copies: ScalarCopies[Reading] = ScalarCopies(contender.stepper.device)

    def step(self) -> None:
        loss, norm = self.contender.step()
        known = {"train/global_step": self.contender.taken, "train/learning_rate": 1e-4}
        reading = Reading("train", self.contender.taken, known)
        self.copies.send(reading, {"train/loss": loss, "train/grad_norm": norm})
        for arrived, numbers in self.copies.arrived():
            self.reporter.report(arrived, numbers)


def take_turns(contenders: dict[str, Step], rounds: int, steps: int, wait: Step) -> dict[str, Any]:
    """Seconds a step of each contender, by round; the first two rounds are not counted.

    Whoever begins a round ends the next one.

    On a CPU they are this process's own, of all its threads: what other programs take of a
    shared machine is not in them.
    """
    clock = time.perf_counter if torch.cuda.is_initialized() else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 2):
        turns = list(contenders.items())
        for name, step in turns if number % 2 else reversed(turns):
            began = clock()
            for _ in range(steps):
                step()
            wait()
            if number > 1:
                seconds[name].append((clock() - began) / steps)
    return seconds


def ratios(seconds: dict[str, list[float]], ours: str, theirs: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile over the rounds."""
    pairs = zip(seconds[ours], seconds[theirs], strict=True)
    low, middle, high = statistics.quantiles((a / b for a, b in pairs), method="inclusive")
    return low, middle, high


def make_batches(options: argparse.Namespace) -> list[Batch]:
    """A few batches of random tokens; nothing in a step depends on which they are."""
    generator = torch.Generator().manual_seed(0)
    masking = Masking.of(VOCABULARY, range(5), 4, 0, 0.15)
    shape = (options.batch_size, options.length)
    rows = [torch.randint(5, VOCABULARY, shape, generator=generator) for _ in range(8)]
    return [mask_for_training(part, masking, generator) for part in rows]


def compare_with_dense(size: str, options: argparse.Namespace) -> None:
    """A row for each stage."""
    config = ModelConfig.for_size(size, VOCABULARY)
    batches = make_batches(options)
    dense = Contender(DenseEncoder(config), batches, options)
    ours = Contender(BitNetQDyT(config), batches, options)
    wait = waiter(options)
    for stage in options.stages:
        ours.model.apply_schedule(STAGE_STEPS[stage], TOTAL_STEPS)
        seconds = take_turns(
            {"dense": dense.step, "ours": ours.step}, options.rounds, options.steps, wait
        )
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        cells = [size, stage, f"{medians['dense'] * 1e3:.0f}", f"{medians['ours'] * 1e3:.0f}"]
        low, middle, high = ratios(seconds, "ours", "dense")
        cells += [f"{middle:.2f}", f"{low:.2f} to {high:.2f}"]
        if options.device != "cpu":
            tokens = options.batch_size * options.length / medians["ours"]
            cells.append(f"{tokens:,.0f} tokens/s, {mfu(ours.model, tokens, options):.1%} MFU")
        print(f"| {' | '.join(cells)} |", flush=True)
    if options.device != "cpu":
        count_syncs(ours)
    measure_diagnostics(size, ours, options)


def mfu(model: nn.Module, tokens_per_second: float, options: argparse.Namespace) -> float:
    """Share of the device's peak: 6 operations a matrix parameter and token, of the blocks."""
    inner = [p.numel() for n, p in model.named_parameters() if "blocks" in n and p.dim() == 2]
    return 6 * sum(inner) * tokens_per_second / (options.peak_tflops * 1e12)


def count_syncs(contender: Contender) -> None:
    """Fifty steps in which torch raises at any call that waits for the GPU."""
    copies: ScalarCopies[int] = ScalarCopies(contender.stepper.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(50):
            loss, norm = contender.step()
            copies.send(number, {"loss": loss, "norm": norm})
            copies.arrived()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    print("\nNo synchronizing call in 50 steps with logging in each.\n")


def measure_diagnostics(size: str, ours: Contender, options: argparse.Namespace) -> None:
    """What a sample of the quantizers' diagnostics adds to its step."""
    copies: ScalarCopies[int] = ScalarCopies(ours.stepper.device)
    diagnostics = Diagnostics(ours.model)

    def observed() -> None:
        diagnostics.observe(True)
        ours.step()
        values = diagnostics.collect()
        for name, histogram in diagnostics.histograms().items():
            values |= {f"{name}/edges": histogram.edges, f"{name}/counts": histogram.counts}
        copies.send(0, values)
        diagnostics.observe(False)
        copies.arrived()

    contenders = {"plain": ours.step, "observed": observed}
    seconds = take_turns(contenders, options.rounds, 1, waiter(options))
    extra = ratios(seconds, "observed", "plain")[1] - 1
    print(
        f"\nDiagnostics and histograms of {size}: {extra:.2f} of a step a sample, "
        f"{extra / DIAGNOSTICS_INTERVAL:.2%} of all steps at the default interval of "
        f"{DIAGNOSTICS_INTERVAL}.\n"
    )


def compare_telemetry(size: str, options: argparse.Namespace) -> None:
    """Metrics of every step to a sidecar with a TensorBoard sink, against none."""
    contender = Contender(
        BitNetQDyT(ModelConfig.for_size(size, VOCABULARY)), make_batches(options), options
    )
    contender.model.apply_schedule(STAGE_STEPS["full_ternary"], TOTAL_STEPS)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address = stack.enter_context(PrivateAddress())
        command = serve_command(address, directory / "telemetry", directory / "spool")
        sidecar = start_sidecar(command, print)
        emitter = open_emitter(address, new_run_id(), 0, directory / "spool", 5.0, print)
        observer = Observer(emitter)
        observer.run_started(RunFacts("bench", size, [], "", "disabled", 0, 1, [], None), {})
        on = Listened(contender, Reporter(observer, Progress(is_silent=True)))
        contenders = {"off": contender.step, "on": on.step}
        seconds = take_turns(contenders, options.rounds, options.steps, waiter(options))
        observer.finished("finished", 0, {})
        recorded = emitter.close()
        if sidecar is not None:
            sidecar.close(print)
    low, middle, high = ratios(seconds, "on", "off")
    print(
        f"\nTelemetry on against off, {size}, metrics in every step, all recorded: {recorded}. "
        f"Ratio {middle:.3f} ({low:.3f} to {high:.3f}), median and quartiles of "
        f"{options.rounds} rounds of {options.steps} steps each.\n"
    )


def waiter(options: argparse.Namespace) -> Step:
    """What makes the clock see the work of a GPU."""
    return (lambda: None) if options.device == "cpu" else torch.cuda.synchronize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["small"])
    parser.add_argument("--stages", nargs="+", default=list(STAGE_STEPS), choices=STAGE_STEPS)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="steps of each in a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--telemetry", action="store_true", help="on against off, nothing else")
    parser.add_argument("--peak_tflops", type=float, default=989.0, help="of the GPU, for MFU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.device == "cpu":
        keep_freed_memory()
    if options.telemetry:
        for size in options.sizes:
            compare_telemetry(size, options)
        return
    print("| size | stage | dense, ms | ours, ms | ratio | quartiles |\n|---|---|---|---|---|---|")
    for size in options.sizes:
        compare_with_dense(size, options)


if __name__ == "__main__":
    main()
