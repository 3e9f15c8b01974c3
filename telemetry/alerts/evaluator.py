"""Evaluator: applies the rules of alerts to what is known now.

In: frames, the latest values, and the facts of runs, sinks and the disk.
Out: verdicts.
Never: waits, or reads anything itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Final

from shared.events import MetricsLogged, Scalar
from shared.ids import MAIN_SOURCE
from shared.text import clean
from telemetry.alerts.rules import Rule, Rules, is_number
from telemetry.alerts.training import VALUE_GAPS, TrainingWatch
from telemetry.alerts.verdicts import HOST, Key, Verdict
from telemetry.watch.facts import RunFacts, Situation
from telemetry.watch.feed import Fed
from telemetry.watch.latest import Latest

AWAY: Final = frozenset({"unavailable", "rejected", "crashed", "killed"})
"""States of a sink in which it takes nothing."""
_NEAR: Final = (
    ("memory", "memory_percent", None),
    ("cgroup/memory", "cgroup/memory_used_bytes", "cgroup/memory_limit_bytes"),
)
"""Subject, name of a reading, and that of its limit; a reading in % has none."""


class Evaluator:
    """All rules, and what they remember of each run. Not thread-safe."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._training: dict[str, TrainingWatch] = {}
        self._sink_rows: dict[tuple[str, str], tuple[int, int]] = {}
        """Row of each sink, and the time in ns since when it stands there."""

    def see(self, frames: Iterable[Fed], now_ns: int) -> None:
        """Take in the metrics of the runs' main sources."""
        for fed in frames:
            if fed.source == MAIN_SOURCE:
                metrics = [e for e in fed.events if isinstance(e, MetricsLogged)]
                watch = self._training.get(fed.run_id)
                if watch is None or watch.session != fed.session:
                    watch = self._training[fed.run_id] = TrainingWatch(fed.session)
                watch.see(metrics, now_ns)

    def verdicts(self, situation: Situation, latest: Latest, now_ns: int) -> Iterator[Verdict]:
        """Yield what each rule says now, where it has evidence."""
        live = {run.run_id: run for run in situation.runs if run.is_started and not run.is_ended}
        self._training = {run: w for run, w in self._training.items() if run in live}
        for run in live.values():
            if not run.is_host:
                yield from self._of_trainer(run, now_ns)
                yield from self._own(run.run_id, latest)
        yield from self._of_sinks(situation, live, now_ns)
        yield from self._of_machine(latest)
        yield from self._of_disk(situation.free_bytes)

    # --- a trainer

    def _of_trainer(self, run: RunFacts, now_ns: int) -> Iterator[Verdict]:
        watch = self._training.get(run.run_id)
        if rule := self._rules.get("trainer_silent"):
            yield self._silent(rule, run, watch, now_ns)
        if watch is not None:
            yield from watch.verdicts(run.run_id, MAIN_SOURCE, self._rules)

    def _silent(
        self, rule: Rule, run: RunFacts, watch: TrainingWatch | None, now_ns: int
    ) -> Verdict:
        key = Key(run.run_id, rule.name, MAIN_SOURCE)
        if run.finish_status is not None:
            return Verdict(key, False)
        if run.silent_s > rule.number("unheard_s"):
            text = f"nothing is heard of the trainer since {run.silent_s:.0f} s: it may be dead"
            return Verdict(key, True, text, run.silent_s, rule.severity)
        if watch is None or not watch.at_ns:
            return Verdict(key, False)
        still_s = (now_ns - watch.at_ns) / 1e9
        patience_s = max(rule.number("after_s"), VALUE_GAPS * watch.longest_gap_ns / 1e9)
        text = f"the trainer lives, but has logged nothing for {still_s:.0f} s: it may hang"
        return Verdict(key, still_s > patience_s, text, still_s, rule.severity)

    # --- rules of the user's own

    def _own(self, run_id: str, latest: Latest) -> Iterator[Verdict]:
        for rule in self._rules.own:
            for source, found in latest.runs.get(run_id, {}).items():
                for name, value in found.values.items():
                    if fnmatchcase(name, rule.metric):
                        subject = name if source == MAIN_SOURCE else f"{source} {name}"
                        yield from _bounded(rule, Key(run_id, rule.name, clean(subject)), value)

    # --- sinks

    def _of_sinks(
        self, situation: Situation, live: dict[str, RunFacts], now_ns: int
    ) -> Iterator[Verdict]:
        rows, self._sink_rows = self._sink_rows, {}
        for sink in situation.sinks:
            run = live.get(sink.run_id)
            if run is None:
                continue
            place = sink.run_id, sink.sink
            row, since_ns = rows.get(place, (-1, now_ns))
            self._sink_rows[place] = (sink.row, now_ns if row != sink.row else since_ns)
            behind = run.durable_row - sink.row
            still_s = (now_ns - self._sink_rows[place][1]) / 1e9
            subject = f"sink/{sink.sink}"
            if rule := self._rules.get("sink_away"):
                key = Key(sink.run_id, rule.name, subject)
                text = f"sink {sink.sink} takes nothing ({sink.state}): {clean(sink.detail, 300)}"
                is_bad = sink.state in AWAY
                yield Verdict(key, is_bad, text, None, rule.severity, rule.number("for_s"))
            if rule := self._rules.get("sink_behind"):
                key = Key(sink.run_id, rule.name, subject)
                # Either far behind, or at one row while there are others.
                is_far = behind > rule.number("rows")
                is_bad = is_far or (behind > 0 and still_s > rule.number("for_s"))
                text = f"sink {sink.sink} is {behind:,} rows behind, at one row for {still_s:.0f} s"
                for_s = rule.number("for_s") if is_far else 0.0
                yield Verdict(key, is_bad, text, behind, rule.severity, for_s)

    # --- the machine

    def _of_machine(self, latest: Latest) -> Iterator[Verdict]:
        for host, found in latest.hosts.items():
            if rule := self._rules.get("memory_near_limit"):
                for subject, name, limit in _NEAR:
                    share = _share(found.values, name, limit)
                    yield from _near(rule, host, subject, share)
            if rule := self._rules.get("gpu_memory_near_limit"):
                for name in found.values:
                    if name.startswith("gpu/") and name.endswith("/uuid"):
                        gpu = name.removesuffix("/uuid")
                        place = f"{gpu}/memory_used_bytes", f"{gpu}/memory_total_bytes"
                        yield from _near(rule, host, gpu, _share(found.values, *place))
            for rule in self._rules.own:
                for name, value in found.values.items():
                    if fnmatchcase(name, rule.metric) or fnmatchcase(
                        f"hw/{host}/{name}", rule.metric
                    ):
                        key = Key(HOST, rule.name, clean(f"{host} {name}"))
                        yield from _bounded(rule, key, value)

    def _of_disk(self, free_bytes: int | None) -> Iterator[Verdict]:
        rule = self._rules.get("disk_nearly_full")
        if rule is not None and free_bytes is not None:
            text = f"{free_bytes / 1e9:.2f} GB free where runs are recorded"
            key = Key(HOST, rule.name, "disk")
            is_bad = free_bytes < rule.number("free_bytes")
            yield Verdict(key, is_bad, text, free_bytes, rule.severity)


def _share(values: dict[str, Scalar], name: str, limit: str | None) -> float | None:
    """Return the share of a limit that is used; None where a reading is missing."""
    used, most = values.get(name), 100.0 if limit is None else values.get(limit)
    if not is_number(used) or not is_number(most) or not most:
        return None
    return float(used) / float(most)  # type: ignore[arg-type]


def _near(rule: Rule, host: str, subject: str, share: float | None) -> Iterator[Verdict]:
    if share is not None:
        text = f"{host}: {100 * share:.1f} % of the memory of {subject} is in use"
        key = Key(HOST, rule.name, f"{host} {subject}")
        is_bad = share >= rule.number("ratio")
        yield Verdict(key, is_bad, text, share, rule.severity, rule.number("for_s"))


def _bounded(rule: Rule, key: Key, value: Scalar) -> Iterator[Verdict]:
    """Yield the verdict of a rule of the user's own; NaN is neither above nor below."""
    if isinstance(value, str):
        return
    if "above" in rule.numbers:
        is_bad, bound = value > rule.number("above"), f"above {rule.number('above'):g}"
    else:
        is_bad, bound = value < rule.number("below"), f"below {rule.number('below'):g}"
    text = f"{key.subject} is {value:g}, {bound}"
    yield Verdict(key, is_bad, text, value, rule.severity, rule.number("for_s"))
