"""Main sessions: which is the newest, and what status a run has by how each of them ended."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.events import ConfigUpdated, RunFinished, RunStarted
from telemetry.sessions import SESSIONS_MAX, MainSessions, begins_newest, is_worker

STARTED = RunStarted(project="p", name="n")


def over(status: str, code: int | None = 0) -> RunFinished:
    return RunFinished(status=status, exit_code=code)


def status_of(sessions: MainSessions) -> str | None:
    return None if sessions.ending is None else sessions.ending.status


def test_only_a_run_started_of_rank_0_that_is_not_late_begins_the_newest_session():
    """Ranks, workers, the sidecar and the spools of former sessions do not."""
    assert begins_newest("rank0", STARTED, is_late=False)
    assert not begins_newest("rank0", STARTED, is_late=True)
    assert not begins_newest("rank1", STARTED, is_late=False)
    assert not begins_newest("rank0.worker0", STARTED, is_late=False)
    assert not begins_newest("sidecar", STARTED, is_late=False)
    assert not begins_newest("rank0", ConfigUpdated(config={}), is_late=False)


@pytest.mark.parametrize(
    ("source", "expected"),
    [("rank0.worker3", True), ("rank12.worker0", True), ("rank0", False), ("sidecar", False)],
)
def test_a_worker_is_known_by_its_source(source, expected):
    """`rank<n>.worker<m>`."""
    assert is_worker(source) is expected


def test_the_status_is_that_of_the_newest_session_once_it_has_finished():
    """What finished before it does not end a run that goes on."""
    sessions = MainSessions()
    sessions.began("a", is_late=False)
    sessions.finished("a", over("failed", 1))
    assert status_of(sessions) == "failed"

    sessions.began("b", is_late=False)

    assert sessions.newest == "b" and status_of(sessions) is None
    sessions.finished("b", over("finished"))
    assert status_of(sessions) == "finished"


def test_an_older_session_that_ends_later_does_not_end_the_run():
    """Two jobs with one id: the newer one goes on. Row 40."""
    sessions = MainSessions()
    sessions.began("a", is_late=False)
    sessions.began("b", is_late=False)

    sessions.finished("a", over("finished"))

    assert status_of(sessions) is None


def test_a_run_is_lost_only_if_none_of_its_sessions_finished():
    """One that finished says more than silence does."""
    sessions = MainSessions()
    sessions.began("a", is_late=False)
    sessions.given_up(over("lost", None))
    assert status_of(sessions) == "lost"

    sessions.finished("a", over("finished"))  # its spool comes in after all
    sessions.began("b", is_late=False)
    sessions.given_up(over("lost", None))

    assert status_of(sessions) == "finished" and sessions.ending.session == "a"


def test_a_late_session_never_takes_the_place_of_the_newest():
    """Neither by its start nor by its end."""
    sessions = MainSessions()
    sessions.began("b", is_late=False)

    sessions.began("a", is_late=True)
    sessions.finished("a", over("failed", 1))

    assert sessions.newest == "b" and status_of(sessions) is None


def test_where_all_came_late_the_last_session_decides():
    """A training without a sidecar, whose spool is taken in when it is over."""
    sessions = MainSessions()
    sessions.began("a", is_late=True)
    sessions.began("b", is_late=True)

    sessions.finished("b", over("finished"))

    assert sessions.newest == "b" and status_of(sessions) == "finished"


def test_a_session_that_was_given_up_too_early_goes_on():
    """Its machine was suspended."""
    sessions = MainSessions()
    sessions.began("a", is_late=False)
    sessions.given_up(over("lost", None))

    assert sessions.goes_on("a") and status_of(sessions) is None
    assert not sessions.goes_on("a")


def test_an_exit_code_said_in_a_sessions_place_is_its_ending():
    """`run` knows how the command ended."""
    sessions = MainSessions()
    sessions.began("a", is_late=False)

    sessions.given_up(over("failed", 3))

    assert sessions.ending is not None and tuple(sessions.ending) == ("a", "failed", 3)


steps = st.lists(
    st.tuples(
        st.sampled_from(["begin", "late", "finish", "lost", "go on"]), st.sampled_from("abcd")
    ),
    max_size=20,
)


@given(steps=steps, at=st.integers(0, 20))
def test_a_restart_in_between_changes_nothing(steps, at):
    """run.json carries all that is known."""
    whole, stopped = MainSessions(), MainSessions()
    for number, (what, session) in enumerate(steps):
        if number == at:
            stopped = MainSessions(json.loads(json.dumps(stopped.to_json())))
        for sessions in (whole, stopped):
            if what in ("begin", "late"):
                sessions.began(session, is_late=what == "late")
            elif what == "finish":
                sessions.finished(session, over("finished"))
            elif what == "lost":
                sessions.given_up(over("lost", None))
            else:
                sessions.goes_on(session)

    assert whole.to_json() == stopped.to_json() and whole.ending == stopped.ending


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
keys = st.sampled_from(["order", "newest", "is_lost", "endings"])


@given(known=json_values | st.dictionaries(keys, json_values))
def test_anything_that_a_file_may_hold_is_taken_as_far_as_it_goes(known):
    """Row 44."""
    sessions = MainSessions(known)
    sessions.began("a", is_late=False)

    assert sessions.newest == "a" and status_of(sessions) is None


def test_what_is_remembered_is_bounded():
    """A run that is restarted for years."""
    sessions = MainSessions()
    for number in range(3 * SESSIONS_MAX):
        sessions.began(f"s{number}", is_late=False)
        sessions.finished(f"s{number}", over("failed", 1))

    told = sessions.to_json()

    assert len(told["order"]) == len(told["endings"]) == SESSIONS_MAX
    assert sessions.newest == f"s{3 * SESSIONS_MAX - 1}" and status_of(sessions) == "failed"
