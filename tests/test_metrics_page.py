"""The page of metrics is true: what is recorded is on it, and what is on it is recorded."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from shared.metric import Metric, MetricList
from telemetry import metric_list as own
from telemetry.hardware import metric_list as hardware
from telemetry.hardware.gpm import METRICS as GPM
from telemetry.hardware.host import host_probes
from tests.fakes import ManualClock
from trainer.reporting import metric_list as trainer

ROOT = Path(__file__).parent.parent
ALL = MetricList(
    (
        *trainer.TRAINING.metrics,
        *own.OWN.metrics,
        *own.DERIVED.metrics,
        *hardware.ALL.metrics,
    )
)


def test_a_place_in_a_name_stands_for_one_part_of_it():
    """`gpu/<i>/uuid` is not `gpu/0/mig/1/uuid`."""
    metrics = MetricList([Metric("gpu/<i>/uuid", "text", "NVML"), Metric("load/1m", "", "")])

    assert [m.name for m in metrics.described("gpu/12/uuid")] == ["gpu/<i>/uuid"]
    assert metrics.described("gpu/0/mig/1/uuid") == []
    assert metrics.described("load/1mm") == []


def test_each_name_is_on_the_page_once():
    """A second line for a name would contradict the first some day."""
    names = [metric.name for metric in ALL.metrics]
    quantization = [metric.name for metric in trainer.QUANTIZATION.metrics]

    assert len(names) == len(set(names))
    assert len(quantization) == len(set(quantization))


def literals(*places: str) -> set[str]:
    """Return the texts in the code of these packages; parts of an f-string become `<>`."""
    found: set[str] = set()
    paths = (path for place in places for path in (ROOT / place).rglob("*.py"))
    for path in (path for path in paths if path.name != "metric_list.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "<>" for v in node.values)
                found.add("".join(map(str, parts)))
    return found


def test_every_name_of_training_in_the_code_is_on_the_page():
    """A metric that is added needs its line."""
    form = re.compile(r"(train|val|rank)/[a-z_<>/]*[a-z>]|torch_gpu_memory_[a-z]+")
    listed = {re.sub(r"<[^>]*>", "<>", metric.name) for metric in trainer.TRAINING.metrics}

    code = {text for text in literals("trainer") if form.fullmatch(text)}

    assert code - listed == set()


def test_every_name_of_training_on_the_page_is_in_the_code():
    """A metric that is renamed takes its line along."""
    code = literals("trainer/training", "trainer/reporting", "trainer/evaluation", "trainer/model")

    for metric in trainer.TRAINING.metrics:
        last = metric.name.rpartition("/")[2]
        assert any(last in text for text in code), metric.name


def test_what_the_host_records_is_on_the_page():
    """Read on this very machine, twice, so that rates are there."""
    clock = ManualClock()
    probes = host_probes(clock)
    for probe in probes:
        probe.read()
    clock.advance(1)

    names = {name for probe in probes for name in probe.read()}

    assert names
    assert {name: len(hardware.ALL.described(name)) for name in names} == dict.fromkeys(names, 1)


def test_the_readings_of_gpm_are_on_the_page():
    """Of the whole GPU, and of each MIG instance."""
    for name in GPM.values():
        assert hardware.GPUS.described(f"gpu/0/{name}")
        assert hardware.GPUS.described(f"gpu/0/mig/2/{name}")
