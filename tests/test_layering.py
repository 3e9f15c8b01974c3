"""Layering: who imports whom, and where each outside library has its home."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("shared", "telemetry", "trainer")

FORBIDDEN = {
    "shared": {"telemetry", "trainer", "tests"},
    "telemetry": {"trainer", "tests"},
    "trainer": {"telemetry", "tests"},
}

HOMES = {
    "torch": ("trainer/",),
    "zmq": (
        "shared/emitter/connection.py",
        "telemetry/ingest/gateway.py",
        "telemetry/ingest/connections.py",
    ),
    "pynvml": ("telemetry/hardware/nvml.py",),
    "wandb": ("telemetry/sinks/wandb/",),
    "tensorboard": ("telemetry/sinks/tensorboard/",),
    "google_crc32c": ("telemetry/sinks/tensorboard/",),
    "prometheus_client": ("telemetry/http.py", "telemetry/watch/exposition.py"),
    "psutil": ("telemetry/",),
    "rich": ("telemetry/",),
    "textual": ("telemetry/monitor/screen.py",),
    "transformers": ("trainer/",),
    "datasets": ("trainer/",),
}

ROOT_OF_TRAINER = ("trainer.args", "trainer.errors", "trainer.plan")
"""Values that every package of the trainer may use."""

TRAINER_LAYERS = {
    "trainer/model": ("trainer.model",),
    "trainer/data": ("trainer.data", "trainer.model", "trainer.errors"),
    # Of training, only the exchanges between the processes of a run, one of which reports.
    "trainer/reporting": (
        "trainer.reporting",
        "trainer.model",
        "trainer.training.processes",
        *ROOT_OF_TRAINER,
    ),
    "trainer/training": (
        "trainer.training",
        "trainer.model",
        "trainer.data",
        "trainer.reporting",
        *ROOT_OF_TRAINER,
    ),
    "trainer/evaluation": (
        "trainer.evaluation",
        "trainer.training",
        "trainer.model",
        "trainer.data",
        "trainer.reporting",
        *ROOT_OF_TRAINER,
    ),
}
"""What a package of the trainer may import, lowest first; the root puts them together."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """The top names of all that a module imports, at its head or inside functions."""
    return frozenset(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    yield from (name.partition(".")[0] for name in full_imports(path))


def full_imports(path: Path) -> Iterator[str]:
    """The modules that a module imports, by their whole names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def loaded_with(module: str) -> set[str]:
    """What is in memory after the import of a module, in a process of its own."""
    code = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    """Trainer and telemetry know shared, and not each other; shared knows neither."""
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in modules(package)
        for name in imports(path)
        if name in FORBIDDEN[package]
    }

    assert modules(package) and wrong == set()


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return module in packages or module.startswith(tuple(f"{package}." for package in packages))


@pytest.mark.parametrize("package", TRAINER_LAYERS)
def test_the_packages_of_the_trainer_lie_one_above_another(package):
    """The model knows no training; training knows neither the commands nor how it was built."""
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in modules(package)
        for name in full_imports(path)
        if is_within(name, ("trainer",)) and not is_within(name, TRAINER_LAYERS[package])
    }

    assert modules(package) and wrong == set()


def test_the_model_does_not_know_its_diagnostics():
    """A module may measure itself (readings.py); who collects the readings is above it."""
    paths = [path for path in modules("trainer/model") if path.parent.name != "diagnostics"]
    knowing = [
        path.name
        for path in paths
        if any(is_within(name, ("trainer.model.diagnostics",)) for name in full_imports(path))
    ]

    assert paths and knowing == []


@pytest.mark.parametrize("library", HOMES)
def test_each_outside_library_has_one_home(library):
    """To replace it is to change one place."""
    users = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in modules(package)
        if library in imports(path)
    ]

    assert [user for user in users if not user.startswith(HOMES[library])] == []


@pytest.mark.parametrize(
    "module",
    [
        "telemetry.service",
        "telemetry.cli",
        "telemetry.hardware.sampler",
        "telemetry.commands.launch",
        "telemetry.sinks.runner",
        "telemetry.commands.replay",
        "telemetry.commands.inspect",
    ],
)
def test_the_sidecar_needs_no_torch_and_loads_a_sink_only_where_it_is_used(module):
    """Its image has none, and each process is a small one."""
    loaded = loaded_with(module)

    assert loaded.isdisjoint({"torch", "trainer", "wandb", "tensorboard", "numpy", "transformers"})


@pytest.mark.parametrize("module", ["shared.emitter", "trainer.training.loop", "trainer.run"])
def test_the_trainer_needs_neither_wandb_nor_tensorboard_nor_the_sidecar(module):
    """Training goes on where they are not installed."""
    loaded = loaded_with(module)

    assert loaded.isdisjoint({"wandb", "tensorboard", "telemetry"})


@pytest.mark.parametrize(
    "module", ["telemetry.sinks.tensorboard.tensorboard_sink", "telemetry.sinks.wandb"]
)
def test_a_sink_needs_no_torch(module):
    """Event files and .wandb files are written without it."""
    assert "torch" not in loaded_with(module)
