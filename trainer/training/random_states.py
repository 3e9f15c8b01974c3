"""The states of the random generators that training may draw from, as plain values.

In: the generators of this process, or saved states.
Out: a dict that JSON takes, or generators in the saved states.
Never: touches the generators of the data, which follow from seed and position alone.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor


def random_states() -> dict[str, Any]:
    """Return the states of all generators of this process."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state())
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(internal), gauss],
        "numpy": [keys.tolist(), position, has_gauss, cached],
        "torch": _to_text(torch.get_rng_state()),
        "cuda": [_to_text(state) for state in gpus],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set all generators to saved states; those of GPUs only if their number is the same."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_from_text(states["torch"]))
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_from_text(state) for state in states["cuda"]])


def seed_noise(seed: int, rank: int) -> None:
    """Seed torch's noise by the rank; the first process keeps the generator as it is."""
    if rank:
        state = np.random.SeedSequence((seed, 4, rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0] >> np.uint64(1)))


def _to_text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _from_text(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
