"""GPUs of a run: found among those of a host, by what the run says of them.

In: what a producer named: UUIDs, their beginnings, MIG ids or numbers, as CUDA_VISIBLE_DEVICES
may hold them; and the readings of a host.
Out: NVML's numbers of those GPUs, in the run's order.
Never: a GPU for a name that fits several, or none.

A number counts in the order of NVML, which is that of CUDA with CUDA_DEVICE_ORDER=PCI_BUS_ID
and on machines whose GPUs are all of one kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_PREFIXES = ("GPU-", "MIG-GPU-", "MIG-")


def gpu_indices(values: Mapping[str, Any], named: Iterable[str]) -> list[str]:
    """Return the numbers of the GPUs that a run named; a divided GPU counts for its instances."""
    by_uuid = _by_uuid(values)
    indices = (_index(name, by_uuid) for name in named)
    return list(dict.fromkeys(index for index in indices if index is not None))


def _by_uuid(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the number of each GPU by its UUID, and by those of its MIG instances."""
    return {
        _bare(uuid): name.split("/")[1]
        for name, uuid in values.items()
        if name.startswith("gpu/") and name.endswith("/uuid") and isinstance(uuid, str)
    }


def _index(name: str, by_uuid: Mapping[str, str]) -> str | None:
    if name.isdecimal():
        index = str(int(name))
        return index if index in by_uuid.values() else None
    wanted = _bare(name)
    if not wanted:
        return None
    if wanted in by_uuid:
        return by_uuid[wanted]
    found = {index for uuid, index in by_uuid.items() if uuid.startswith(wanted)}
    return found.pop() if len(found) == 1 else None


def _bare(uuid: str) -> str:
    """Return a UUID without the kind before it: torch tells that of a MIG instance as a GPU's."""
    for prefix in _PREFIXES:
        uuid = uuid.removeprefix(prefix)
    return uuid.lower()
