"""The README stays true: its tree, its flags, its commands."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

import pytest

from telemetry import cli
from telemetry.config import ServeConfig
from telemetry.sinks.registry import SINK_NAMES
from tests.fakes import FakeSidecar
from trainer import args

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TREE = README.partition("## The tree")[2]


def test_the_tree_names_every_module_and_no_other() -> None:
    """One line a file, under the directory it is in."""
    named: set[str] = set()
    path: list[str] = []
    for line in TREE.strip().strip("`").strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        path = [*path[:depth], name]
        if name.endswith(".py"):
            named.add("".join(path))

    packages = ("shared", "telemetry", "trainer")
    modules = {
        str(file.relative_to(ROOT))
        for package in packages
        for file in (ROOT / package).rglob("*.py")
        if file.name != "__init__.py"
    }

    assert {name for name in named if name.startswith(packages)} == modules


def test_every_flag_of_the_trainer_is_in_the_readme() -> None:
    """And so is every default that a user may rely on."""
    flags = {option for action in actions(args.make_parser()) for option in action.option_strings}

    missing = [f for f in flags if f.startswith("--") and f != "--help" and f"`{f}`" not in README]

    assert missing == []


def test_every_setting_of_the_sidecar_is_in_the_readme() -> None:
    """Hidden ones are for programs that start it."""
    settings = {field.name for field in dataclasses.fields(ServeConfig)} - {"exit_with_stdin"}

    missing = [name for name in settings if f"`--{name.replace('_', '-')}`" not in README]

    assert missing == []


def test_every_command_and_sink_is_in_the_readme() -> None:
    """What can be asked for is said to be there."""
    (commands,) = (a for a in actions(cli.make_parser()) if isinstance(a.choices, dict))

    for command in commands.choices:
        assert f"python -m telemetry {command}" in README
    for sink in SINK_NAMES:
        assert f"`{sink}`" in README


def actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return parser._actions


def test_every_test_that_the_guarantees_name_is_there() -> None:
    """A promise without its test is only a promise."""
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/GUARANTEES.md").read_text())

    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (path := ROOT / "tests" / file).exists()
        or (test and f"def {test}(" not in path.read_text())
    ]

    assert len(named) > 30 and missing == []


def test_the_example_of_an_own_training_script_works(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, against something that listens."""
    (example,) = (example for example in EXAMPLES if "Emitter" in example)
    endpoint = f"ipc://{place}/s"
    monkeypatch.setenv("TELEMETRY_ENDPOINT", endpoint)
    with FakeSidecar(endpoint) as sidecar:
        exec(compile(example, "README.md", "exec"), {})

        said = sidecar.disk.typed(sidecar.disk.key_of("my-run"))

    assert [type(event).__name__ for event in said] == [
        "RunStarted",
        "MetricsLogged",
        "RunFinished",
    ]
