"""The device that a process computes on, and torch's settings for it.

In: the name that --device takes.
Out: a device that exists; settings of torch for the process, or for the length of a context.
Never: waits for the device.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from trainer.errors import BadInput
from trainer.training.processes import Place

# From malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

_LARGEST_INT = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20
# The largest value that glibc accepts. Larger blocks are mapped, and unmapped, each time.
_MMAP_THRESHOLD_BYTES = 32 * 2**20


def resolve_device(name: str, fp16: bool, place: Place) -> torch.device:
    """Return the device that --device names; each of several processes has its own GPU.

    That is the GPU whose number is the process's local rank.

    Raises:
        BadInput: there is no such device, or it can't train in fp16.
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
    """Make a GPU the current one of this process.

    Streams, events, pinned memory and libraries that are given no device use the current
    one, which is GPU 0 until it is set.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # `cuda` without a number is refused


def allow_tf32(device: torch.device) -> None:
    """Let float32 matrix products on a GPU round their factors to TF32.

    Training becomes several times as fast, and its gradients have more noise than the
    rounding to 10 bits of mantissa adds. NVIDIA_TF32_OVERRIDE=0 turns it off.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "tf32"


def keep_freed_memory() -> bool:
    """Make the C library keep the memory that one step frees for the next; False without glibc.

    For training on a CPU; on an accelerator torch keeps freed memory by itself. By default
    glibc returns freed memory at the top of its heap to the kernel, and each step then has
    page faults for its temporaries: a fifth of the time of a step of the small size.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES),
        (_M_TRIM_THRESHOLD, _LARGEST_INT),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
    )
    return all(mallopt(*setting) for setting in settings)


def record_event(device: torch.device, timed: bool = False) -> Any:
    """Record an event behind the work that is queued in a GPU's current stream.

    The stream is named because an event otherwise uses that of the *current* device. If that
    is another GPU, the event passes at once, before the work is done.
    """
    event = cast(Any, torch.cuda.Event)(enable_timing=timed)
    event.record(torch.cuda.current_stream(device))
    return event


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute matrix products in full float32, without TF32, within the context."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def gpu_uuids(device: torch.device) -> list[str]:
    """Return the UUID of the GPU in use as NVML writes it, in a list; [] on a CPU."""
    if device.type != "cuda":
        return []
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return [f"GPU-{uuid}"] if uuid else []
