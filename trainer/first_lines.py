"""The first lines of a run at the terminal: what is trained, where, and by which schedule.

In: Prepared, and the size of the model.
Out: sentences.
Never: decides anything; the schedule is that of model/schedule.py.
"""

from __future__ import annotations

from trainer.model import ModelConfig
from trainer.model.precision import stage_label
from trainer.model.schedule import FULL_TERNARY_LR_FACTOR, resolve_steps
from trainer.model.spans import FULL_LENGTH_STEPS
from trainer.plan import Plan
from trainer.prepare import Prepared


def first_lines(prepared: Prepared, parameters: int) -> list[str]:
    """Describe the run in sentences, which are printed before its first step."""
    plan, device, world_size = prepared.plan, prepared.device, prepared.processes.world_size
    together = f" in {world_size} processes" if world_size > 1 else ""
    sentences = [
        f"Run {prepared.run_id}: {prepared.args.model_size} with {parameters:,} "
        f"parameters on {device}{together}, {plan.total_steps:,} steps of "
        f"{plan.rows_per_step} rows, {plan.rows_per_epoch:,} rows an epoch."
    ]
    if device.type == "cuda":
        sentences.append(
            "In training, factors of float32 products are rounded to TF32 (not with "
            "NVIDIA_TF32_OVERRIDE=0); in evaluation they are not."
        )
    return sentences + describe_schedule(prepared.model_config, plan)


def describe_schedule(config: ModelConfig, plan: Plan) -> list[str]:
    """Describe the schedule in sentences."""
    total = plan.total_steps
    first, second = round(config.stage1 * total), round(config.stage2 * total)
    parts = [f"learning rate rises to step {plan.warmup_steps:,}, {plan.scheduler} from there"]
    parts.append(f"times {FULL_TERNARY_LR_FACTOR} from step {second:,}")
    if config.weight_mode != "float":
        parts.append(
            f"int8 weights before step {first:,}, ternary in the top layers from there and in "
            f"all from step {second:,}"
        )
    ends = _ends(config, total, first)
    parts += [f"{what} to step {end:,}" for what, end in ends.items()]
    sentences = [f"Schedule: {'; '.join(parts)}."]
    unfinished = [what for what, end in ends.items() if end > total]
    if unfinished:
        sentences.append(
            f"Not over at this run's last step {total:,}: {', '.join(unfinished)}; "
            "their spans were given in steps."
        )
    if total < FULL_LENGTH_STEPS:
        sentences.append(
            f"Default spans are those of a run of {FULL_LENGTH_STEPS:,} steps, in "
            f"proportion to this run's {total:,}."
        )
    return sentences


def _ends(config: ModelConfig, total: int, first_ternary: int) -> dict[str, int]:
    """Return the step at which each part of the schedule ends; parts not in use are left out."""
    ends = {}
    if "qdyt" in (config.block_norm, config.embed_norm, config.final_norm):
        ends["ramp of alpha"] = resolve_steps(config.qdyt_warmup_steps, total)
    if stage_label(config, "full_ternary") != "float" and config.qdrop_prob_initial:
        ends["QDrop"] = resolve_steps(config.qdrop_anneal_steps, total)
    if config.weight_mode != "float" and config.ternary_dropout:
        span = resolve_steps(config.ternary_dropout_steps, total)
        ends["ternary dropout"] = first_ternary + span
    return ends
