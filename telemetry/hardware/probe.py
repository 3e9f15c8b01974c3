"""Probe: the interface of everything that the sampler reads.

In: nothing; a probe has its source of readings from its constructor.
Out: named values, `group/name_unit` in base units, without the host.
Never: a stand-in such as 0 or -1 for what could not be read; the name is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shared.events import Scalar

Values = dict[str, Scalar]

Report = Callable[[str, str], None]
"""Function that reports a change of state: (level, text). Called from any thread."""


class Probe(Protocol):
    """A source of readings that is read repeatedly. Not thread-safe."""

    @property
    def name(self) -> str:
        """Name of the probe in log lines."""
        ...

    def read(self) -> Values:
        """Take one reading. An exception costs the values of this probe only."""
        ...
