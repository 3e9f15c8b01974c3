"""Device: what this process makes current before it computes, and in which precision.

In: the device of a run or of a checkpoint's evaluation.
Out: settings of torch for the whole process, or for the length of a context.
Never: chooses the device, or waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch


def use_device(device: torch.device) -> None:
    """Make a GPU the current one of this process, also where it is the only process.

    Streams, events, pinned memory and kernels of libraries that are not told a device are
    those of the current one, which is GPU 0 until it is set.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def allow_tf32(device: torch.device) -> None:
    """Let matrix products of float32 on a GPU round their factors to TF32.

    Training is several times as fast so, and its gradients are noisier than 10 bits of a
    mantissa anyway. NVIDIA_TF32_OVERRIDE=0 keeps it off.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "tf32"


def record_event(device: torch.device, timed: bool = False) -> Any:
    """Put an event behind what is queued on a GPU, in the stream that work for it goes to.

    Without a stream to record on, an event takes that of the *current* device: where this is
    another GPU, the event has passed at once, and what it stands for is not done.
    """
    event = cast(Any, torch.cuda.Event)(enable_timing=timed)
    event.record(torch.cuda.current_stream(device))
    return event


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute matrix products in whole float32 within the context."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
