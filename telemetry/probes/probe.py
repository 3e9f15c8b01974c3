"""Probe: the one shape that everything the sampler reads has.

In: nothing; a probe knows where its readings come from.
Out: named values, `group/name_unit` in base units, without the host.
Never: a stand-in such as 0 or -1 for what could not be read; the name is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shared.events import Scalar

Values = dict[str, Scalar]

Report = Callable[[str, str], None]
"""Tells people of a change of state: (level, text). Called from any thread."""


class Probe(Protocol):
    """Something that can be read again and again. Not thread-safe."""

    @property
    def name(self) -> str:
        """What people call it, in log lines."""
        ...

    def read(self) -> Values:
        """One reading. Whatever it raises costs this probe's values, and only those."""
        ...
