"""The slot: what a sink is at is known after any death of its process."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from telemetry.sinks.slot import AT_ROW, COMMITTING, IDLE, OPENING, SIZE, Slot
from tests.telemetry.sinks.helpers_rows import RowMaker


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.slot"


def test_deaths_at_one_row_add_up_over_processes(path):
    """Each process opens the page anew."""
    for _ in range(2):
        with closing(Slot(path)) as slot:
            slot.enter(AT_ROW, 41)
        with closing(Slot(path)) as after:
            after.note_death("ended by SIGSEGV")

    with closing(Slot(path)) as slot:
        assert slot.suspect == (41, 2, "ended by SIGSEGV")


def test_deaths_at_different_rows_do_not_add_up(path):
    """Only the same row twice is that row's fault."""
    with closing(Slot(path)) as slot:
        for row in (41, 42, 41):
            slot.enter(AT_ROW, row)
            slot.note_death("x")

        assert slot.suspect == (41, 1, "x")


@pytest.mark.parametrize("phase", [IDLE, OPENING, COMMITTING])
def test_a_death_in_another_phase_counts_against_no_row(path, phase):
    """Nor does a second look at a death that was counted."""
    with closing(Slot(path)) as slot:
        slot.enter(AT_ROW, 1)
        slot.note_death("x")
        slot.note_death("x")
        slot.enter(phase)
        slot.note_death("x")

        assert slot.suspect == (1, 1, "x")


def test_a_row_is_announced_while_the_loop_is_at_it_and_no_longer(path):
    """Behind its loop a sink is at no row."""
    rows = RowMaker()
    for step in range(3):
        rows.metrics(step, {"a": 1.0})
    with closing(Slot(path)) as slot:
        seen = []
        for row in slot.announced(rows.rows):
            seen.append((row.row, slot._page[4], int.from_bytes(slot._page[8:16], "little")))

        assert seen == [(row.row, AT_ROW, row.row) for row in rows.rows]
        assert slot._page[4] == COMMITTING


@pytest.mark.parametrize(
    "content", [b"", b"x" * SIZE, b"SLT1", b"\xff" * 10_000, b"slt1" + bytes([AT_ROW]) * (SIZE - 4)]
)
def test_a_page_that_is_none_begins_empty(path, content):
    """Whatever lies there."""
    path.write_bytes(content)

    with closing(Slot(path)) as slot:
        assert slot.suspect is None
        assert slot.note_death("x") is None
    assert path.stat().st_size == SIZE


def test_it_survives_a_kill_of_its_process(path):
    """Nothing has to be flushed."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from telemetry.sinks.slot import *\n"
        "Slot(Path(sys.argv[1])).enter(AT_ROW, 5); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], timeout=60, check=False)

    with closing(Slot(path)) as slot:
        slot.note_death("x")
        assert done.returncode == -signal.SIGKILL and slot.suspect == (5, 1, "x")


def test_a_planted_link_is_not_followed(path, tmp_path):
    """A page is zeroed where it is damaged: that must not be somebody's file."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path.symlink_to(victim)

    with pytest.raises(OSError):
        Slot(path)
    assert victim.read_text() == "mine"
