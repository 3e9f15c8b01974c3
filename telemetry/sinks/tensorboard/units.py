"""Units: hardware values for TensorBoard, sorted behind training and in readable units.

In: the hardware values of a row, with the names that every sink knows.
Out: the values to chart, and the sampler's own counts.

    every other sink                             here
    cpu_percent                                  ~hw/cpu_percent
    hw/<host>/memory/used_bytes                  ~hw/<host>/memory/used_gib
    hw/<host>/disk/read_bytes_per_second         ~hw/<host>/disk/read_mib_per_second
    hw/<host>/cpu/frequency_hertz                ~hw/<host>/cpu/frequency_ghz
    hw/<host>/gpu/0/energy_joules                ~hw/<host>/gpu/0/energy_kwh
    hw/<host>/cpu/<core>/percent                 only on request
    hw/<host>/sampler/…                          telemetry/<host>/sampler/…
    hw/elapsed_seconds                           the step

TensorBoard sorts charts by name and shows large numbers as powers of ten: `~`
comes after every letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from shared.events import Scalar
from telemetry.journal.rows import ELAPSED

GROUP: Final = "~hw/"
OWN_PREFIX: Final = "telemetry/"
_CORE: Final = re.compile(r"hw/[^/]+/cpu/\d+/percent")
_SAMPLER: Final = re.compile(r"hw/([^/]+)/(sampler/.*)")
# In this order: the longest matching ending comes first.
_UNITS: Final = (
    ("_bytes_per_second", "_mib_per_second", 1024.0**2),
    ("_bytes", "_gib", 1024.0**3),
    ("_hertz", "_ghz", 1e9),
    ("_joules", "_kwh", 3.6e6),
)


class Shown(NamedTuple):
    """A name in TensorBoard, and the divisor of its values."""

    name: str
    divisor: float = 1.0


def shown_hardware(values: Mapping[str, Scalar], *, has_cores: bool) -> dict[str, Scalar]:
    """Return the values to chart. has_cores: include those of each processor core."""
    shown: dict[str, Scalar] = {}
    for name, value in values.items():
        if name == ELAPSED or (not has_cores and _is_core(name)):
            continue
        new_name, divisor = _shown(name)
        shown[new_name] = value if divisor == 1.0 or isinstance(value, str) else value / divisor
    return shown


@lru_cache(maxsize=4096)
def _is_core(name: str) -> bool:
    return _CORE.fullmatch(name) is not None


@lru_cache(maxsize=4096)
def _shown(name: str) -> Shown:
    own = _SAMPLER.fullmatch(name)
    if own:
        return Shown(f"{OWN_PREFIX}{own[1]}/{own[2]}")
    if not name.startswith("hw/"):
        return Shown(GROUP + name)
    name = GROUP + name.removeprefix("hw/")
    for end, new_end, divisor in _UNITS:
        if name.endswith(end):
            return Shown(name.removesuffix(end) + new_end, divisor)
    return Shown(name)
