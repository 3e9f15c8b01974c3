"""Energy: joules that the GPUs of a run have used, for each step and for each 1,000 tokens.

In: the rows of a journal: which GPUs each rank named, their counters, and the steps.
Out: `train/energy_joules`, `train/joules_per_step` and `train/joules_per_1000_tokens`.
Never: the energy of a GPU that the run has not named, or a ratio over less than 10 s: the
counters are sampled, so a short interval would mostly show when.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from shared.events import HARDWARE, TRAIN, Event, MetricsLogged, RunStarted, Scalar
from shared.ids import MAIN_SOURCE, host_of, sanitized_host
from telemetry.journal.gpus import gpu_indices

TOKENS_PER_SECOND: Final = "train/tokens_per_second"
INTERVAL_NS: Final = 10_000_000_000
HOSTS_MAX: Final = 256


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """The row that ratios are counted from, and what came since: tokens, and the last row."""

    session: str
    step: int
    mono_ns: int
    joules: float
    tokens: float
    last_mono_ns: int


class RunEnergy(msgspec.Struct, frozen=True):
    """Energy of a run's GPUs as of a row. Immutable."""

    named: dict[str, list[str]] = {}
    """GPUs that ranks have named, by host."""
    counters: dict[str, float] = {}
    """The last reading of each of the run's GPUs, by UUID."""
    joules: float | None = None
    mark: Mark | None = None
    newest: dict[str, float] = {}
    """Values to show with the row that was taken in last."""

    def after(self, source: str, session: str, mono_ns: int, event: Event | None) -> RunEnergy:
        """Return the energy as of this row; self if it says nothing of it."""
        if isinstance(event, RunStarted):
            return self._with_gpus(event)
        if not isinstance(event, MetricsLogged):
            return self
        if event.kind == HARDWARE and (host := host_of(source)):
            return self._with_counters(host, event.values)
        if event.kind == TRAIN and source == MAIN_SOURCE and event.step is not None:
            return self._with_step(session, mono_ns, event.step, event.values)
        return self

    def _with_gpus(self, event: RunStarted) -> RunEnergy:
        host = sanitized_host(event.host) if event.host else ""
        if (
            not host
            or not event.gpu_uuids
            or (host not in self.named and len(self.named) >= HOSTS_MAX)
        ):
            return self
        names = list(dict.fromkeys([*self.named.get(host, []), *event.gpu_uuids]))
        return msgspec.structs.replace(self, named={**self.named, host: names[:64]})

    def _with_counters(self, host: str, values: Mapping[str, Any]) -> RunEnergy:
        named = self.named.get(host)
        if not named:
            return self
        counters, joules = dict(self.counters), self.joules
        for index in gpu_indices(values, named):
            counter = values.get(f"gpu/{index}/energy_joules")
            if not isinstance(counter, float):
                continue
            uuid = str(values.get(f"gpu/{index}/uuid"))
            before = counters.get(uuid, counter)
            # A counter that went back began anew, with its driver.
            added = counter - before if counter >= before else counter
            counters[uuid], joules = counter, (joules or 0.0) + added
        return msgspec.structs.replace(self, counters=counters, joules=joules)

    def _with_step(
        self, session: str, mono_ns: int, step: int, values: Mapping[str, Scalar]
    ) -> RunEnergy:
        if self.joules is None:
            return self
        mark = self.mark
        if mark is None or mark.session != session or step <= mark.step:
            first = Mark(session, step, mono_ns, self.joules, 0.0, mono_ns)
            return msgspec.structs.replace(
                self, mark=first, newest={"train/energy_joules": self.joules}
            )
        speed = values.get(TOKENS_PER_SECOND)
        speed = float(speed) if isinstance(speed, int | float) else 0.0
        tokens = mark.tokens + speed * max(0, mono_ns - mark.last_mono_ns) / 1e9
        newest = {"train/energy_joules": self.joules}
        if mono_ns - mark.mono_ns >= INTERVAL_NS:
            used = self.joules - mark.joules
            newest["train/joules_per_step"] = used / (step - mark.step)
            if tokens > 0:
                newest["train/joules_per_1000_tokens"] = 1000 * used / tokens
            mark = Mark(session, step, mono_ns, self.joules, 0.0, mono_ns)
        else:
            mark = msgspec.structs.replace(mark, tokens=tokens, last_mono_ns=mono_ns)
        return msgspec.structs.replace(self, mark=mark, newest=newest)
