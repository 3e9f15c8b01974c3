"""The part of docs/METRICS.md on the names in /metrics, read from the code that makes them.

The sidecar's own names come from a scrape of a state that has one of everything; those of
readings and of training from the functions and tables that name them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from shared.metric import Metric
from telemetry.hardware import metric_list as hardware
from telemetry.http import COUNTS, Collector, Health
from telemetry.watch.exposition import TRAINING, hardware_name
from telemetry.watch.facts import RunFacts, SinkStatus
from telemetry.watch.latest import Latest, Source

Table = Callable[[Iterable[tuple[str, ...]], tuple[str, ...]], str]
Labels = tuple[str, ...]

HEAD = """\
## In /metrics

Names and units by Prometheus's conventions; `docs/grafana/telemetry.json` is a board of them.
Texts are left out. A reading that is 30 s old is not shown any more.

### The sidecar and its runs
"""
TRAINING_HEAD = """\
### Newest values of runs

Labels are `run_id` and `source`. A name that is not here is a series of `training_value`, with
the recorded name in the label `name`.
"""
HARDWARE_HEAD = """\
### Newest readings

All have the label `host`, those of a GPU `uuid` too.
"""
_PLACE = re.compile(r"<([a-z]+)>")


def prometheus_page(table: Table) -> str:
    """Return the part of the page; table makes a Markdown table of rows and a head."""
    rows = sorted((name, _shown(labels), text) for name, labels, text in sidecar_metrics())
    training = (
        (f"`{name}`", f"`{metric}`", _factor(factor)) for name, (metric, factor) in TRAINING.items()
    )
    return "\n".join(
        (
            HEAD,
            table(((f"`{n}`", labels, text) for n, labels, text in rows), ("name", "labels", "")),
            TRAINING_HEAD,
            table(training, ("recorded", "name", "times")),
            HARDWARE_HEAD,
            table(_hardware_rows(), ("recorded", "name", "labels", "times")),
        )
    )


def sidecar_metrics() -> Iterator[tuple[str, Labels, str]]:
    """Yield name, labels and meaning of each metric that is no reading and no value."""
    alert = {"source": "s", "name": "a", "subject": "", "severity": "error"}
    run = RunFacts("r", is_started=True, alerts=(alert,))
    latest = Latest(runs={"r": {"rank0": Source(values={"own": 1.0}, step=1, at_ns=1)}})
    health = Health(
        counts=dict.fromkeys(COUNTS, 1),
        gaps={("kind", "reason"): 1},
        durable_rows={"r": 1},
        sinks=[SinkStatus("r", "sink", "state", 1, 0, "")],
        runs=(run,),
        latest=latest,
        now_ns=2,
        alerts={"a": 1},
    )
    for family in Collector(lambda: health).collect():
        sample = family.samples[0]
        yield sample.name, tuple(sample.labels), family.documentation


def hardware_metrics() -> Iterator[tuple[Metric, str, Labels, float]]:
    """Yield each reading that is a number, with its name in /metrics, labels and factor."""
    for metric in hardware.ALL.metrics:
        if metric.unit == "text":
            continue
        # A place such as <i> is written as a word while the name is made, which has no brackets.
        found = hardware_name(_PLACE.sub(r"place0\1", metric.name))
        assert found is not None, metric.name
        name, labels, factor = found
        yield metric, re.sub(r"place0([a-z]+?)(?=_|$)", r"<\1>", name), tuple(labels), factor


def _hardware_rows() -> Iterator[tuple[str, ...]]:
    for metric, name, labels, factor in hardware_metrics():
        yield f"`{metric.name}`", f"`{name}`", _shown(labels), _factor(factor)


def _shown(labels: Labels) -> str:
    return ", ".join(f"`{label}`" for label in labels)


def _factor(factor: float) -> str:
    return "" if factor == 1.0 else f"{factor:g}"
