"""Layering: who imports whom, where each outside library has its home, and how files read."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections import Counter
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
    "duckdb": ("telemetry/sinks/parquet/", "telemetry/query/"),
    "google_crc32c": ("telemetry/sinks/tensorboard/",),
    "prometheus_client": ("telemetry/http.py", "telemetry/watch/exposition.py"),
    # No process of the sidecar loads it that does not read columns.
    "numpy": (
        "telemetry/views/",
        "telemetry/page/",
        "telemetry/query/",
        "telemetry/sinks/parquet/",
        "trainer/",
    ),
    "psutil": ("telemetry/",),
    "rich": ("telemetry/",),
    "starlette": ("telemetry/page/",),
    "uvicorn": ("telemetry/page/page_server.py",),
    "jinja2": ("telemetry/page/",),
    "plotly": ("telemetry/page/",),
    "textual": ("telemetry/monitor/screen.py",),
    "transformers": ("trainer/",),
    "datasets": ("trainer/",),
}

LAYERS = {
    # What a training script uses: values, and above them the emitter.
    "shared.values": "shared",
    "shared.emitter": "shared shared.values",
    # The journal is below all of the sidecar.
    "telemetry.journal": "shared telemetry.sessions",
    "telemetry.alerts": "shared telemetry.watch",
    "telemetry.watch": "shared telemetry.journal",
    "telemetry.hardware": "shared shared.emitter telemetry.logs",
    "telemetry.ingest": """
        shared shared.values shared.emitter telemetry.journal telemetry.watch telemetry.alerts
        telemetry.exits telemetry.json_files telemetry.run_dir telemetry.run_info
        telemetry.sessions telemetry.supervise.tombstones
    """,
    # A sink reads a journal, and knows neither ingest nor who starts it.
    "telemetry.sinks": """
        shared telemetry.journal telemetry.alerts telemetry.errors telemetry.json_files
        telemetry.recorded telemetry.run_dir
    """,
    "telemetry.sinks.tensorboard": """
        shared telemetry.journal telemetry.sinks telemetry.alerts telemetry.json_files
        telemetry.run_dir telemetry.run_names
    """,
    "telemetry.sinks.parquet": "shared telemetry.journal telemetry.sinks telemetry.run_dir",
    "telemetry.sinks.wandb": """
        shared telemetry.journal telemetry.sinks telemetry.alerts telemetry.json_files
        telemetry.run_dir telemetry.sessions
    """,
    # The supervisor knows of sinks what it needs to start and watch their processes.
    "telemetry.supervise": """
        shared telemetry.journal telemetry.sinks.slot telemetry.sinks.surroundings
        telemetry.sinks.reporter telemetry.hardware telemetry.watch telemetry.errors telemetry.exits
        telemetry.run_dir telemetry.run_info telemetry.summary
    """,
    "telemetry.checks": """
        shared telemetry.alerts telemetry.hardware telemetry.journal telemetry.sinks
        telemetry.sinks.wandb telemetry.config telemetry.datadir telemetry.descriptors
    """,
    "telemetry.commands": """
        shared telemetry.alerts telemetry.hardware.cgroup telemetry.ingest.death
        telemetry.checks telemetry.journal telemetry.sinks telemetry.sinks.wandb
        telemetry.config telemetry.datadir telemetry.errors telemetry.exits
        telemetry.json_files telemetry.logs telemetry.output telemetry.recorded
        telemetry.run_dir telemetry.summary telemetry.supervise telemetry.views
    """,
    "telemetry.views": """
        shared telemetry.journal telemetry.datadir telemetry.errors telemetry.recorded
        telemetry.run_dir telemetry.sessions
    """,
    "telemetry.query": """
        shared telemetry.journal telemetry.sinks.parquet telemetry.views telemetry.errors
        telemetry.output telemetry.run_dir
    """,
    "telemetry.monitor": """
        shared telemetry.commands telemetry.hardware telemetry.journal telemetry.views
        telemetry.config telemetry.datadir telemetry.errors telemetry.run_dir telemetry.summary
    """,
    # A process of its own; the sidecar knows of it only how it is started.
    "telemetry.page": """
        shared telemetry.journal telemetry.views telemetry.monitor.figures telemetry.datadir
        telemetry.errors telemetry.run_dir telemetry.setting_values
    """,
    "trainer.model": "",
    "trainer.model.diagnostics": "trainer.model",
    "trainer.data": "shared trainer.errors trainer.model",
    "trainer.data.assets": "trainer.data",
    "trainer.reporting": """
        shared shared.emitter trainer.args trainer.errors trainer.model
        trainer.model.diagnostics trainer.plan trainer.processes
    """,
    "trainer.training": """
        shared trainer.args trainer.data trainer.errors trainer.model
        trainer.model.diagnostics trainer.plan trainer.processes trainer.reporting
    """,
    "trainer.evaluation": """
        shared trainer.args trainer.data trainer.errors trainer.model
        trainer.model.diagnostics trainer.plan trainer.processes trainer.reporting
        trainer.training
    """,
}
"""The packages and root modules that each package may import besides itself.

The name of a package stands for the modules in it, and not for packages inside it. The modules
at the root of `telemetry/` and `trainer/` that no package names put the packages together.
"""

FILE_LINES_MAX = 300
FUNCTION_LINES_MAX = 60
LONGER_FILES = {"shared.events"}  # one table of types, and the bytes of their one envelope
LONGER_FUNCTIONS: set[tuple[str, str]] = set()
"""Exceptions from the two bounds. To be made fewer, and never more."""

RIDDLE = re.compile(
    r"(what|whether|how|who|so|of|here|nobody|nothing|where|when|which|since|until)\b"
    r"|[^:]*: (what|how|whether|who|where|which|so)\b",
    re.IGNORECASE,
)
"""First words of a docstring that answers a question which nobody can see."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """The names of all that a module imports, at its head or inside functions."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


PRODUCT = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in modules(package)
}
"""Every product module by its name."""


def package_of(module: str) -> str:
    return ".".join(PRODUCT[module].relative_to(ROOT).parent.parts)


def product_imports(module: str) -> set[str]:
    """The product modules that a module imports."""
    found = set()
    for name in imports(PRODUCT[module]):
        while name and name not in PRODUCT:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {""}


def node_of(module: str) -> str:
    """The module's package; a module at the root of a tree stands for itself."""
    package = package_of(module)
    return module if package in PACKAGES else package


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
        for name in tops(path)
        if name in FORBIDDEN[package]
    }

    assert modules(package) and wrong == set()


def test_every_package_has_its_layer():
    """A new one is given its place in the table."""
    packages = {package_of(module) for module in PRODUCT} - set(PACKAGES)

    assert packages == set(LAYERS)


@pytest.mark.parametrize("package", LAYERS)
def test_a_package_imports_only_what_lies_below_it(package):
    """Who wants to know what a package can touch reads its line of the table."""
    allowed = {package, *LAYERS[package].split()}
    wrong = {
        (module, other)
        for module in PRODUCT
        if package_of(module) == package
        for other in product_imports(module)
        if not {other, package_of(other)} & allowed
    }

    assert wrong == set()


def test_no_packages_import_one_another_in_a_circle():
    """Each can be read, and tested, after those below it."""
    graph: dict[str, set[str]] = {}
    for module in PRODUCT:
        others = {node_of(other) for other in product_imports(module)}
        graph.setdefault(node_of(module), set()).update(others - {node_of(module)})

    order = list(graphlib.TopologicalSorter(graph).static_order())

    assert order.index("telemetry.journal") < order.index("telemetry.service")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_files_of_a_tree_have_one_name(package):
    """A name that is read in a traceback or a test says which file it is."""
    names = Counter(path.name for path in modules(package) if not path.name.startswith("__"))

    assert [name for name, count in names.items() if count > 1] == []


def test_files_and_functions_are_of_a_size_that_can_be_read_at_once():
    """A longer one has a second idea in it."""
    files = set()
    functions = set()
    for module, path in PRODUCT.items():
        if len(path.read_text().splitlines()) > FILE_LINES_MAX:
            files.add(module)
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno >= FUNCTION_LINES_MAX:
                    functions.add((module, node.name))

    assert files == LONGER_FILES
    assert functions == LONGER_FUNCTIONS


def test_the_first_line_of_a_docstring_names_its_subject():
    """It is a sentence, and not an answer whose question was deleted."""
    documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module
    riddles = [
        (module, line)
        for module, path in PRODUCT.items()
        for node in ast.walk(tree(path))
        if isinstance(node, documented)
        and RIDDLE.match(line := (ast.get_docstring(node) or "").partition("\n")[0])
    ]

    assert riddles == []


def test_every_module_says_what_it_is():
    """In the docstring that it begins with."""
    assert [name for name, path in PRODUCT.items() if not ast.get_docstring(tree(path))] == []


@pytest.mark.parametrize("library", HOMES)
def test_each_outside_library_has_one_home(library):
    """To replace it is to change one place."""
    users = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in modules(package)
        if library in tops(path)
    ]

    assert [user for user in users if not user.startswith(HOMES[library])] == []


@pytest.mark.parametrize(
    "module",
    [
        "telemetry.monitor.run_panels",
        "telemetry.monitor.screen",
        "telemetry.monitor.watch",
        "telemetry.service",
        "telemetry.cli",
        "telemetry.hardware.sampler",
        "telemetry.commands.launch",
        "telemetry.sinks.runner",
        "telemetry.commands.replay",
        "telemetry.commands.inspect_runs",
        "telemetry.commands.list_runs",
        "telemetry.commands.remove_runs",
    ],
)
def test_the_sidecar_needs_no_torch_and_loads_a_sink_only_where_it_is_used(module):
    """Its image has none, and each process is a small one."""
    loaded = loaded_with(module)

    heavy = {"torch", "trainer", "wandb", "tensorboard", "numpy", "transformers"}
    assert loaded.isdisjoint(heavy | {"starlette", "uvicorn", "jinja2", "plotly"})


@pytest.mark.parametrize("module", ["shared.emitter", "trainer.training.loop", "trainer.run"])
def test_the_trainer_needs_neither_wandb_nor_tensorboard_nor_the_sidecar(module):
    """Training goes on where they are not installed."""
    loaded = loaded_with(module)

    assert loaded.isdisjoint({"wandb", "tensorboard", "telemetry"})


@pytest.mark.parametrize(
    "module",
    [
        "telemetry.sinks.tensorboard.tensorboard_sink",
        "telemetry.sinks.wandb",
        "telemetry.sinks.parquet",
    ],
)
def test_a_sink_needs_no_torch(module):
    """Event files and .wandb files are written without it."""
    assert "torch" not in loaded_with(module)
