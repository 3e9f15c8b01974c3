"""Device: which one a process computes on, and how torch is set for it.

In: the device that was asked for.
Out: a device that exists; settings of torch for the process, or for the length of a context.
Never: waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from trainer.errors import BadInput
from trainer.processes import Place


def resolve_device(name: str, fp16: bool, place: Place) -> torch.device:
    """The device that --device means; of several processes each has the GPU of its number.

    Raises:
        BadInput: there is none of that name, or it has no fp16 to train with.
    """
    has_gpu = torch.cuda.is_available()
    chosen = ("cuda" if has_gpu else "cpu") if name == "auto" else name
    try:
        device = torch.device(chosen)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise BadInput(f"--device {name} is none of auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and place.world_size > 1:
        if ":" in name:
            raise BadInput(
                f"--device {name} is one GPU for {place.world_size} processes; give --device cuda"
            )
        device = torch.device("cuda", place.local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise BadInput(
            f"--device {name}: {device} is meant, and torch finds {count} GPUs here; give "
            "another, or cpu"
        )
    if fp16 and device.type == "cpu":
        raise BadInput(
            "--fp16 needs a GPU, and this run is on the CPU; leave it out, or give --bf16, "
            "which works here too"
        )
    return device


def use_device(device: torch.device) -> None:
    """Make a GPU the current one of this process, also where it is the only process.

    Streams, events, pinned memory and kernels of libraries that are not told a device are
    those of the current one, which is GPU 0 until it is set.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # it refuses a GPU without a number


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


def gpu_uuids(device: torch.device) -> list[str]:
    """The UUID of the GPU in use, as NVML writes it; empty on a CPU."""
    if device.type != "cuda":
        return []
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return [f"GPU-{uuid}"] if uuid else []
