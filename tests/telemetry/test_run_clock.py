"""The clock of a run: monotonic, tied to the run once for each machine."""

from __future__ import annotations

import json

import msgspec
import pytest

from shared.events import HARDWARE, MetricsLogged
from telemetry.journal.rows import ELAPSED, Row, RunContext, point_of
from telemetry.journal.run_clock import CLOCKS_MAX
from tests.telemetry.sinks.helpers_rows import SECOND_NS, START_WALL_NS, RowMaker

HOUR_NS = 3600 * SECOND_NS
BOOT_NS = 5000 * SECOND_NS


def elapsed(rows: list[Row], context: RunContext | None = None) -> list[float]:
    """The time of the run at each sample of hardware."""
    context = context or RunContext()
    found = []
    for row in rows:
        event = row.envelope.event()
        context = context.after(row, event)
        if isinstance(event, MetricsLogged) and event.kind == HARDWARE:
            point = point_of(row, event, context)
            assert point is not None
            found.append(float(point.values[ELAPSED]))
    return found


def sample(journal: RowMaker, second: float, *, wall_step_ns: int = 0, **place: str) -> None:
    mono_ns = BOOT_NS + int(second * SECOND_NS)
    wall_ns = START_WALL_NS + int(second * SECOND_NS) + wall_step_ns
    journal.hardware({"cpu_percent": 1.0}, mono_ns=mono_ns, wall_ns=wall_ns, **place)


@pytest.fixture
def journal() -> RowMaker:
    """A run of which rank 0 on node1 has begun."""
    journal = RowMaker()
    journal.start(mono_ns=BOOT_NS, wall_ns=START_WALL_NS)
    return journal


@pytest.mark.parametrize("step_ns", [-HOUR_NS, HOUR_NS, 50 * 365 * 24 * HOUR_NS])
def test_a_step_of_the_wall_clock_is_not_followed(journal: RowMaker, step_ns: int) -> None:
    """Back an hour, on an hour, or from 1970 to now: a second is a second."""
    for second in (1, 2):
        sample(journal, second)
    for second in (3, 4):
        sample(journal, second, wall_step_ns=step_ns)

    assert elapsed(journal.rows) == [1, 2, 3, 4]


def test_a_wall_clock_that_is_wrong_at_the_start_changes_nothing() -> None:
    """As on a machine without a battery, before its time has come over the network."""
    journal = RowMaker()
    journal.start(mono_ns=BOOT_NS, wall_ns=1)
    for second in (1, 2):
        sample(journal, second)

    assert elapsed(journal.rows) == [1, 2]


def test_another_machine_is_tied_to_the_run_when_it_is_first_heard_of(journal: RowMaker) -> None:
    """Its clock began at another time; a second sampler of it goes on with the same clock."""
    sample(journal, 100)
    for second, session in ((7, "a"), (9, "a"), (12, "b")):
        mono_ns = second * SECOND_NS
        journal.hardware({"load": 1.0}, "node2", mono_ns=mono_ns, session=session)

    assert elapsed(journal.rows) == [100, 100, 102, 105]


def test_a_machine_that_lags_does_not_set_the_run_back(journal: RowMaker) -> None:
    """A third one is tied to the time of the one that is furthest."""
    sample(journal, 100)
    journal.hardware({"load": 1.0}, "node2", mono_ns=7 * SECOND_NS)
    sample(journal, 200)
    journal.hardware({"load": 1.0}, "node2", mono_ns=8 * SECOND_NS)
    journal.hardware({"load": 1.0}, "node3", mono_ns=9 * SECOND_NS)

    assert elapsed(journal.rows) == [100, 100, 200, 101, 200]


def test_the_clocks_that_are_remembered_are_bounded() -> None:
    """Ever new hosts do not fill the position; the oldest is tied anew when it speaks again."""
    journal, context = RowMaker(), RunContext()
    for number in range(CLOCKS_MAX + 7):
        journal.hardware({"load": 1.0}, f"n{number}")
    for row in journal.rows:
        context = context.after(row, row.envelope.event())

    assert context.clock is not None
    assert list(context.clock.hosts) == [f"n{number}" for number in range(7, CLOCKS_MAX + 7)]


def test_rank_0_without_a_host_shares_the_clock_of_the_first_hardware() -> None:
    """One machine, of which only the sampler says its name."""
    journal = RowMaker()
    journal.start(host="", mono_ns=BOOT_NS, wall_ns=START_WALL_NS)
    sample(journal, 60)

    assert elapsed(journal.rows) == [60]
    context = RunContext()
    for row in journal.rows:
        context = context.after(row, row.envelope.event())
    assert context.clock is not None and list(context.clock.hosts) == ["node1"]


def test_a_machine_that_only_looks_like_rank_0s_keeps_its_own_clock() -> None:
    """The sidecar is elsewhere, was started long before, and nobody says a name."""
    journal = RowMaker()
    journal.start(host="", mono_ns=BOOT_NS, wall_ns=START_WALL_NS)
    sample(journal, 60, wall_step_ns=-30 * SECOND_NS)
    sample(journal, 63, wall_step_ns=-30 * SECOND_NS)

    assert elapsed(journal.rows) == [0, 3]


def test_a_machine_that_was_started_anew_goes_on_where_the_run_was(journal: RowMaker) -> None:
    """Its monotonic clock begins at 0 again; the time it was off is not counted."""
    sample(journal, 100)
    for second in (20, 25):
        wall_ns = START_WALL_NS + HOUR_NS + second * SECOND_NS
        journal.hardware({"load": 1.0}, mono_ns=second * SECOND_NS, wall_ns=wall_ns)

    assert elapsed(journal.rows) == [100, 100, 105]


def test_a_late_sample_has_the_time_at_which_it_was_taken(journal: RowMaker) -> None:
    """The spool of a former sampler, sent when its successor was long at work."""
    sample(journal, 100)
    sample(journal, 40, session="former")
    sample(journal, 101)

    assert elapsed(journal.rows) == [100, 40, 101]


def test_a_position_from_before_there_was_a_clock_goes_on(journal: RowMaker) -> None:
    """The time so far is taken from the wall clock, once."""
    old = {"host": "node1", "gpu_uuids": [], "first_wall_ns": START_WALL_NS}
    context = msgspec.convert(old, RunContext)
    later = RowMaker()
    sample(later, 500)
    sample(later, 501, wall_step_ns=-HOUR_NS)

    assert elapsed(later.rows, context) == [500, 501]


def test_a_context_goes_through_json(journal: RowMaker) -> None:
    """A sink that was restarted knows the same time."""
    sample(journal, 10)
    context = RunContext()
    for row in journal.rows:
        context = context.after(row, row.envelope.event())
    later = RowMaker()
    sample(later, 12)

    restored = msgspec.convert(json.loads(json.dumps(context.to_json())), RunContext)

    assert elapsed(later.rows, restored) == [12]
    assert restored == context


def test_hardware_of_the_first_host_is_rank_0s_where_rank_0_says_nothing() -> None:
    """An own script does not know what the sampler calls its host."""
    journal = RowMaker()
    journal.start(host="")
    journal.hardware({"cpu_percent": 1.0}, "here")
    journal.hardware({"cpu_percent": 2.0}, "elsewhere")
    context, names = RunContext(), []
    for row in journal.rows:
        event = row.envelope.event()
        context = context.after(row, event)
        point = point_of(row, event, context)
        names += [name for name in point.values if name != ELAPSED] if point else []

    assert names == ["cpu_percent", "hw/elsewhere/cpu_percent"]
