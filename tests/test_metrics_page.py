"""The page of metrics is true: what is recorded is on it, and what is on it is recorded."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from docs.prometheus_page import hardware_metrics, sidecar_metrics
from shared.emitter import Emitter
from shared.events import MetricsLogged, RunStarted
from shared.metric import Metric, MetricList
from telemetry import own_metric_list as own
from telemetry.hardware import metric_list as hardware
from telemetry.hardware.gpm import METRICS as GPM
from telemetry.hardware.host import host_probes
from telemetry.http import COUNTS
from telemetry.watch.exposition import TRAINING
from tests.fakes import ManualClock
from tests.telemetry.sidecar_process import SidecarProcess, http_get
from tests.telemetry.waiting import wait_until
from tests.trainer.model.test_encoder import make_batch, make_model
from trainer.model.diagnostics.diagnostics import Diagnostics
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
    quantization = [
        metric.name
        for metric in (*trainer.QUANTIZATION.metrics, *trainer.QUANTIZATION_DETAIL.metrics)
    ]

    assert len(names) == len(set(names))
    assert len(quantization) == len(set(quantization))


def literals(*places: str) -> set[str]:
    """Return the texts in the code of these packages; parts of an f-string become `<>`."""
    found: set[str] = set()
    paths = (path for place in places for path in (ROOT / place).rglob("*.py"))
    for path in (path for path in paths if not path.name.endswith("metric_list.py")):
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


def quantization_names() -> tuple[set[str], set[str]]:
    """Return the names that a model in all of its stages records: of the whole, and of layers."""
    whole: set[str] = set()
    layers: set[str] = set()
    for step in (0, 20, 60):
        model = make_model()
        model.apply_schedule(step, 100)
        diagnostics = Diagnostics(model)
        diagnostics.observe(True)
        for watched in range(9):
            model(*make_batch()).loss.backward()
            diagnostics.watch_codes(watched)
        coarse = {*diagnostics.collect(), *diagnostics.histograms()}
        fine = {*diagnostics.collect(detail=True), *diagnostics.histograms(detail=True)}
        whole |= {name.removeprefix("quant/") for name in coarse}
        layers |= {name.rpartition("/")[2] for name in fine - coarse}
    return whole, layers


def test_what_quantization_records_is_on_the_page_and_nothing_else():
    """Recorded by a real model from its first stage to its last."""
    whole, layers = quantization_names()
    of_whole, of_layers = trainer.QUANTIZATION, trainer.QUANTIZATION_DETAIL

    described = {name: len(of_whole.described(name)) for name in whole}
    in_layers = {
        name: len(of_whole.described(name)) + len(of_layers.described(name)) for name in layers
    }

    assert described == dict.fromkeys(whole, 1)
    assert in_layers == dict.fromkeys(layers, 1)
    assert _unrecorded(of_whole, whole) == _unrecorded(of_layers, layers) == []


def _unrecorded(listed: MetricList, names: set[str]) -> list[str]:
    found = {metric.name for name in names for metric in listed.described(name)}
    return [metric.name for metric in listed.metrics if metric.name not in found]


def test_each_count_of_the_sidecar_has_its_meaning():
    """A new count needs a line in COUNTS, and one that is gone takes its line along."""
    form = re.compile(r"[a-z_]+_total")
    code: set[str] = set()
    for path in (ROOT / "telemetry").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            code |= {text for text in _keys(node) if form.fullmatch(text)}

    assert code == set(COUNTS)


def _keys(node: ast.AST) -> set[str]:
    """Return the names of counts at one place: `counts["…"] += 1`, and REFUSED likewise."""
    match node:
        case ast.AugAssign(target=ast.Subscript(slice=ast.Constant(value=str(name)))):
            return {name}
        case ast.keyword(arg="counts", value=ast.Dict(keys=keys)):
            return {str(key.value) for key in keys if isinstance(key, ast.Constant)}
        case ast.AnnAssign(target=ast.Name(id="REFUSED"), value=ast.Constant(value=str(name))):
            return {name}
    return set()


def test_what_a_sidecar_shows_is_on_the_page(tmp_path):
    """A scrape of a real one, with a run, an alert, a sink and a sampler at work."""
    known = {name for name, _, _ in sidecar_metrics()}
    known |= {metric for metric, _ in TRAINING.values()}
    forms = MetricList([Metric(name, "", "") for _, name, _, _ in hardware_metrics()])
    flags = "--http=127.0.0.1:0", "--sample-hz=10", "--host-run", "--sinks=console"
    with SidecarProcess(tmp_path / "data", *flags) as sidecar:
        (address,) = wait_until(lambda: re.findall(r"http://(127\.0\.0\.1:\d+)", sidecar.log))
        with Emitter(sidecar.endpoint, run_id="r", source="rank0") as emitter:
            emitter.emit(RunStarted(project="p", name="n", host="h"))
            emitter.emit(MetricsLogged(kind="train", step=1, values={"train/loss": 1.0}))
            text = wait_until(lambda: _whole(address))

    names = set(re.findall(r"^([a-z_0-9]+)(?:\{| )", text, re.MULTILINE))

    assert {"training_loss", "hardware_sampler_probe_seconds"} <= names
    assert {n for n in names if n not in known and not forms.described(n)} == set()


def _whole(address: str) -> str:
    text = http_get(address, "/metrics")[1]
    wanted = "training_loss{", "hardware_cpu_utilization_ratio{", "telemetry_sink_row{"
    return text if all(f"\n{name}" in text for name in wanted) else ""
