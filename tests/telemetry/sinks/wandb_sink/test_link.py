"""What is kept of a run's server, and how its answers are read: without wandb."""

from __future__ import annotations

from pathlib import Path

import pytest

from telemetry.sinks.base import SinkUnavailable
from telemetry.sinks.wandb.link import RETRY_MAX_S, Link, LinkFile
from telemetry.sinks.wandb.server import RESTLESS_S, STILL_S, Server, View, view_of

from .surroundings import PausingClock, make_context


def test_a_link_is_the_same_after_a_restart(tmp_path: Path) -> None:
    link = Link(is_open=True, last_row=7, count=5, why="x", failures=2, retry_wall_ns=9)

    LinkFile(tmp_path / "wandb", "r").set(link)

    assert LinkFile(tmp_path / "wandb", "r").value == link
    assert LinkFile(tmp_path / "wandb", "other").value == Link()


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"is_open": 7}'])
def test_a_damaged_link_is_taken_for_an_unclean_end(tmp_path: Path, damage: bytes) -> None:
    """Then rows may be on their way, and the server is asked for as long as it takes."""
    file = LinkFile(tmp_path, "r")
    file.set(Link(last_row=7))
    file.path.write_bytes(damage)

    assert LinkFile(tmp_path, "r").value == Link(is_open=True)


def test_a_clock_that_was_set_back_does_not_put_off_the_next_try() -> None:
    now_ns = 10**18
    link = Link().failed("x", now_ns, is_refused=False)

    assert not link.is_due(now_ns)
    assert link.is_due(now_ns + int(RETRY_MAX_S * 1e9))
    assert link.is_due(now_ns - 10**15)


def test_the_back_off_is_bounded_however_long_it_lasts() -> None:
    link, now_ns = Link(), 10**18
    for _ in range(1000):
        link = link.failed("x", now_ns, is_refused=False)

    assert link.retry_wall_ns <= now_ns + int(RETRY_MAX_S * 1e9)


@pytest.mark.parametrize(
    ("answer", "view"),
    [
        ({"model": None}, View()),
        ({"model": {"bucket": None}}, View()),
        (
            {"model": {"bucket": {"historyLineCount": 2, "historyTail": '["{\\"_step\\": 9}"]'}}},
            View(True, 2, 9),
        ),
        (
            {"model": {"bucket": {"historyLineCount": None, "historyTail": None, "id": "x"}}},
            View(True, 0, -1),
        ),
    ],
)
def test_an_answer_is_read_as_wandb_reads_it(answer: dict[str, object], view: View) -> None:
    assert view_of(answer) == view


def test_a_server_that_never_stands_still_is_given_up(tmp_path: Path) -> None:
    clock = PausingClock()
    context = make_context(tmp_path)._replace(wait=clock.pause)
    server = Server(context, clock, lambda _: View(True, clock.wall, 0))
    began_ns = clock.wall

    with pytest.raises(SinkUnavailable, match="still takes in rows"):
        server.still_view()

    assert clock.wall - began_ns <= (RESTLESS_S + STILL_S) * 1e9


def test_each_change_begins_the_standstill_anew(tmp_path: Path) -> None:
    clock = PausingClock()
    began_ns = clock.wall
    context = make_context(tmp_path)._replace(wait=clock.pause)
    late_ns = began_ns + int((STILL_S - 1) * 1e9)
    server = Server(context, clock, lambda _: View(True, int(clock.wall > late_ns), 0))

    assert server.still_view() == View(True, 1, 0)

    assert clock.wall - late_ns >= STILL_S * 1e9


def test_tries_come_later_and_later_up_to_ten_minutes() -> None:
    """At a time of chance, so that a hundred runs do not come back at once."""
    link, second = Link(), 10**9
    delays = []
    for number in range(20):
        link = link.failed("why", 0, is_refused=False)
        assert link.failures == min(number + 1, 16)
        delays.append(link.retry_wall_ns / second)

    assert all(
        0.5 * longest <= delay <= longest
        for delay, longest in zip(delays, [30, 60, 120, 240, 480, *[600] * 15], strict=True)
    )
    assert len(set(delays)) == 20


def test_a_failure_is_told_and_put_off_by_the_time_that_it_took() -> None:
    """One without words is told too: empty stands for none."""
    link = Link().failed("", 100, is_refused=True)

    assert (link.why, link.is_refused) == ("unknown", True)
    assert link.failed("full", 0, is_refused=False).why == "full"
    assert link.put_off(7).retry_wall_ns == link.retry_wall_ns + 7


def test_a_try_is_due_at_its_time_and_where_the_clock_was_set_back() -> None:
    """No try is ever further away than the longest delay."""
    second = 10**9
    link = Link(retry_wall_ns=1000 * second)

    due = {now_s: link.is_due(now_s * second) for now_s in (399, 400, 999, 1000, 1001)}

    assert due == {399: True, 400: False, 999: False, 1000: True, 1001: True}


def test_the_file_has_what_was_set_and_knows_it(tmp_path: Path) -> None:
    """It is asked for it all the time."""
    file = LinkFile(tmp_path, "r")

    file.set(Link(is_open=True, last_row=3))

    assert file.value == Link(is_open=True, last_row=3) == LinkFile(tmp_path, "r").value
