"""A run on a server: what counts as confirmed, and what the link says meanwhile. Without wandb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from telemetry.sinks.base import SinkContext, SinkUnavailable
from telemetry.sinks.wandb import client, core, online
from telemetry.sinks.wandb.link import Link, LinkFile
from telemetry.sinks.wandb.local import Spot
from telemetry.sinks.wandb.online import AWAY_S, CONFIRM_S, Away, OnlineRun
from telemetry.sinks.wandb.run_status import Ending
from telemetry.sinks.wandb.selection import Alert, Selected
from telemetry.sinks.wandb.server import View

from .surroundings import RUN_ID, PausingClock, make_context

FINISHED = Ending("finished", 0)
ASK_S = 30.0


class FakeClient:
    """A wandb run that remembers what it was told, and fails when it is told to."""

    def __init__(self, first_row: int) -> None:
        self.first_row = first_row
        self.said: list[str] = []
        self.fails: set[str] = set()

    def answer(self) -> client.Answer:
        self._say("answer")
        return client.Answer(self.first_row > 0, self.first_row)

    def send(self, row: int, values: Any) -> None:
        self._say("send", row)

    def update_config(self, config: Any) -> None:
        self._say("config", *config)

    def update_summary(self, summary: Any) -> None:
        self._say("summary", *summary)

    def alert(self, alert: Any) -> None:
        self._say("alert", alert[0])

    def mark_preempting(self) -> None:
        self._say("preempting")

    def check(self) -> None:
        if "check" in self.fails:
            raise client.Refused("refused")

    def finish(self, code: int, limit_s: float | None = None) -> None:
        self._say("finish", code)

    def abandon(self) -> None:
        self._say("abandon")

    def _say(self, what: str, *more: object) -> None:
        if what in self.fails:
            raise SinkUnavailable(f"no {what}")
        self.said.append(" ".join(map(str, (what, *more))))


class FakeServer:
    """The rows that a server shows; `view` None is a server that does not answer."""

    def __init__(self, clock: PausingClock) -> None:
        self.shown: View | None = View()
        self.asked = 0
        self._clock = clock
        self.on_pause: Any = lambda: None

    def view(self) -> View:
        self.asked += 1
        if self.shown is None:
            raise SinkUnavailable("no answer")
        return self.shown

    def pause(self, seconds: float) -> None:
        self._clock.advance(seconds)
        self.on_pause()


class Desk:
    """An online run with all that it needs. `view`: of the server at the start."""

    def __init__(self, out_dir: Path, monkeypatch: pytest.MonkeyPatch, **run: Any) -> None:
        self.clock = PausingClock()
        self.context: SinkContext = make_context(out_dir, "online", **run)
        self.server = FakeServer(self.clock)
        self.link = LinkFile(out_dir / "wandb", RUN_ID)
        self.client = FakeClient(0)
        self.at_start: list[Link] = []
        self.let_go = 0
        self.run = OnlineRun(
            self.context, self.clock, self.server, self.link, Spot(0)  # type: ignore[arg-type]
        )  # fmt: skip

        def start(*_: object, **__: object) -> FakeClient:
            self.at_start.append(LinkFile(out_dir / "wandb", RUN_ID).value)
            return self.client

        def let_go() -> None:
            self.let_go += 1

        monkeypatch.setattr(client, "start", start)
        monkeypatch.setattr(core, "let_go", let_go)

    def started(self, view: View | None = None) -> Desk:
        view = view or View()
        self.server.shown = view
        self.client.first_row = view.last_row + 1
        self.run.start(view)
        self.client.said.clear()
        return self

    def shows(self, count: int, last_row: int | None = None) -> None:
        self.server.shown = View(True, count, count - 1 if last_row is None else last_row)

    def take(self, *rows: int) -> None:
        for row in rows:
            self.run.take(row, Selected(history={"x": row}))

    def commit(self, row: int, after_s: float = ASK_S) -> int:
        """Commit behind these rows, so much later; return the row that is confirmed."""
        self.clock.advance(after_s)
        return self.run.commit(Spot(row)).row


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path / "run", monkeypatch)


def test_the_link_is_open_on_disk_before_the_run_is_started(desk: Desk) -> None:
    """From then on rows may be on their way, whatever becomes of this process."""
    desk.started(View(True, 3, 4))

    assert desk.at_start == [Link(is_open=True, last_row=4, count=3)]
    assert desk.link.value == desk.at_start[0]


@pytest.mark.parametrize("fails", ["answer", "more rows"])
def test_a_start_that_fails_leaves_the_link_as_it_was(desk: Desk, fails: str) -> None:
    """Unless the server has more rows than it showed: then somebody else is sending."""
    desk.client.fails = {"answer"} & {fails}
    desk.client.first_row = 9

    with pytest.raises(SinkUnavailable, match="no answer" if fails == "answer" else "up to 8"):
        desk.run.start(View(True, 3, 4))

    assert desk.link.value == Link(is_open=fails == "more rows", last_row=4, count=3)
    assert desk.let_go == 1
    with pytest.raises(SinkUnavailable, match="not open"):
        desk.take(5)


def test_a_run_that_the_server_does_not_have_may_begin_anywhere(desk: Desk) -> None:
    """Its first row is not compared with rows that do not exist."""
    desk.client.first_row = 7

    desk.run.start(View())

    assert desk.link.value.is_open


def test_the_position_moves_only_when_the_server_shows_the_rows(desk: Desk) -> None:
    """Sent is not had. The server is asked every half minute."""
    desk.clock.advance(100)
    desk.started()
    desk.take(0, 1)
    assert desk.commit(2, after_s=1.0) == 0 and desk.server.asked == 0
    desk.take(2)
    desk.shows(2)

    assert desk.commit(3) == 2 and desk.server.asked == 1
    assert desk.commit(3, after_s=ASK_S - 0.001) == 2 and desk.server.asked == 1
    desk.shows(3)
    assert desk.commit(3, after_s=0.001) == 3
    assert desk.link.value == Link(is_open=True, last_row=2, count=3)


def test_rows_that_the_server_has_are_not_sent_and_their_effects_are(desk: Desk) -> None:
    """Config and summary may be sent twice; a row doubled is doubled for good."""
    desk.started(View(True, 5, 4))
    for row in (4, 5):
        desk.run.take(row, Selected({"x": 1}, {"lr": 1}, {"best": 2}, Alert("loud", "", "")))

    effects = ["config lr", "summary best", "alert loud"]
    assert desk.client.said == [*effects, *effects, "send 5"]


@pytest.mark.parametrize(
    ("selected", "confirmed"),
    [
        (Selected(history={"x": 1}), [1, 6]),
        (Selected(config={"lr": 1}), [1, 1]),
        (Selected(summary={"best": 1}), [1, 1]),
        (Selected(alert=Alert("loud", "", "")), [6, 6]),
        (Selected(), [6, 6]),
    ],
    ids=["history", "config", "summary", "alert", "nothing"],
)
def test_a_row_with_an_effect_needs_the_row_behind_it_to_be_shown(
    desk: Desk, selected: Selected, confirmed: list[int]
) -> None:
    """The server shows rows only: what was sent with the row is had when a later one is."""
    desk.started()
    desk.take(0)
    desk.commit(1, after_s=0)
    desk.run.take(5, selected)
    desk.shows(1)
    before = desk.commit(6)
    assert ("send 5" in desk.client.said) == (selected.history is not None)
    desk.shows(2, last_row=5)

    assert [before, desk.commit(6)] == confirmed


def test_an_effect_is_had_with_the_first_row_behind_it(desk: Desk) -> None:
    """Of a later number than its own."""
    desk.started()
    desk.run.take(0, Selected(config={"lr": 1}))
    desk.commit(1, after_s=0)
    desk.take(1)
    desk.commit(2, after_s=0)
    desk.shows(1, last_row=1)

    assert desk.commit(2) == 2


def test_a_smaller_answer_takes_nothing_back(desk: Desk) -> None:
    """One of several machines behind a server is late."""
    desk.started()
    desk.take(0, 1, 2)
    desk.shows(3)
    assert desk.commit(3) == 3
    desk.take(3)
    desk.shows(1)

    assert desk.commit(4) == 3
    assert desk.link.value == Link(is_open=True, last_row=2, count=3)


def test_rows_that_the_server_lacks_are_said_once(desk: Desk, caplog: Any) -> None:
    """It counts fewer than were sent up to the row that it shows."""
    desk.started(View(True, 2, 1))
    desk.take(2, 3, 4)
    desk.shows(4, last_row=3)
    assert desk.commit(5) == 0 and caplog.text == ""
    desk.take(5, 6)
    desk.shows(5, last_row=5)
    desk.commit(7)
    desk.shows(6, last_row=6)
    desk.commit(7)

    (said,) = caplog.records
    assert "counts 5 rows up to row 5, where 6 were sent" in said.getMessage()


def test_a_server_that_is_silent_for_long_is_away(desk: Desk) -> None:
    """A minute after its last answer, whenever it was asked since."""
    desk.started()
    desk.take(0)
    desk.shows(1)
    assert desk.commit(1) == 1
    desk.server.shown = None
    desk.take(1)

    assert desk.commit(2) == 1
    with pytest.raises(Away, match=f"no answer, for {AWAY_S:.0f} s"):
        desk.commit(2)


def test_a_refusal_is_told_by_the_next_commit_and_nothing_is_waited_for(desk: Desk) -> None:
    """The end of such a session takes no time: its rows are not coming."""
    desk.started()
    desk.client.fails = {"check"}
    with pytest.raises(client.Refused):
        desk.commit(1)

    desk.run.close()

    assert desk.client.said == ["abandon"] and desk.server.asked == 0
    assert desk.link.value.is_open


@pytest.mark.parametrize("fails", ["send", "config"])
def test_a_row_that_could_not_be_sent_ends_the_session_unclean(desk: Desk, fails: str) -> None:
    """wandb-core is gone: what it still had is not known."""
    desk.started()
    desk.client.fails = {fails}
    with pytest.raises(SinkUnavailable):
        desk.run.take(0, Selected(history={"x": 1}, config={"lr": 1}))

    desk.run.close()

    assert desk.client.said[-1] == "abandon" and "finish 1" not in desk.client.said


def test_a_finish_waits_until_the_server_shows_the_last_row(desk: Desk) -> None:
    """Then nothing is on its way any more, and the link says so."""
    desk.started()
    desk.take(0, 1)
    desk.commit(2, after_s=0)
    desk.shows(1)
    desk.server.on_pause = lambda: desk.shows(2)

    spot = desk.run.finish(Spot(2), FINISHED)

    assert spot.row == 2 and desk.client.said[-1] == "finish 0"
    assert desk.link.value == Link(is_open=False, last_row=1, count=2)
    desk.run.close()
    assert desk.client.said[-1] == "finish 0"


def test_a_finish_without_the_last_rows_is_none(desk: Desk) -> None:
    """The server had half a minute for them."""
    desk.started()
    desk.take(0, 1)
    desk.shows(1)
    began = desk.clock.mono

    with pytest.raises(client.Refused, match="rows up to 0, 1 was sent"):
        desk.run.finish(Spot(2), FINISHED)

    assert desk.link.value.is_open
    assert CONFIRM_S <= (desk.clock.mono - began) / 1e9 < CONFIRM_S + 2


def test_a_finish_without_new_rows_is_held_to_those_that_were_there(desk: Desk) -> None:
    """Everything was sent by an earlier process."""
    desk.started(View(True, 3, 2))

    assert desk.run.finish(Spot(3), FINISHED).row == 3
    assert desk.server.asked == 1
    assert desk.client.said == ["summary telemetry/run_status", "finish 0"]
    assert desk.link.value == Link(is_open=False, last_row=2, count=3)


def test_a_server_that_shows_no_rows_is_believed_after_a_clean_finish(desk: Desk) -> None:
    """Some show none at all."""
    desk.started()
    desk.take(0)
    desk.server.shown = View(exists=True, journal="its uuid")

    assert desk.run.finish(Spot(1), FINISHED).row == 1
    assert not desk.link.value.is_open


def test_a_close_ends_a_session_that_goes_on_later(desk: Desk) -> None:
    """W&B shows it as preempted; the link is closed as at a finish."""
    desk.started()
    desk.take(0)
    desk.commit(1, after_s=0)
    desk.shows(1)

    desk.run.close()

    assert desk.client.said == ["send 0", "preempting", "finish 1"]
    assert desk.link.value == Link(is_open=False, last_row=0, count=1)
    desk.run.close()
    assert len(desk.client.said) == 3


def test_a_run_of_a_sweep_is_never_marked_as_preempted(tmp_path: Path, monkeypatch: Any) -> None:
    """W&B would give it to an agent again."""
    desk = Desk(tmp_path / "run", monkeypatch, wandb_sweep_id="sweep").started()
    desk.shows(0)

    desk.run.close()

    assert desk.client.said == ["finish 1"]


def test_a_close_that_fails_is_said_and_leaves_the_link_open(desk: Desk, caplog: Any) -> None:
    """The next process waits until the server stands still."""
    desk.started()
    desk.take(0)
    desk.client.fails = {"finish"}

    desk.run.close()

    assert desk.client.said[-1] == "abandon" and desk.link.value.is_open
    assert "closed unclean: no finish" in caplog.text


def test_positions_that_wait_for_the_server_are_thinned_out(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is slow for days costs no memory, and the newest position is kept."""
    monkeypatch.setattr(online, "MAX_SNAPSHOTS", 10)
    desk.started()
    for row in range(100):
        desk.take(row)
        desk.commit(row + 1, after_s=0)
    assert len(desk.run._snapshots) <= 10
    desk.shows(100)

    assert desk.commit(100) == 100
