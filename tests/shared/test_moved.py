"""Old import paths: scripts written against the flat layout go on working, with a warning."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from shared.moved import RENAMED, install, present_name

MOVED = {
    "shared.spool": "shared.emitter.spool",
    "shared.scalars": "shared.values.scalars",
    "telemetry.retention": "telemetry.supervise.retention",
    "telemetry.rows": "telemetry.journal.rows",
    "trainer.export": "trainer.evaluation.export",
    "trainer.model.flips": "trainer.model.diagnostics.flips",
}


@pytest.mark.parametrize(("old", "present"), [*MOVED.items(), *RENAMED.items()])
def test_an_old_path_gives_the_module_at_its_present_place(old, present):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {present}"):
        module = importlib.import_module(old)

    assert module is importlib.import_module(present)
    assert module.__name__ == present and module.__spec__.name == present


@pytest.mark.parametrize("old", ["telemetry.retention", "shared.spool", "trainer.export"])
def test_an_old_path_may_be_the_first_import_of_a_process(old):
    code = f"import {old}, sys; print(sys.modules[{old!r}].__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == present_name(old)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_earlier_supervisor_knows_its_rule_on_plain_values():
    """A sink is done with an ending of its run."""
    has_all = importlib.import_module("telemetry.supervisor")._has_all
    run = {"run_id": "r", "name": "n", "state": "ended", "endings": 2}

    assert has_all({"run_id": "r", "done": True, "ending": 2, "row": 3}, run)
    assert not has_all({"run_id": "r", "done": True, "ending": 1, "row": 3}, run)
    assert not has_all(None, run)


@pytest.mark.parametrize("name", ["shared.nothing", "telemetry.nothing.at_all", "other.spool"])
def test_a_name_that_never_was_is_not_found(name):
    install()
    with pytest.raises(ModuleNotFoundError, match="No module named"):
        importlib.import_module(name)
