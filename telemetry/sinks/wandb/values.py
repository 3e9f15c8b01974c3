"""Values: configurations, summaries and exit codes in a form that wandb accepts.

In: values in a journal, from any producer.
Out: plain values of bounded depth, under names that wandb accepts.
Never: raises.
"""

from __future__ import annotations

import math
from typing import Any, Final

DEPTH_MAX: Final = 32
"""Levels kept. Python, JSON and protobuf each fail at some depth; the smallest is 100."""

TOO_DEEP: Final = "(nested too deep)"
EMPTY_NAME: Final = "(empty)"
_INT32: Final = range(-(2**31), 2**31)
FAILED: Final = 1


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value that JSON can hold, for any value of a producer's config.

    Parts deeper than DEPTH_MAX become TOO_DEEP; NaN and infinity, which JSON does not
    have, become text; entries of wandb's own name `_wandb` are left out.
    """
    if isinstance(value, dict):
        if depth == DEPTH_MAX:
            return TOO_DEEP
        items = ((str(name), item) for name, item in value.items())
        return {
            name or EMPTY_NAME: plain(item, depth + 1) for name, item in items if name != "_wandb"
        }
    if isinstance(value, list | tuple):
        return TOO_DEEP if depth == DEPTH_MAX else [plain(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)


def exit_code(code: int) -> int:
    """Return an exit code that fits into a signed 32-bit integer, as wandb needs.

    Larger ones, such as Windows' 0xC0000005 for a crash, become FAILED, never 0.
    """
    return code if code in _INT32 else FAILED
