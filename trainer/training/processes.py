"""Communication between the processes of one run, with the same calls for one process.

In: the place that torchrun gave this process.
Out: sums over all processes, and decisions that all of them take at the same step.
Never: makes a step wait for the device. Decisions travel between the hosts, beside the
gradients, and are read one step late.

When a process dies its connections break, so the next exchange of the others fails at once.
A process that hangs makes the others fail after TIMEOUT.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.errors import BadInput

TIMEOUT = datetime.timedelta(minutes=10)
"""Limit of one exchange; writing a checkpoint, during which the others wait, is shorter."""
PREPARATION_TIMEOUT = datetime.timedelta(hours=1)
"""Limit of the wait while the first process of a host tokenizes."""


@dataclass(frozen=True)
class Place:
    """The position of a process in its run.

    rank is its number in the run and local_rank that on its host; node is the host's number.
    All count from 0.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    node: int = 0


def is_first(rank: int) -> bool:
    """True for the rank of the process that reports for its whole run and writes its files."""
    return rank == 0


def read_place(environ: Mapping[str, str]) -> Place:
    """Read the place that torchrun gave this process, or that of a single process.

    Raises:
        BadInput: WORLD_SIZE is above 1 and the other variables of torchrun are missing.
    """
    names = {"rank": "RANK", "world_size": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
    if environ.get("WORLD_SIZE", "1") == "1":
        return Place()
    try:
        values = {field: int(environ[name]) for field, name in names.items()}
        return Place(**values, node=int(environ.get("GROUP_RANK", "0")))
    except (KeyError, ValueError) as exc:
        raise BadInput(
            f"WORLD_SIZE is {environ['WORLD_SIZE']} but {exc} is not set as torchrun does it; "
            "start several processes with torchrun --nproc_per_node N -m trainer …"
        ) from exc


class Processes:
    """The exchanges of a run; this base class is for a run of one process."""

    def __init__(self, place: Place) -> None:
        self.rank, self.world_size, self.place = place.rank, place.world_size, place

    @property
    def is_first(self) -> bool:
        """True for the process of rank 0, which reports for the whole run."""
        return is_first(self.rank)

    def share(self, values: Sequence[Any]) -> list[Any]:
        """Return the values of the first process, in all processes."""
        return list(values)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes by rank in the first process, elsewhere []."""
        return [value]

    def first_goes_first(self) -> AbstractContextManager[None]:
        """Return a context that the first process of each host leaves before others enter it."""
        return nullcontext()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model to call in training; its backward averages gradients over processes."""
        return model

    def no_sync(self, network: nn.Module) -> AbstractContextManager[object]:
        """Return a context in which backward does not exchange gradients; a later one does."""
        return nullcontext()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place and on its device."""
        return tensor

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace small tensors of one dtype by their means over all processes."""

    def agree_to_stop(self, is_requested: bool, work_s: float) -> bool:
        """True if any process has requested a stop; one step late, at the same step in all.

        work_s is the time in seconds of this process's own part of the last step.
        """
        return is_requested

    def any(self, flag: bool) -> bool:
        """True if flag is true in any process. Waits for all of them."""
        return flag

    def take_work_seconds(self) -> list[float]:
        """Return the mean work_s of each process since the last call; [] for one process."""
        return []

    def wait_for_others(self, key: str, timeout_s: float) -> None:
        """Wait in the first process until all others have called this with the same key.

        Returns after timeout_s even if some have not. Returns at once in the other processes.
        """

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        pass


class SeveralProcesses(Processes):
    """Processes that torchrun has started: gloo between CPUs, nccl between GPUs."""

    def __init__(self, place: Place, device: torch.device) -> None:
        super().__init__(place)
        self.device = device
        self._pending: tuple[Any, Tensor] | None = None
        self._work = torch.zeros(place.world_size, dtype=torch.float64)
        self._steps = 0

    def __enter__(self) -> SeveralProcesses:
        on_gpu = self.device.type == "cuda"
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
        # A group of its own for values of the hosts: in the queue of the gradients, an
        # exchange would wait for the device.
        self._hosts = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self._store = dist.distributed_c10d._get_default_store()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # After a failure the other processes may be gone, and closing the group would wait.
        if kind is None:
            self._settle()
            dist.destroy_process_group()

    def share(self, values: Sequence[Any]) -> list[Any]:
        shared = list(values)
        dist.broadcast_object_list(shared, src=0, group=self._hosts)
        return shared

    def gather(self, value: Any) -> list[Any]:
        found: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, found, dst=0, group=self._hosts)
        return found or []

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        key = f"prepared/{self.place.node}"
        if self.place.local_rank == 0:
            yield
            self._store.set(key, "")
        else:
            self._store.wait([key], PREPARATION_TIMEOUT)
            yield

    def wrap(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(
            model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            # Buffers are not copied from rank 0. The ranges among them are averaged in
            # mean_, because each process has seen other data.
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
        )

    def no_sync(self, network: nn.Module) -> AbstractContextManager[object]:
        assert isinstance(network, DistributedDataParallel)
        context: AbstractContextManager[object] = network.no_sync()
        return context

    def sum_(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        if not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        means = torch.split(flat / self.world_size, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def agree_to_stop(self, is_requested: bool, work_s: float) -> bool:
        is_agreed = self._settle()
        said = torch.zeros(1 + self.world_size, dtype=torch.float64)
        said[0], said[1 + self.rank] = float(is_requested), work_s
        work = dist.all_reduce(said, group=self._hosts, async_op=True)
        self._pending = (work, said)
        return is_agreed

    def any(self, flag: bool) -> bool:
        total = torch.tensor([float(flag)])
        dist.all_reduce(total, group=self._hosts)
        return total.item() > 0

    def take_work_seconds(self) -> list[float]:
        means: list[float] = (self._work / max(1, self._steps)).tolist()
        self._work.zero_()
        self._steps = 0
        return means

    def wait_for_others(self, key: str, timeout_s: float) -> None:
        keys = [f"{key}/{rank}" for rank in range(1, self.world_size)]
        # A process that does not answer in time is dead or late, and is not waited for.
        with suppress(RuntimeError):
            if self.is_first:
                self._store.wait(keys, datetime.timedelta(seconds=timeout_s))
            else:
                self._store.set(keys[self.rank - 1], "")

    def _settle(self) -> bool:
        """Read the exchange of the step before; False if there was none."""
        if self._pending is None:
            return False
        work, said = self._pending
        self._pending = None
        work.wait()
        self._work += said[1:]
        self._steps += 1
        return bool(said[0] > 0)


def make_processes(place: Place, device: torch.device) -> Processes:
    """Build the object through which the processes of this run communicate."""
    return Processes(place) if place.world_size == 1 else SeveralProcesses(place, device)


def is_peer_failure(error: BaseException) -> bool:
    """True if an error means that another process has ended or does not answer.

    gloo raises a plain RuntimeError, which is recognized by file names in its text.
    """
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in text or "Connection closed by peer" in text)
    )
