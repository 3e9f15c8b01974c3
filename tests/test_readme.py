"""The README stays true: its tree, its flags, its commands."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from docs import generate
from telemetry import cli
from telemetry.sinks.registry import SINKS
from tests.fakes import FakeSidecar

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = (README, (ROOT / "docs/TRAINER.md").read_text())
EXAMPLES = re.findall(r"```python\n(.*?)```", "".join(PAGES), re.DOTALL)
TREE = README.partition("## The tree")[2]


def test_the_tree_names_every_package_and_no_other() -> None:
    """One line a directory, so that it stays short and true."""
    named: set[str] = set()
    path: list[str] = []
    lines = TREE.partition("```")[2].partition("```")[0].strip().splitlines()
    for line in lines:
        depth = (len(line) - len(line.lstrip())) // 2
        path = [*path[:depth], line.split()[0]]
        named.add("".join(path))

    packages = {
        f"{directory.relative_to(ROOT)}/"
        for package in ("shared", "telemetry", "trainer")
        for directory in [ROOT / package, *(ROOT / package).rglob("*")]
        if directory.is_dir() and directory.name not in ("__pycache__", "assets")
    }

    assert {name for name in named if name.startswith(("shared", "telemetry", "trainer"))} == (
        packages
    )
    assert len(lines) <= 30
    assert all((ROOT / name).exists() for name in named)


def test_the_readme_can_be_read_in_one_go() -> None:
    """What is looked up, and not read, is under docs/."""
    assert len(README.splitlines()) <= 300


@pytest.mark.parametrize("path", generate.pages(), ids=lambda path: path.name)
def test_a_generated_page_is_what_the_code_says(path: Path) -> None:
    """Made by `python -m docs.generate`, never by hand."""
    assert path.read_text() == generate.pages()[path]


def test_every_command_and_sink_is_in_the_readme() -> None:
    """What can be asked for is said to be there."""
    (commands,) = (a for a in actions(cli.make_parser()) if isinstance(a.choices, dict))

    for command in commands.choices:
        assert f"python -m telemetry {command}" in README
    for sink in SINKS:
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

        (key,) = sidecar.disk.events
        said = sidecar.disk.typed(key)

    assert [type(event).__name__ for event in said] == [
        "RunStarted",
        "MetricsLogged",
        "RunFinished",
    ]


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md", "docs/GUARANTEES.md"],
)
def test_every_file_that_a_document_names_is_there(page: str) -> None:
    """A whole path from the root (or, of tests, from tests/), or the end of one."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    named = set(re.findall(r"`([\w/.-]*\w\.py)(?:::\w+)?`", text))
    there = [
        f"/{path.relative_to(ROOT)}"
        for top in ("shared", "telemetry", "trainer", "tests", "docs", "bench")
        for path in (ROOT / top).rglob("*.py")
    ]

    missing = [name for name in named if not any(path.endswith(f"/{name}") for path in there)]

    assert [name for name in missing if name != "train.py"] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md"])
def test_every_link_of_a_document_leads_somewhere(page: str) -> None:
    """Inside the repository, pictures too."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())

    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []
