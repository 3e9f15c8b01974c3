"""Exposition: latest values and open alerts as metric families for Prometheus.

In: the latest values of runs and hosts, and facts of the open runs.
Out: families with conventional names, base units and a bounded number of series.
Never: makes a metric name from a text of a producer that has not the form of one: such a
value is a series of `training_value`, with its name in a label, which the library escapes.

    recorded                                 metric
    gpu/0/power_watts                        hardware_gpu_power_watts{host,gpu,uuid}
    cpu_percent, cpu/3/percent               hardware_cpu_utilization_ratio{host},
                                             hardware_cpu_core_utilization_ratio{host,core}
    load/1m                                  hardware_load_average{host,window}
    process/<run>/<source>/rss_bytes         hardware_process_rss_bytes{host,run_id,source}
    train/loss                               training_loss{run_id,source}
    anything else of a run                   training_value{run_id,source,name}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from shared.events import Scalar
from shared.ids import SIDECAR
from shared.text import clean
from telemetry.watch.facts import RunFacts, Unrecorded
from telemetry.watch.latest import OWN, Latest, Source

ALERT_TEXT: Final = "1 for each open alert"
SERIES_MAX: Final = 10_000
"""Series of values in one scrape; those above it are counted."""
RUNS_SHOWN_MAX: Final = 256
LABEL_MAX_CHARS: Final = 120

_LABELS: Final = {
    "gpu": ("gpu",),
    "cpu": ("core",),
    "disk": ("device",),
    "network": ("device",),
    "infiniband": ("device", "port"),
    "mig": ("instance",),
    "process": ("run_id", "source"),
    "throttle": ("reason",),
    "load": ("window",),
}
"""Groups of names that have members, with the labels that tell the members apart."""
_TAILLESS: Final = {"load": "average", "throttle": "active"}
"""Groups whose members are values themselves: the last word of their metric."""
_UNSPOKEN: Final = frozenset({"gpu", "port", "instance", "run_id", "source", "reason", "window"})
"""Labels that the metric's name does not repeat: all series of such a name have them."""

TRAINING: Final = {
    "train/loss": ("training_loss", 1.0),
    "train/learning_rate": ("training_learning_rate", 1.0),
    "train/grad_norm": ("training_gradient_norm", 1.0),
    "train/epoch": ("training_epoch", 1.0),
    "train/tokens_per_second": ("training_tokens_per_second", 1.0),
    "train/step_seconds": ("training_step_seconds", 1.0),
    "train/teacher_loss": ("training_teacher_loss", 1.0),
    "val/loss": ("training_validation_loss", 1.0),
    "val/perplexity": ("training_validation_perplexity", 1.0),
    "val/accuracy": ("training_validation_accuracy_ratio", 1.0),
    "quant/zero_ratio": ("training_quantization_zero_ratio", 1.0),
    "quant/plus_ratio": ("training_quantization_plus_ratio", 1.0),
    "quant/minus_ratio": ("training_quantization_minus_ratio", 1.0),
    "torch_gpu_memory_allocated": ("training_torch_memory_allocated_bytes", 1e9),
    "torch_gpu_memory_reserved": ("training_torch_memory_reserved_bytes", 1e9),
}
"""Names that have a metric of their own, with the factor to its base unit."""
_PLAIN: Final = re.compile(r"[a-z][a-z0-9_]*")
_PROBE_TIME: Final = re.compile(r"sampler/probe/([a-z0-9_]+)_seconds")


class Families:
    """Metric families that grow series by series, up to a bound."""

    def __init__(self, series_max: int = SERIES_MAX) -> None:
        self.left_out = 0
        self._room = series_max
        self._families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        self._seen: set[tuple[str, tuple[str, ...]]] = set()

    def add(self, name: str, text: str, labels: dict[str, str], value: float) -> None:
        """Add one series. The same series twice, or one above the bound, is left out."""
        shown = tuple(clean(each, LABEL_MAX_CHARS) for each in labels.values())
        if not self._room or (name, shown) in self._seen:
            self.left_out += 1
            return
        self._room -= 1
        self._seen.add((name, shown))
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        if name not in self._families:
            self._families[name] = kind(name.removesuffix("_total"), text, labels=list(labels))
        self._families[name].add_metric(shown, value)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._families.values())


def families(
    latest: Latest,
    runs: Sequence[RunFacts],
    now_ns: int,
    unrecorded: Iterable[Unrecorded] = (),
) -> Iterator[Metric]:
    """Yield the families of the latest values, and how many are left out."""
    found = Families()
    shown = [run for run in runs if run.is_started and not run.is_ended][:RUNS_SHOWN_MAX]
    _add_runs(found, shown)
    for alert in unrecorded:
        labels = {"run_id": alert.run_id, "source": SIDECAR, **alert._asdict()}
        found.add("telemetry_alert_active", ALERT_TEXT, labels, 1)
    for host, source in latest.hosts.items():
        _add_host(found, host, source)
    for run in shown:
        for name, source in latest.runs.get(run.run_id, {}).items():
            _add_source(found, {"run_id": run.run_id, "source": name}, source, now_ns)
    yield from found
    yield GaugeMetricFamily(
        "telemetry_latest_left_out_values",
        "Values that are not shown here because there are too many, or two have one name",
        value=latest.left_out + found.left_out,
    )


def _add_runs(found: Families, runs: Iterable[RunFacts]) -> None:
    for run in runs:
        labels = {"run_id": run.run_id, "project": run.project, "name": run.name}
        found.add("training_run_info", "1 for each run that has not ended", labels, 1)
        for alert in run.alerts:
            labels = {"run_id": run.run_id, **{k: str(alert.get(k)) for k in _ALERT_LABELS}}
            found.add("telemetry_alert_active", ALERT_TEXT, labels, 1)


_ALERT_LABELS: Final = ("source", "name", "subject", "severity")


def _add_host(found: Families, host: str, source: Source) -> None:
    values = source.values
    for name, value in values.items():
        if isinstance(value, str):
            continue
        placed = hardware_name(name)
        if placed is None:
            found.left_out += 1
            continue
        metric, labels, factor = placed
        labels = {"host": host, **labels}
        if "gpu" in labels:
            labels["uuid"] = _text(values.get(f"gpu/{labels['gpu']}/uuid"))
        found.add(metric, f"{name.rpartition('/')[2]} of this machine", labels, value * factor)


def _text(value: Scalar | None) -> str:
    return value if isinstance(value, str) else ""


def hardware_name(name: str) -> tuple[str, dict[str, str], float] | None:
    """Return the metric of a reading, its labels, and the factor to the base unit.

    None where the name has characters that no metric may have.
    """
    if (found := _PROBE_TIME.fullmatch(name)) is not None:
        return "hardware_sampler_probe_seconds", {"probe": found[1]}, 1.0
    words, labels, rest = ["hardware"], dict[str, str](), name.split("/")
    while rest:
        group, rest = rest[0], rest[1:]
        wanted = _LABELS.get(group, ())
        tail = 0 if group in _TAILLESS else 1
        if wanted and len(rest) >= len(wanted) + tail:
            labels.update(zip(wanted, rest, strict=False))
            rest = rest[len(wanted) :]
            words += [group, *(label for label in wanted if label not in _UNSPOKEN)]
            words += [_TAILLESS[group]] if not rest and group in _TAILLESS else []
        else:
            words.append(group)
    metric, factor = _in_base_units("_".join(words))
    return (metric, labels, factor) if _PLAIN.fullmatch(metric) else None


def _in_base_units(name: str) -> tuple[str, float]:
    """Return a name by Prometheus's conventions, and the factor for its values."""
    if name.endswith("energy_joules"):
        return f"{name}_total", 1.0
    for ending, becomes in _RATIOS.items():
        if name.endswith(ending):
            return name.removesuffix(ending) + becomes, 0.01
    return name, 1.0


_RATIOS: Final = {
    "cpu_percent": "cpu_utilization_ratio",
    "core_percent": "core_utilization_ratio",
    "memory_percent": "memory_used_ratio",
    "_percent": "_ratio",
}


def _add_source(found: Families, labels: dict[str, str], source: Source, now_ns: int) -> None:
    age_s = (now_ns - source.at_ns) / 1e9
    if source.at_ns:
        text = "Time since the newest values of a source"
        found.add("training_values_age_seconds", text, labels, max(0.0, age_s))
    if source.step is not None:
        found.add("training_step", "Optimizer step of the newest values", labels, source.step)
    for name, value in source.values.items():
        # An emitter's own counts are not of the training; the step has a metric already.
        if isinstance(value, str) or name.startswith(OWN) or name == "train/global_step":
            continue
        known = TRAINING.get(name)
        if known is None:
            text = "Newest value of each other name that a run records"
            found.add("training_value", text, {**labels, "name": name}, value)
        else:
            found.add(known[0], f"Newest {name}", labels, value * known[1])
