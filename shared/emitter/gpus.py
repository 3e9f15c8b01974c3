"""GPUs that a process may use, as CUDA_VISIBLE_DEVICES says, for a run that does not name them."""

from __future__ import annotations

from collections.abc import Mapping

NO_GPU = "none"


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """Return the numbers, UUIDs, beginnings of UUIDs or MIG ids of CUDA_VISIBLE_DEVICES.

    [] where it is not set, and ["none"] where it hides all GPUs. As CUDA does, the list ends
    before the first entry that is none: `0,-1,1` is GPU 0 alone.
    """
    text = environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return []
    gpus: list[str] = []
    for entry in map(str.strip, text.split(",")):
        if not (entry.isdecimal() or entry.startswith(("GPU-", "MIG-"))):
            break
        gpus.append(entry)
    return gpus or [NO_GPU]
