"""Figures: names of values that screens know, and numbers in the form that people read.

In: values by their recorded names and units.
Out: short texts with a unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from shared.events import Scalar

_BINARY: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_LOSSES: Final = ("train/loss", "loss", "train_loss", "training_loss")
MISSING: Final = "-"


def loss_name(names: Iterable[str]) -> str:
    """Return the name under which a run records its training loss, or ""."""
    known = set(names)
    for name in _LOSSES:
        if name in known:
            return name
    others = sorted(
        name
        for name in known
        if name.endswith("loss") and not name.startswith(("val", "eval", "test"))
    )
    return others[0] if others else ""


def number_text(value: float | None, digits: int = 4) -> str:
    """Return a number in about `digits` significant digits."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 10**digits:
        return f"{int(value)}"
    return f"{value:.{digits}g}"


def count_text(value: float | None) -> str:
    """Return a count or a rate with k, M or G."""
    if value is None or not math.isfinite(value):
        return MISSING if value is None else str(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scaled = value / (1e3 if unit == "k" else limit)
            return f"{scaled:.3g}{unit}"
    return f"{value:.0f}" if abs(value) >= 10 or value == 0 else f"{value:.2g}"


def bytes_text(value: float | None) -> str:
    """Return a number of bytes in KiB, MiB, GiB…"""
    if value is None or not math.isfinite(value):
        return MISSING
    for unit in _BINARY[:-1]:
        if abs(value) < 1024:
            return (
                f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 100 else f"{value:.1f} {unit}"
            )
        value /= 1024
    return f"{value:.1f} {_BINARY[-1]}"


def duration_text(seconds: float | None) -> str:
    """Return a time in its two largest units, as in 2 d 5 h or 3 min 20 s."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return MISSING
    whole = round(seconds)
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def as_float(values: Mapping[str, Scalar], name: str) -> float | None:
    """Return the value of a name as a float, None where there is none."""
    value = values.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None  # type: ignore[arg-type]


def devices(names: Iterable[str], group: str) -> list[str]:
    """Return the devices named in `<group>/<device>/<value>`, in their order."""
    parts = [name.split("/") for name in names if name.startswith(f"{group}/")]
    found = {words[1] for words in parts if len(words) >= 3}

    def order(device: str) -> tuple[bool, int, str]:
        return not device.isdigit(), int(device) if device.isdigit() else 0, device

    return sorted(found, key=order)
