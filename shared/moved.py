"""Old import paths: modules that moved into packages are found under their earlier names.

In: an import of a name such as `shared.spool` or `telemetry.retention`.
Out: the module at its present place, with a `DeprecationWarning` that names it.

For scripts that were written against the flat layout. Nothing in this project uses them.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Final

PACKAGES: Final = {
    "shared": ("emitter", "values"),
    "telemetry": ("ingest", "supervise", "hardware", "commands", "journal"),
    "trainer": ("data", "training", "reporting", "evaluation", "model"),
    "trainer.model": ("diagnostics",),
}
"""The packages into which the modules of a flat package went."""

RENAMED: Final = {
    "shared.outgoing": "shared.emitter.stream",
    "shared.conversation": "shared.emitter.peers",
    "shared.leftout": "shared.values.left_out",
    "telemetry.files": "telemetry.json_files",
    "telemetry.hostrun": "telemetry.ingest.host_run",
    "telemetry.quarantine": "telemetry.ingest.refusals",
    "telemetry.spools": "telemetry.ingest.orphan_spools",
    "telemetry.sinkprocess": "telemetry.supervise.sink_process",
    "telemetry.samplerprocess": "telemetry.supervise.sampler_process",
    "telemetry.runinfo": "telemetry.run_info",
    "telemetry.runclock": "telemetry.journal.run_clock",
    "telemetry.journal.journal_id": "telemetry.journal.identity",
    "telemetry.status": "telemetry.http",
    "telemetry.supervisor": "telemetry.supervise.earlier",
    "telemetry.probes": "telemetry.hardware",
    "trainer.allocator": "trainer.training.device",
    "trainer.memory": "trainer.training.failures",
    "trainer.rebuild": "trainer.training.resume",
    "trainer.scalars": "trainer.training.scalar_copies",
    "trainer.training.processes": "trainer.processes",
    "trainer.guidance": "trainer.training.distillation",
    "trainer.observe": "trainer.reporting.observer",
    "trainer.assess": "trainer.evaluation.commands",
    "trainer.model.once": "trainer.model.weight_cache",
    "trainer.model.ends": "trainer.model.embedding",
}
"""Modules that changed their name too."""


def install() -> None:
    """Look for old import paths after all others. May be called twice."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def present_name(name: str) -> str | None:
    """Return the present name of a module that moved, or None for any other name."""
    if name in RENAMED:
        return RENAMED[name]
    package, _, module = name.rpartition(".")
    places = (f"{package}.{inner}.{module}" for inner in PACKAGES.get(package, ()))
    return next((place for place in places if find_spec(place) is not None), None)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        present = present_name(fullname)
        return ModuleSpec(fullname, _Alias(present)) if present else None


class _Alias(Loader):
    def __init__(self, present: str) -> None:
        self._present = present
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        text = f"{spec.name} is now {self._present}"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        module = importlib.import_module(self._present)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module has run already; the import system put the alias' spec on it.
        module.__spec__ = self._spec
