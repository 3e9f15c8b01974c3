"""What a sink keeps beside its cursor survives a power cut at every one of its calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from shared.files import make_directory
from telemetry.run_dir import RunDir
from telemetry.sinks.cursor import Cursor
from telemetry.sinks.skips import Skips, read_skips
from telemetry.sinks.wandb.link import Link, LinkFile
from telemetry.sinks.wandb.offline import Confirmation
from tests.faults.crash_points import cut_everywhere, kill_everywhere
from tests.telemetry.sinks.wandb_sink.surroundings import PausingClock
from tests.telemetry.sinks.wandb_sink.test_local import write_ended


def step_over(root: Path, promises: dict[str, Any]) -> None:
    """As the runner does: the cursor's directory first, then one skip after the other."""
    with Cursor(root / "run", "lines", "r") as cursor:
        skips = Skips(RunDir(cursor.path.parents[1]).skips("lines"))
        for row in (3, 5, 8):
            if row not in skips:
                skips.add(row, "crashed 2 times: " + "x" * 100)
            promises.setdefault("rows", []).append(row)


def check_skips(root: Path, promises: dict[str, Any]) -> None:
    kept = {skip.row for skip in read_skips(RunDir(root / "run").skips("lines"))}
    assert kept >= set(promises.get("rows", []))
    assert kept <= {3, 5, 8}


def test_a_row_that_is_stepped_over_stays_so_through_a_power_cut() -> None:
    """The sink goes on behind it: found again, it would be one row too many. Fault 43."""
    assert cut_everywhere(step_over, check_skips, throws=8) > 8


def test_what_a_killed_process_has_begun_to_step_over_is_whole_or_not_there() -> None:
    """The next process adds its own behind a line that was cut short."""
    assert kill_everywhere(step_over, step_over, check_skips, throws=8) > 8


def open_link(root: Path, promises: dict[str, Any]) -> None:
    """The first thing that the wandb sink writes: rows may be on their way from here on."""
    make_directory(root / "run")
    link = LinkFile(root / "run" / "wandb", "r")
    for value in (
        Link(mode="online"),
        Link(is_open=True, mode="online"),
        Link(last_row=7, count=8),
    ):
        link.set(value)
        promises["link"] = value


def check_link(root: Path, promises: dict[str, Any]) -> None:
    found = LinkFile(root / "run" / "wandb", "r").value
    promised = promises.get("link", Link())
    # Later values may have reached the disk unpromised; an earlier one must not come back.
    order = [
        Link(),
        Link(mode="online"),
        Link(is_open=True, mode="online"),
        Link(last_row=7, count=8),
    ]
    assert order.index(found) >= order.index(promised), msgspec.to_builtins(found)


def test_rows_on_their_way_to_a_server_are_not_forgotten_by_a_power_cut() -> None:
    """Forgotten, they would be written offline, too, and synced a second time. The name of
    the directory, which this file is the first in, is part of it."""
    assert cut_everywhere(open_link, check_link, throws=8) > 10


def fragment(root: Path) -> Path:
    return root / "run" / "wandb" / "offline-run-20260101_000000-r" / "run-r.wandb"


def end_a_fragment(root: Path, promises: dict[str, Any]) -> None:
    """wandb-core writes the last records, and does not sync."""
    path = fragment(root)
    make_directory(path.parent)
    write_ended(path, range(3))
    whole = path.read_bytes()
    path.write_bytes(b"")
    confirmation = Confirmation(path)
    for row in range(3):
        confirmation.sent(row)
    for end in (len(whole) // 2, len(whole) - 4, len(whole)):
        with path.open("ab") as file:
            file.write(whole[path.stat().st_size : end])
        confirmation.read_back()
    promises["whole"] = whole
    clock = PausingClock()
    confirmation.wait_for_end(clock, clock.pause)
    promises["is_ended"] = True


def check_ended(root: Path, promises: dict[str, Any]) -> None:
    if promises.get("is_ended"):
        assert fragment(root).read_bytes() == promises["whole"]


def test_a_fragment_that_was_waited_for_is_on_disk_to_its_end() -> None:
    """Its last row was synced when it was read back; what follows it was not."""
    assert cut_everywhere(end_a_fragment, check_ended, throws=8) > 8
