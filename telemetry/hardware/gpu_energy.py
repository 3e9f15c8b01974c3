"""GPU energy: joules that each GPU has used since the sampler started.

In: the readings of a GPU, with the driver's own counter and the UUID.
Out: `energy_since_start_joules`.
Never: a step back: after a reload of the driver, whose counter begins again, it goes on.
"""

from __future__ import annotations

from telemetry.hardware.probe import Values


class EnergySinceStart:
    """Energy of all GPUs by UUID, over sessions of the driver. Not thread-safe."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._totals: dict[str, float] = {}

    def since_start(self, index: int, values: Values) -> Values:
        """Return the energy of a GPU since its first reading; empty if it has no counter."""
        counter = values.get("energy_joules")
        if not isinstance(counter, float):
            return {}
        # By UUID, since a driver may number the GPUs in another way when it comes back.
        gpu = str(values.get("uuid", index))
        before = self._counters.get(gpu, counter)
        # A counter that went back began anew: what it shows was used since then.
        added = counter - before if counter >= before else counter
        self._counters[gpu] = counter
        self._totals[gpu] = self._totals.get(gpu, 0.0) + added
        return {"energy_since_start_joules": self._totals[gpu]}
