"""The subdirectory that a session writes to, so that TensorBoard hides none of its points."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from shared.events import MessageLogged, MetricsLogged, RunStarted, decode_envelope, encode_event
from telemetry.journal.rows import Row
from telemetry.sinks.tensorboard import session_dirs as streams
from telemetry.sinks.tensorboard.bounds import Bounds
from telemetry.sinks.tensorboard.row_entries import Policy, PolicyState
from tests.telemetry.sinks.helpers_rows import RowMaker
from tests.telemetry.sinks.helpers_tensorboard import by_tag, read_all, write_all


def directories(rows: list[Row]) -> list[str]:
    """The subdirectory of each row's last entry."""
    policy = Policy(PolicyState())
    return [policy.entries(row)[-1].directory for row in rows]


def curves_of(policy: Policy, rows: list[Row]) -> dict[tuple[str, str], list[int]]:
    """The steps of each tag in each subdirectory."""
    curves: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for row in rows:
        for entry in policy.entries(row):
            for tag in [*entry.scalars, *(tag for tag, _ in entry.extras)]:
                curves[entry.directory, tag].append(entry.step)
    return curves


@pytest.fixture
def journal() -> RowMaker:
    return RowMaker()


def test_each_session_of_each_source_has_a_subdirectory(journal: RowMaker) -> None:
    """Sessions are numbered by when they first speak, whoever speaks in between."""
    for source, session in (
        ("rank0", "a"),
        ("rank1", "b"),
        ("sidecar", "c"),
        ("rank0", "d"),
        ("rank0", "a"),
        ("rank1", "e"),
    ):
        journal.metrics(None, {"x": 1.0}, source, session, kind="custom")

    assert directories(journal.rows) == ["rank0", "rank1", "sidecar", "rank0.2", "rank0", "rank1.2"]


def test_a_restart_from_an_earlier_step_leaves_both_curves_whole(
    tmp_path: Path, journal: RowMaker
) -> None:
    """Fault 33: 150 steps, then again from step 100: nothing of either is hidden."""
    for step in range(150):
        journal.metrics(step, {"train/loss": float(step)})
    for step in range(100, 200):
        journal.metrics(step, {"train/loss": float(-step)}, session="s2")

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    first, second = by_tag(found, "train/loss", "rank0"), by_tag(found, "train/loss", "rank0.2")
    assert first == [(step, float(step)) for step in range(150)]
    assert second == [(step, float(-step)) for step in range(100, 200)]


def test_two_ranks_far_apart_keep_all_their_points(tmp_path: Path, journal: RowMaker) -> None:
    """Fault 34: a rank that is 1,000 steps late has a subdirectory of its own."""
    for step in range(1000, 1050):
        journal.metrics(step, {"train/loss": 1.0})
        journal.metrics(step - 1000, {"train/loss": 2.0}, "rank1")

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    assert [step for step, _ in by_tag(found, "train/loss", "rank0")] == list(range(1000, 1050))
    assert [step for step, _ in by_tag(found, "train/loss", "rank1")] == list(range(50))


def test_a_late_point_goes_to_a_further_subdirectory_and_its_session_goes_back_up(
    journal: RowMaker,
) -> None:
    """A lower step would wipe the higher ones; the next step that fits the first is there again."""
    for value, step in enumerate((0, 1, 2, 1, 2, 3, 0, 2, 4)):
        journal.metrics(step, {"train/loss": float(value)})
    journal.metrics(4, {"train/loss": 1.0}, session="s2")

    found = directories(journal.rows)

    assert found == [
        *["rank0"] * 3, "rank0.2", *["rank0"] * 2, "rank0.3", "rank0.2", "rank0", "rank0.4",
    ]  # fmt: skip


def test_a_late_point_of_another_tag_stays(journal: RowMaker) -> None:
    """A validation that took long is late only beside other tags, which does no harm."""
    journal.metrics(100, {"train/loss": 1.0})
    journal.metrics(50, {"val/loss": 1.0}, kind="val")
    journal.metrics(60, {"val/loss": 1.0}, kind="val")

    assert directories(journal.rows) == ["rank0"] * 3


def test_a_further_subdirectory_says_the_stage_again(tmp_path: Path, journal: RowMaker) -> None:
    """What was left out as unchanged is not unchanged where nothing stands yet."""
    for step, stage in ((1, "warmup"), (5, "full_ternary"), (2, "warmup"), (3, "warmup")):
        journal.metrics(step, {"train/training_stage": stage, "train/loss": 1.0})

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    assert by_tag(found, "train/training_stage", "rank0.2") == [(2, "warmup")]


def test_one_step_for_everything_is_one_curve_that_shows_the_last_value(
    tmp_path: Path, journal: RowMaker
) -> None:
    """A producer that never counts its steps keeps its step and all its values, in one place."""
    for value in range(1000):
        journal.metrics(5, {"x": float(value)}, kind="custom")

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    assert by_tag(found, "x", "rank0") == [(5, float(value)) for value in range(1000)]
    assert {each.directory for each in found} == {"rank0"}


@pytest.mark.parametrize(
    ("rank0_host", "hosts", "expected"),
    [
        (None, ["a", "b", "a"], ["hardware", "hardware-b", "hardware"]),
        ("b", ["a", "b", "a"], ["hardware-a", "hardware", "hardware-a"]),
        ("elsewhere", ["a"], ["hardware-a"]),
    ],
)
def test_hardware_is_rank_0s_host_or_the_first_one_seen(
    rank0_host: str | None, hosts: list[str], expected: list[str]
) -> None:
    """Where a trainer runs, `hardware` is kept for its host, whoever reports first."""
    known = streams.Streams(streams.StreamsState())
    rows = [_row(number, f"hardware:{host}", "s") for number, host in enumerate(hosts)]

    assert [known.of(row, rank0_host).directory for row in rows] == expected


def test_a_host_that_is_called_like_a_second_session_gets_another_name() -> None:
    """`hardware-a.2` is the second level of host a, or the first of host a.2, never both."""
    known = streams.Streams(streams.StreamsState(hardware_host="trainer"))
    streams_of = {host: known.of(_row(0, f"hardware:{host}", "s"), None) for host in "ab"}
    names = [known.directory(stream, level) for stream in streams_of.values() for level in (0, 1)]
    names += [known.of(_row(0, f"hardware:{host}.2", "s"), None).directory for host in "ab"]

    assert len(set(names)) == len(names)
    assert names[:2] == ["hardware-a", "hardware-a.2"]
    assert names[4] == "hardware-a.2.2"


def test_many_names_a_step_are_one_subdirectory(journal: RowMaker) -> None:
    """12,000 names in events of 1,000: each is a curve, and none of them opens a subdirectory."""
    for step in range(1, 4):
        for part in range(12):
            values = {f"p{part * 1000 + i}": float(step) for i in range(1000)}
            journal.metrics(step, values, kind="custom")

    curves = curves_of(Policy(PolicyState()), journal.rows)

    assert len(curves) == 12_001
    assert {directory for directory, _ in curves} == {"rank0"}
    assert all(steps == [1, 2, 3] for steps in curves.values())


def test_names_beyond_the_bound_are_left_out_and_counted(journal: RowMaker) -> None:
    """Of a name that is there every point is, and of one too many none."""
    for step in range(10):
        journal.metrics(step, {f"x{i}": 1.0 for i in range(12)}, kind="custom")
    policy = Policy(PolicyState(), bounds=Bounds(tags=8))

    curves = curves_of(policy, journal.rows)

    assert len(curves) == 8
    assert all(steps == list(range(10)) for steps in curves.values())
    # The step itself was there first.
    assert policy.left_out.tags == 10 * 13 - 10 * 8


def test_the_seventeenth_time_a_step_goes_back_is_left_out_and_counted(
    tmp_path: Path, journal: RowMaker
) -> None:
    """Steps that fall throughout: as many points as there may be subdirectories."""
    for step in range(30, 0, -1):
        journal.metrics(step, {"x": 1.0}, kind="custom")
    policy = Policy(PolicyState())

    curves = curves_of(policy, journal.rows)

    assert sorted(steps for (_, tag), steps in curves.items() if tag == "x") == [
        [step] for step in range(15, 31)
    ]
    assert policy.left_out.levels == 14


def test_what_is_remembered_of_many_sessions_stays_bounded_and_hides_nothing(
    journal: RowMaker,
) -> None:
    """Tags that were forgotten count as being at the highest step of them all."""
    for step in range(40):
        for source in ("rank0", "rank1", "rank2"):
            values = {f"x{(step * 7 + i) % 23}": 1.0 for i in range(5)}
            journal.metrics(step, values, source, kind="custom")
            journal.metrics(step // 2, {"val/loss": float(step)}, source, kind="val")
    policy = Policy(PolicyState(), bounds=Bounds(tags_in_all=40))

    curves = curves_of(policy, journal.rows)

    remembered = sum(len(change.lasts) for _, change in policy.everything())
    assert policy.tags == remembered <= 60
    assert all(steps == sorted(steps) for steps in curves.values())


def test_workers_hosts_and_the_sidecar_keep_their_subdirectory_through_restarts(
    journal: RowMaker,
) -> None:
    """Hundreds of starts of a loader's worker, or of the sampler, are one curve."""
    for number in range(50):
        session = f"s{number}"
        journal.metrics(number, {"x": 1.0}, "rank0.worker1", session, kind="custom")
        journal.hardware({"cpu_percent": 1.0}, session=session)
        journal.append(MessageLogged(level="info", text="started"), "sidecar", session)

    curves = curves_of(Policy(PolicyState()), journal.rows)

    assert {directory for directory, _ in curves} == {"rank0.worker1", "hardware", "sidecar"}
    assert all(steps == sorted(set(steps)) for steps in curves.values())


def test_a_thousand_restarts_leave_a_small_state() -> None:
    """The position is written once a second, however often a run was restarted."""
    policy = Policy(PolicyState())
    event = MetricsLogged(kind="train", step=1, values={f"train/{i}": 1.0 for i in range(50)})
    for number in range(1000):
        policy.entries(_row(number, "rank0", f"s{number}", event))

    state = policy.state()

    assert policy.tags == sum(len(change.lasts) for _, change in policy.everything())
    assert policy.tags == streams.RECENT_SESSIONS * 51
    assert state.streams.numbers == {"rank0": 1000}
    assert len(state.streams.streams) == streams.SESSIONS_MAX
    assert len(msgspec.json.encode(state)) < 100_000


def _row(number: int, source: str, session: str, event: MetricsLogged | None = None) -> Row:
    said = event or RunStarted(project="p", name="n")
    return Row(number, source, session, 0, decode_envelope(encode_event(said, 1, 1)))
