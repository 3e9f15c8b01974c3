"""Values of strangers as wandb takes them: configurations, summaries, exit codes.

In: what a journal holds, from any producer.
Out: plain values of bounded depth under names that wandb has.
Never: raises, or goes deeper than it has to.
"""

from __future__ import annotations

import math
from typing import Any, Final

DEPTH_MAX: Final = 32
"""Python, JSON and protobuf each have a depth at which they give up: the least is 100."""

TOO_DEEP: Final = "(nested too deep)"
EMPTY_NAME: Final = "(empty)"
_INT32: Final = range(-(2**31), 2**31)
FAILED: Final = 1


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON can have it, whatever a producer put into its config.

    What is nested deeper than DEPTH_MAX becomes a word that says so; NaN and infinity,
    which JSON does not have, become text; wandb's own name `_wandb` is left out.
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
    """Return an exit code that wandb can hold, of 32 bits and with a sign.

    Windows has larger ones, 0xC0000005 for a crash: they become FAILED, never 0.
    """
    return code if code in _INT32 else FAILED
