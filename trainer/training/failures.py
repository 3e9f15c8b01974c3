"""Explanation of errors whose cause the user can do something about.

In: an error, and the arguments of the run.
Out: an error with advice, if memory ran out or another process is gone.
Never: tries again with less memory; that would be another run than the user asked for.
"""

from __future__ import annotations

import torch

from trainer.args import TrainArgs
from trainer.errors import OutOfMemory, PeerLost, TrainingFailed
from trainer.training.processes import is_peer_failure

_CPU_TEXTS = ("can't allocate memory", "not enough memory")


def explain(
    error: BaseException, args: TrainArgs, row_tokens: int, world_size: int
) -> BaseException:
    """Return an error with a sentence for the user if the cause is known, else the error."""
    if isinstance(error, TrainingFailed):
        return error
    if world_size > 1 and is_peer_failure(error):
        return PeerLost(
            "another process of this run has ended or does not answer; its own messages tell "
            "the cause. Go on with --resume_from latest"
        )
    return explain_out_of_memory(error, args, row_tokens) or error


def explain_out_of_memory(
    error: BaseException, args: TrainArgs, row_tokens: int
) -> OutOfMemory | None:
    """Return an error that names the flags to lower; None if memory is not the cause."""
    if not _is_out_of_memory(error):
        return None
    if args.batch_size > 1:
        # A divisor of batch_size, so that a step keeps the rows that it has.
        less = next(n for n in range(args.batch_size // 2, 0, -1) if args.batch_size % n == 0)
        accumulation = args.batch_size * args.gradient_accumulation_steps // less
        lower = (
            f"lower --batch_size from {args.batch_size}, for example --batch_size {less} "
            f"--gradient_accumulation_steps {accumulation} for the same step"
        )
    else:
        lower = f"lower --max_length from {row_tokens}, or take a smaller --model_size"
    return OutOfMemory(
        f"out of memory; {lower}, and go on with --resume_from latest if there is one"
    )


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # On a CPU torch raises a plain RuntimeError; only its text tells that memory is the cause.
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_TEXTS)
