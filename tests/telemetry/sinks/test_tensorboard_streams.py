"""Which subdirectory a session writes to, so that TensorBoard hides none of its points."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from shared.events import MetricsLogged, RunStarted, decode_envelope, encode_event
from telemetry.rows import Row
from telemetry.sinks.tensorboard import streams
from telemetry.sinks.tensorboard.policy import Policy, PolicyState
from tests.telemetry.sinks.helpers_rows import RowMaker
from tests.telemetry.sinks.helpers_tensorboard import by_tag, read_all, write_all


def directories(rows: list[Row]) -> list[str]:
    """The subdirectory of each row's last entry."""
    policy = Policy(PolicyState())
    return [policy.entries(row)[-1].directory for row in rows]


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


def test_a_late_point_opens_a_further_subdirectory_where_its_session_goes_on(
    journal: RowMaker,
) -> None:
    """A lower step would wipe the higher ones, and a repeated one replace them."""
    for step in (0, 1, 2, 1, 2, 3, 3):
        journal.metrics(step, {"train/loss": 1.0})
    journal.metrics(4, {"train/loss": 1.0}, session="s2")

    found = directories(journal.rows)

    assert found == [*["rank0"] * 3, *["rank0.2"] * 3, "rank0.3", "rank0.4"]


def test_a_late_point_of_another_tag_stays(journal: RowMaker) -> None:
    """A validation that took long is late only beside other tags, which does no harm."""
    journal.metrics(100, {"train/loss": 1.0})
    journal.metrics(50, {"val/loss": 1.0}, kind="val")
    journal.metrics(60, {"val/loss": 1.0}, kind="val")

    assert directories(journal.rows) == ["rank0"] * 3


def test_a_further_subdirectory_says_the_stage_again(tmp_path: Path, journal: RowMaker) -> None:
    """What was left out as unchanged is not unchanged where nothing stands yet."""
    for step in (1, 2, 2, 3):
        journal.metrics(step, {"train/training_stage": "warmup", "train/loss": 1.0})

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    assert by_tag(found, "train/training_stage", "rank0.2") == [(2, "warmup")]


def test_one_step_for_everything_ends_in_one_subdirectory_by_seq(
    tmp_path: Path, journal: RowMaker
) -> None:
    """A producer that never counts its steps gets a bounded number of subdirectories."""
    count = streams.DIRECTORIES_MAX + 20
    for value in range(count):
        journal.metrics(5, {"x": float(value)}, kind="custom")

    write_all(tmp_path, journal.rows)

    found = read_all(tmp_path)
    assert len({each.directory for each in found}) == streams.DIRECTORIES_MAX
    assert sorted(value for _, value in by_tag(found, "x")) == [float(n) for n in range(count)]
    last = by_tag(found, "x", f"rank0.{streams.DIRECTORIES_MAX}")
    assert [step for step, _ in last] == list(range(streams.DIRECTORIES_MAX - 1, count))


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
    """`hardware-a.2` is the second session of host a, or the first of host a.2, never both."""
    known = streams.Streams(streams.StreamsState(hardware_host="trainer"))
    places = [("a", "s1"), ("a", "s2"), ("a.2", "s1"), ("b.2", "s1"), ("b", "s1"), ("b", "s2")]

    found = [known.of(_row(0, f"hardware:{host}", session), None) for host, session in places]

    names = [stream.directory for stream in found]
    assert len(set(names)) == len(names)
    assert names[:3] == ["hardware-a", "hardware-a.2", "hardware-a.2.2"]


def test_what_is_remembered_stays_bounded_and_hides_nothing(
    journal: RowMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tags that were forgotten count as being at the highest step of them all."""
    monkeypatch.setattr(streams, "TAGS_MAX", 8)
    for step in range(40):
        journal.metrics(step, {f"x{(step * 7 + i) % 23}": 1.0 for i in range(5)}, kind="custom")
        journal.metrics(step // 2, {"val/loss": 1.0}, kind="val")
    policy = Policy(PolicyState())

    entries = [entry for row in journal.rows for entry in policy.entries(row)]

    (stream,) = policy.state().streams.streams
    assert len(stream.steps) <= 8
    curves = defaultdict(list)
    for entry in entries:
        for tag in entry.scalars:
            curves[entry.directory, tag].append(entry.step)
    assert all(steps == sorted(set(steps)) for steps in curves.values())


def test_a_thousand_restarts_leave_a_small_state() -> None:
    """The position is written once a second, however often a run was restarted."""
    policy = Policy(PolicyState())
    event = MetricsLogged(kind="train", step=1, values={f"train/{i}": 1.0 for i in range(50)})
    for number in range(1000):
        policy.entries(_row(number, "rank0", f"s{number}", event))

    state = policy.state()

    assert state.streams.numbers == {"rank0": 1000}
    assert len(state.streams.streams) == streams.SESSIONS_MAX
    assert len(msgspec.json.encode(state)) < 100_000


def _row(number: int, source: str, session: str, event: MetricsLogged | None = None) -> Row:
    said = event or RunStarted(project="p", name="n")
    return Row(number, source, session, 0, decode_envelope(encode_event(said, 1, 1)))
