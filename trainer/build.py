"""Building of a run's parts: model, optimizer, batches, teacher, and the loop that uses them.

In: Prepared.
Out: a Training that is ready to run, at the position of its checkpoint if there is one.
Never: reads the command line or the environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import torch

from trainer.data.batches import TrainingBatches, evaluation_batches, load_batches, usable_workers
from trainer.data.masking import Batch
from trainer.facts import checkpoint_facts, describe_model
from trainer.first_lines import first_lines
from trainer.model import BitNetQDyT
from trainer.model.teacher import AveragedTeacher, Teacher
from trainer.prepare import Prepared
from trainer.reporting.observer import Observer
from trainer.reporting.progress import Progress
from trainer.reporting.reports import Reporter
from trainer.training.checkpoint_writer import CheckpointWriter
from trainer.training.device import keep_freed_memory
from trainer.training.distillation import AVERAGED, Distillation, TeacherDistillation
from trainer.training.loop import Training
from trainer.training.random_states import seed_noise
from trainer.training.step import Stepper
from trainer.training.stop import StopRequest

PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def build_training(
    prepared: Prepared, observer: Observer, progress: Progress, stop: StopRequest
) -> Training:
    """Build the model and everything that trains it, and load the checkpoint if there is one."""
    plan, processes = prepared.plan, prepared.processes
    model = build_model(prepared)
    model_facts = describe_model(model, prepared.model_config)
    observer.config_updated(model_facts)
    for sentence in first_lines(prepared, model_facts["total_parameters"]):
        progress.say(sentence)
    optimizer = make_optimizer(model, prepared.args.learning_rate, prepared.args.weight_decay)
    # From here on each process has random noise of its own.
    seed_noise(prepared.args.seed, processes.rank)
    batches_from = training_batches(prepared, progress)
    reporter = Reporter(observer, progress, processes.rank)
    stepper = Stepper(model, prepared.device, PRECISIONS[plan.precision], processes)
    distillation = make_distillation(prepared, model)
    writer = CheckpointWriter(
        facts=checkpoint_facts(prepared),
        stepper=stepper,
        optimizer=optimizer,
        distillation=distillation,
        checkpoints=prepared.checkpoints,
        reporter=reporter,
    )
    training = Training(
        plan=plan,
        stepper=stepper,
        optimizer=optimizer,
        distillation=distillation,
        batches_from=batches_from,
        validation=lambda: held_out_batches(prepared, "validation"),
        reporter=reporter,
        writer=writer,
        stop=stop,
    )
    # The state of the checkpoint.
    if prepared.checkpoint is not None:
        training.load(prepared.checkpoint, prepared.checkpoint_path)
        if prepared.args.teacher == AVERAGED and not prepared.checkpoint["teacher"]:
            progress.say("The checkpoint has no averaged teacher: it begins as the model is now.")
    return training


def build_model(prepared: Prepared) -> BitNetQDyT:
    """Build the encoder on the run's device; its initial weights are the same in all processes."""
    torch.manual_seed(prepared.args.seed)
    if prepared.device.type == "cpu":
        keep_freed_memory()
    return BitNetQDyT(prepared.model_config, seed=prepared.args.seed).to(prepared.device)


def make_optimizer(
    model: BitNetQDyT, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Build AdamW over the parameter groups of the model."""
    return torch.optim.AdamW(
        model.parameter_groups(weight_decay),
        lr=learning_rate,
        betas=(0.9, 0.98),
        eps=1e-8,
        # With a gradient scaler, an optimizer that is not fused reads a flag from the GPU
        # in each step, and waits for it.
        fused=True,
    )


def training_batches(prepared: Prepared, progress: Progress) -> Callable[[int], Iterator[Batch]]:
    """Return a function that gives the training batches of this process from a position on."""
    # More workers than cores slow each other down; the batches are the same.
    num_workers = min(prepared.args.num_workers, len(os.sched_getaffinity(0)))
    num_workers = usable_workers(num_workers, progress.say)
    source = TrainingBatches(
        prepared.rows["train"],
        prepared.plan.batch_size,
        prepared.masking,
        prepared.args.seed,
        prepared.processes.rank,
        prepared.processes.world_size,
    )
    on_gpu = prepared.device.type == "cuda"
    return lambda position: load_batches(source, position, num_workers, on_gpu)


def held_out_batches(prepared: Prepared, split: str) -> Iterator[Batch]:
    """Return the batches of this process in one evaluation of a split."""
    return evaluation_batches(
        prepared.rows[split],
        prepared.args.batch_size,
        prepared.masking,
        prepared.args.eval_batches,
        prepared.processes.rank,
        prepared.processes.world_size,
    )


def make_distillation(prepared: Prepared, model: BitNetQDyT) -> Distillation:
    """Build the teacher that --teacher names, or a Distillation without one."""
    args = prepared.args
    if args.teacher is None:
        return Distillation()
    if prepared.teacher is None:
        teacher: Teacher = AveragedTeacher(model)
    else:
        teacher = Teacher(prepared.teacher.to(prepared.device))
    return TeacherDistillation(model, teacher, args.teacher_temperature, args.teacher_weight)
