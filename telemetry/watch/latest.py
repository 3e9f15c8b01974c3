"""Latest values: the newest value of each name, of every run and every machine.

In: the events of frames, in their order.
Out: the newest values, by run and source, and by host.
Never: more than the bounds below; names above them are left out and counted.

Values of a machine are kept once, whatever number of runs records them. Texts are kept as
well (a stage, a GPU's UUID), up to TEXT_MAX_CHARS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from shared.events import MetricsLogged, Scalar
from shared.ids import host_of
from telemetry.watch.feed import Fed

RUNS_MAX: Final = 256
HOSTS_MAX: Final = 64
SOURCES_MAX: Final = 1_024
"""Sources of one run: ranks and workers."""
NAMES_MAX: Final = 2_000
"""Names of one run or one host."""
TOTAL_MAX: Final = 50_000
"""Names of all runs and hosts."""
TEXT_MAX_CHARS: Final = 200
HOST_STALE_NS: Final = 30_000_000_000
"""A reading that is older is not shown any more: what is missing is missing. Longer than
the longest time between two samples, 20 s."""

OWN: Final = "telemetry/"
"""Prefix of an emitter's own counts."""


@dataclass
class Source:
    """The newest values of one source; step is the highest that came with any of them."""

    session: str = ""
    values: dict[str, Scalar] = field(default_factory=dict)
    step: int | None = None
    at_ns: int = 0
    """Monotonic time of its newest values, without the emitter's own counts."""
    seen_ns: dict[str, int] = field(default_factory=dict)
    """Of a host: monotonic time of each reading. One that does not come any more is dropped."""


@dataclass
class Latest:
    """The newest values of all runs and hosts. Not thread-safe: the watching thread owns it."""

    runs: dict[str, dict[str, Source]] = field(default_factory=dict)
    hosts: dict[str, Source] = field(default_factory=dict)
    left_out: int = 0
    """Values that were not kept because there are too many names."""
    names_max: int = NAMES_MAX
    total_max: int = TOTAL_MAX
    _total: int = 0

    def take(self, frames: Iterable[Fed], now_ns: int) -> None:
        """Take in frames that came until now."""
        for fed in frames:
            if metrics := [e for e in fed.events if isinstance(e, MetricsLogged)]:
                self._take(fed, metrics, now_ns)

    def keep_only(self, run_ids: Iterable[str], now_ns: int) -> None:
        """Forget runs that are not open any more, and hosts that say nothing."""
        kept = set(run_ids)
        for run_id in self.runs.keys() - kept:
            self._total -= sum(len(source.values) for source in self.runs.pop(run_id).values())
        stale = [h for h, s in self.hosts.items() if now_ns - s.at_ns > HOST_STALE_NS]
        for host in stale:
            self._total -= len(self.hosts.pop(host).values)
        for source in self.hosts.values():
            gone = [n for n, at_ns in source.seen_ns.items() if now_ns - at_ns > HOST_STALE_NS]
            for name in gone:
                del source.seen_ns[name], source.values[name]
            self._total -= len(gone)

    def copy(self) -> Latest:
        """Return the newest values as they are now, which no later event changes."""
        return Latest(
            runs={run: _copied(sources) for run, sources in self.runs.items()},
            hosts=_copied(self.hosts),
            left_out=self.left_out,
        )

    def _take(self, fed: Fed, metrics: Sequence[MetricsLogged], now_ns: int) -> None:
        host = host_of(fed.source)
        source = self._host(host) if host else self._source(fed.run_id, fed.source)
        if source is None:
            self.left_out += sum(len(event.values) for event in metrics)
            return
        if source.session != fed.session:
            # A new start: what only the former one said is not the present any more.
            self._total -= len(source.values)
            source.session, source.values, source.step = fed.session, {}, None
            source.seen_ns = {}
        # Of a frame's values of one name only the last is of interest.
        values: dict[str, Scalar] = {}
        for event in metrics:
            values.update(event.values)
        if left_out := self._put(source.values, values):
            self.left_out += sum(len(left_out & event.values.keys()) for event in metrics)
        if host:
            source.seen_ns.update(dict.fromkeys(source.values.keys() & values.keys(), now_ns))
        steps = [event.step for event in metrics if event.step is not None]
        if steps:
            source.step = max(*steps, source.step or steps[0])
        if not is_own(values):
            source.at_ns = now_ns

    def _put(self, kept: dict[str, Scalar], values: Mapping[str, Scalar]) -> set[str]:
        """Keep values, and return the names of those for which there is no room."""
        left_out: set[str] = set()
        for name, value in values.items():
            if isinstance(value, str) and len(value) > TEXT_MAX_CHARS:
                left_out.add(name)
            elif name in kept:
                kept[name] = value
            elif len(kept) < self.names_max and self._total < self.total_max:
                kept[name] = value
                self._total += 1
            else:
                left_out.add(name)
        return left_out

    def _source(self, run_id: str, name: str) -> Source | None:
        if run_id not in self.runs and len(self.runs) >= RUNS_MAX:
            return None
        sources = self.runs.setdefault(run_id, {})
        if name not in sources and len(sources) >= SOURCES_MAX:
            return None
        return sources.setdefault(name, Source())

    def _host(self, host: str) -> Source | None:
        if host not in self.hosts and len(self.hosts) >= HOSTS_MAX:
            return None
        return self.hosts.setdefault(host, Source())


def is_own(names: Iterable[str]) -> bool:
    """Return True if an emitter says nothing here but its own counts."""
    # Asked of every row: a generator would cost three times as much as the first name does.
    for name in names:  # noqa: SIM110
        if not name.startswith(OWN):
            return False
    return True


def _copied(sources: Mapping[str, Source]) -> dict[str, Source]:
    return {
        name: Source(source.session, dict(source.values), source.step, source.at_ns)
        for name, source in sources.items()
    }
