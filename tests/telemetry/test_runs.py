"""The life of a run: when it ends, as what, who reopens it, and what a restart knows of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.events import ConfigUpdated, Gap, RunFinished
from telemetry.ingest.runs import Runs
from telemetry.journal.writer import JournalFull, JournalWriter
from telemetry.json_files import read_json, write_json
from tests.fakes import ManualClock
from tests.telemetry.wire_client import (
    LOST_AFTER_S,
    Producer,
    Station,
    acks,
    finished,
    metric,
    started,
)


def run_file(station: Station, run_id: str = "r") -> Path:
    return station.path / "runs" / run_id / "run.json"


def info(station: Station, run_id: str = "r") -> dict[str, object]:
    return read_json(run_file(station, run_id)) or {}


def begun(station: Station, session: str = "s1", **place: object) -> Producer:
    """A producer that has introduced its run."""
    producer = Producer(station, session, **place)
    producer.hello()
    producer.emit(started(), metric(0))
    station.ingest.commit()
    return producer


# --- run.json


def test_run_json_says_what_rank_0_said(station):
    """People, tools and sinks read it instead of the journal."""
    producer = begun(station)
    producer.emit(ConfigUpdated(config={"layers": 4}))
    station.ingest.commit()

    told = info(station)

    assert (told["run_id"], told["name"], told["project"], told["host"]) == ("r", "n", "p", "node1")
    assert told["config"] == {"layers": 4} and told["state"] == "running"


def test_run_json_never_says_what_is_not_in_the_journal(station):
    """It follows the journal's sync."""
    producer = Producer(station)
    producer.hello()

    producer.emit(started())

    assert "name" not in info(station)


def test_other_ranks_do_not_change_what_rank_0_said(station):
    """They introduce a run only where rank 0 has not done so yet."""
    begun(station)
    other = Producer(station, "s2", source="rank1", peer=b"rank1")
    other.hello()
    other.emit(started(name="other"), finished("failed"))
    station.settle()

    told = info(station)

    assert told["name"] == "n" and "status" not in told and told["state"] == "running"


@pytest.mark.parametrize("damage", ["removed", "older", "torn"])
def test_a_restart_learns_from_the_journal_what_run_json_misses(station, damage):
    """A crash came before it was written, or somebody removed it."""
    producer = begun(station)
    before = run_file(station).read_bytes()
    producer.emit(ConfigUpdated(config={"layers": 4}), finished())
    station.ingest.commit()
    station.killed()
    if damage == "removed":
        run_file(station).unlink()
    else:
        run_file(station).write_bytes(before if damage == "older" else before[:20])

    station = station.restarted()
    station.settle()

    told = info(station)
    assert told["name"] == "n" and told["config"] == {"layers": 4}
    assert told["state"] == "ended" and told["status"] == "finished"


def test_a_restart_knows_that_a_new_session_goes_on_after_an_end(station):
    """run.json is older than the new session: its old status would end the run at once."""
    producer = begun(station)
    producer.emit(finished("failed"))
    producer.fin()
    station.settle()
    before = run_file(station).read_bytes()
    begun(station, "s2", peer=b"second")
    station.killed()
    run_file(station).write_bytes(before)

    station = station.restarted()
    station.settle()

    assert info(station)["state"] == "running" and "status" not in info(station)


def test_a_run_json_that_can_not_be_written_now_is_written_later(station):
    """Its content is in the journal, so acknowledgements do not wait for it. Row 11."""
    producer = Producer(station)
    producer.hello()
    producer.emit(started())
    # No file can be written beside run.json, which is how it is replaced.
    in_the_way = run_file(station).with_name(".run.json.tmp")
    in_the_way.mkdir()
    acknowledged = acks(producer.committed())
    producer.emit(finished())
    station.settle()
    while_full = info(station)
    in_the_way.rmdir()
    station.settle()

    assert acknowledged == [0] and while_full.get("state") != "ended"
    assert info(station)["state"] == "ended" and info(station)["status"] == "finished"


def test_run_json_never_says_what_there_was_no_room_to_sync(station):
    """It follows the journal's sync, never comes before it. Row 11."""
    producer = begun(station)
    before = run_file(station).read_bytes()

    with station.journals.failing("*", JournalFull("full")):
        producer.emit(ConfigUpdated(config={"layers": 4}), finished())
        station.settle()
        while_full = run_file(station).read_bytes()

    assert while_full == before


@pytest.mark.parametrize(
    ("last", "learned"),
    [
        (ConfigUpdated(config={"layers": 4}), {"config": {"layers": 4}}),
        (finished(), {"status": "finished"}),
        (started(name="again"), {"name": "again"}),
    ],
    ids=["config", "finish", "start"],
)
def test_what_the_very_last_row_says_is_learned_by_a_restart(station, last, learned):
    """run.json was written just before it, and the process killed. Row 1."""
    producer = begun(station)
    producer.emit(metric(1), metric(2))
    station.ingest.commit()
    # As of the last row but one: the mark and run.json differ by just one row.
    write_json(run_file(station), {**info(station), "as_of_row": 4})
    producer.emit(last)
    station.runs.get("r").writer.sync()

    station = station.restarted()

    told = info(station)
    assert {key: told[key] for key in learned} == learned and told["as_of_row"] == 5


BRACKETS = b"[" * 100_000
RUN_FILES = {
    "empty": b"",
    "brackets": BRACKETS,
    "brackets in a value": b'{"config": ' + BRACKETS,
    "a list": b"[1]",
    "a text": b'"run"',
    "null": b"null",
    "not utf-8": b"\xff\xfe{}",
    "zeros": bytes(4096),
    "another run": b'{"run_id": "q", "state": "ended", "as_of_row": 2}',
    "no state": b'{"run_id": "r", "as_of_row": 2}',
    "an unknown state": b'{"run_id": "r", "as_of_row": 2, "state": "x"}',
}
FIELDS = {
    "as_of_row": ["x", -1, 2**70, 1e300, None, [], 7],
    "endings": ["x", -1, 2**70, None, {}],
    "config": [3, "x", [], None],
    "status": [3, [], {}],
    "sessions": [3, "x", [], {"order": 3}, {"order": [[]], "newest": {}}],
    "name": [3, [], {}],
    "tags": [3, "x", [3]],
    "process": [3, {"pid": "x"}],
    "processes": [3, [], {"rank0": 3}, {"rank0": ["h"]}, {"rank0": ["h", "x", 1]}],
    "run_id": [3, "other", None],
    "state": [3, "x", None, []],
    "started_wall_ns": ["x", []],
}


def assert_goes_on(station: Station) -> None:
    """The damaged run is rebuilt from its journal; it and the other one go on and end."""
    for run_id in ("r", "q"):
        producer = Producer(station, "s1", run_id=run_id, peer=run_id.encode())
        assert producer.hello().next_seq == 2
        producer.emit(finished())
        producer.fin()
    station.settle()
    station.killed()
    for run_id in ("r", "q"):
        told = info(station, run_id)
        assert (told["name"], told["state"], told["status"]) == ("n", "ended", "finished")
        assert told["as_of_row"] == 3 and len(station.rows(run_id)) == 3


@pytest.mark.parametrize("content", RUN_FILES.values(), ids=RUN_FILES.keys())
def test_a_run_json_of_any_content_is_made_anew_from_the_journal(station, content):
    """One bad file keeps neither its own run nor another from going on. Row 44."""
    begun(station)
    begun(station, run_id="q", peer=b"q")
    station.killed()
    run_file(station).write_bytes(content)

    station = station.restarted()

    assert info(station)["name"] == "n"
    assert_goes_on(station)


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, values in FIELDS.items() for v in values]
)
def test_a_field_of_run_json_of_any_type_is_learned_anew(station, field, value):
    """As of a row that was never written, with endings that are no number. Row 44."""
    begun(station)
    begun(station, run_id="q", peer=b"q")
    station.killed()
    run_file(station).write_text(json.dumps({**info(station), field: value}))

    station = station.restarted()

    assert_goes_on(station)


@pytest.mark.parametrize("name", ["run.json", "journal/durable", "cursors", "quarantine"])
def test_a_directory_in_the_place_of_a_file_keeps_no_other_run_from_going_on(station, name, caplog):
    """Or a file in that of a directory. Row 44."""
    begun(station)
    begun(station, run_id="q", peer=b"q")
    station.killed()
    place = station.path / "runs" / "r" / name
    if place.is_file():
        place.unlink()
        place.mkdir()
    else:
        place.write_text("x")

    station = station.restarted()

    producer = Producer(station, "s1", run_id="q", peer=b"q")
    assert producer.hello().next_seq == 2


def test_a_run_made_anew_has_an_ending_that_no_sink_was_done_with(station):
    """run.json was lost: a sink that had an earlier end must not take this one for that."""
    producer = begun(station)
    producer.emit(finished())
    producer.fin()
    station.settle()
    cursors = station.path / "runs" / "r" / "cursors"
    cursors.mkdir()
    write_json(cursors / "tensorboard.json", {"done": True, "ending": 1, "row": 3})
    run_file(station).unlink()

    station = station.restarted()
    station.settle()

    assert info(station)["state"] == "ended" and info(station)["endings"] == 2


# --- ends


def test_a_run_ends_with_rank_0s_last_word(station):
    """Sinks finish then."""
    producer = begun(station)
    producer.emit(finished())

    station.settle()

    assert info(station)["state"] == "ended" and info(station)["status"] == "finished"


def test_a_run_is_not_ended_before_its_last_word_is_on_disk(station):
    """Sinks would finish without it. Row 11."""
    producer = begun(station)

    with station.journals.failing("*", JournalFull("full")):
        producer.emit(finished())
        station.settle()
        while_full = info(station)["state"]
    station.settle()

    assert while_full == "running" and info(station)["state"] == "ended"


def test_a_run_waits_for_its_other_ranks_at_most_30_s(station):
    """They have their last steps to tell."""
    producer = begun(station)
    other = Producer(station, "s2", source="rank1", peer=b"rank1")
    other.hello()
    producer.emit(finished())
    station.settle()
    before = info(station)["state"]
    station.wait(29)
    station.settle()
    still = info(station)["state"]

    station.wait(2)
    station.settle()

    assert (before, still, info(station)["state"]) == ("running", "running", "ended")


def test_a_run_ends_when_its_other_ranks_said_fin(station):
    """Nobody has to wait then."""
    producer = begun(station)
    other = Producer(station, "s2", source="rank1", peer=b"rank1")
    other.hello()
    producer.emit(finished())
    other.fin()

    station.settle()

    assert info(station)["state"] == "ended"


def test_without_a_live_trainer_a_run_is_lost_and_says_since_when(station):
    """Its trainer was killed. Row 2."""
    begun(station)
    station.wait(LOST_AFTER_S - 1)
    station.settle()
    before = info(station)["state"]
    station.wait(2)

    station.settle()

    assert before == "running"
    gap, lost = station.events()[-2:]
    assert isinstance(gap, Gap) and gap.unknown_ms == pytest.approx((LOST_AFTER_S + 1) * 1e3)
    assert isinstance(lost, RunFinished) and lost.status == "lost"
    assert info(station)["state"] == "ended" and info(station)["status"] == "lost"


def test_a_lost_run_tells_the_whole_time_since_its_last_word(station):
    """Also the first seconds, in which nobody could know yet. Row 2."""
    begun(station)
    silent_s = 0
    while info(station)["state"] == "running":
        station.wait(1)
        silent_s += 1
        station.settle()

    (gap,) = [event for event in station.events() if isinstance(event, Gap)]
    assert LOST_AFTER_S < silent_s < LOST_AFTER_S + 3
    assert gap.unknown_ms == silent_s * 1e3


def test_the_last_word_of_an_abandoned_run_is_where_its_silence_begins(station):
    """No tick came in between."""
    producer = begun(station)
    station.wait(3)
    producer.emit(metric(1))
    station.wait(5)

    station.ingest.declare_abandoned()
    station.settle()

    (gap,) = [event for event in station.events() if isinstance(event, Gap)]
    assert gap.unknown_ms == 5e3


def test_a_run_is_declared_lost_once_even_while_the_disk_is_full(station):
    """Its end waits for room. Row 11."""
    begun(station)
    station.wait(LOST_AFTER_S + 1)

    with station.journals.failing("*", JournalFull("full")):
        for _ in range(5):
            station.settle()
        while_full = info(station)["state"]
    station.settle()

    assert while_full == "running" and info(station)["state"] == "ended"
    assert [type(e) for e in station.events()[2:]] == [Gap, RunFinished]


def test_a_keepalive_keeps_a_run_alive(station):
    """An evaluation may take an hour without one event."""
    producer = begun(station)
    for _ in range(100):
        station.wait(10)
        producer.hello()
        station.settle()

    assert info(station)["state"] == "running" and len(station.rows()) == 2


def test_a_trainer_that_was_declared_lost_too_early_goes_on(station):
    """Its machine was suspended: the run stays open until it really ends."""
    producer = begun(station)
    station.wait(LOST_AFTER_S + 1)
    station.settle()
    ended = info(station)["state"]
    producer.hello()
    producer.emit(metric(1))
    for _ in range(3):
        station.settle()
    going_on = info(station)["state"]

    producer.emit(finished())
    station.settle()

    assert (ended, going_on) == ("ended", "running")
    assert info(station)["state"] == "ended" and info(station)["status"] == "finished"


def test_a_new_session_reopens_an_ended_run(station):
    """A restart from a checkpoint: same run, and not finished any more. Row 33."""
    producer = begun(station)
    producer.emit(finished("preempted"))
    producer.fin()
    station.settle()
    ended = info(station)

    second = begun(station, "s2", peer=b"second")
    station.settle()
    reopened = info(station)
    second.emit(finished())
    station.settle()

    assert ended["state"] == "ended" and ended["status"] == "preempted"
    assert reopened["state"] == "running" and "status" not in reopened
    assert info(station)["state"] == "ended" and info(station)["status"] == "finished"
    assert info(station)["endings"] == 2


@pytest.mark.parametrize("is_restarted", [False, True])
def test_late_events_of_an_old_session_are_kept_and_the_run_ends_again(station, is_restarted):
    """The spool of a killed trainer comes in after its run was given up. Rows 2 and 22."""
    begun(station)
    station.wait(LOST_AFTER_S + 1)
    station.settle()
    if is_restarted:
        station = station.restarted()

    orphan = Producer(station, "s1", peer=b"adopter", number=2, late=True)
    orphan.hello()
    orphan.emit(metric(1))
    orphan.fin()
    station.settle()
    station.killed()

    assert station.steps() == [0, 1]
    assert info(station)["state"] == "ended" and info(station)["status"] == "lost"
    # What sinks go by: there is more than they had at the first end.
    assert info(station)["endings"] == 2


def test_a_run_waits_for_a_session_that_is_newer_than_the_one_that_finished(station):
    """Two jobs with one id, or a notebook cell again. Row 40."""
    first = begun(station)
    second = begun(station, "s2", peer=b"second")
    first.emit(finished())
    station.settle()
    while_second_is_at_work = info(station)

    second.emit(finished("failed"))
    station.settle()

    assert while_second_is_at_work["state"] == "running"
    assert "status" not in while_second_is_at_work
    assert info(station)["state"] == "ended" and info(station)["status"] == "failed"


def test_a_run_waits_for_an_older_session_as_long_as_it_brings_events(station):
    """The newest has finished; who only says that it lives is waited for 300 s. Row 40."""
    first = begun(station)
    second = begun(station, "s2", peer=b"second")
    second.emit(finished())
    for step in range(40):
        station.wait(10)
        first.emit(metric(step))
        station.settle()
    while_it_speaks = info(station)["state"]
    for _ in range(29):
        station.wait(10)
        first.hello()
        station.settle()
    while_it_is_waited_for = info(station)["state"]
    for _ in range(2):
        station.wait(10)
        first.hello()
        station.settle()

    assert (while_it_speaks, while_it_is_waited_for) == ("running", "running")
    assert info(station)["state"] == "ended" and info(station)["status"] == "finished"


def test_a_worker_decides_nothing_about_the_end_of_its_run(station):
    """Its keepalives keep no run open, its last word ends none, and neither is it lost."""
    producer = begun(station)
    worker = Producer(station, "w", source="rank0.worker0", peer=b"worker")
    worker.hello()
    worker.emit(started(name="worker"), metric(0), finished("failed"))
    station.settle()
    after_its_word = info(station)
    producer.emit(finished())
    for _ in range(4):
        station.wait(10)
        worker.hello()
        station.settle()

    assert after_its_word["state"] == "running" and after_its_word["name"] == "n"
    assert info(station)["state"] == "ended" and info(station)["status"] == "finished"


def test_a_worker_whose_parent_is_gone_does_not_keep_the_run_from_being_lost(station):
    """It says that it lives, and nothing else."""
    begun(station)
    worker = Producer(station, "w", source="rank0.worker0", peer=b"worker")
    worker.hello()
    for _ in range(int(LOST_AFTER_S / 10) + 2):
        station.wait(10)
        worker.hello()
        station.settle()

    assert info(station)["state"] == "ended" and info(station)["status"] == "lost"


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_run_that_only_late_spools_tell_of_is_named_and_ends_by_them(station, is_restarted):
    """Trained without a sidecar, taken in afterwards. Row 22."""
    orphan = Producer(station, "s1", peer=b"carrier", number=2, late=True)
    orphan.hello()
    orphan.emit(started(), metric(0), finished())
    orphan.fin()
    station.ingest.commit()
    if is_restarted:
        station = station.restarted()
    station.settle()

    assert info(station)["name"] == "n"
    assert info(station)["state"] == "ended" and info(station)["status"] == "finished"


def test_a_late_spool_tells_that_a_lost_run_had_finished(station):
    """The trainer's last word came to its spool and no further. Row 22."""
    begun(station)
    station.wait(LOST_AFTER_S + 1)
    station.settle()
    orphan = Producer(station, "s1", peer=b"carrier", number=2, late=True)
    orphan.hello()
    orphan.emit(finished())
    orphan.fin()
    station.settle()

    assert info(station)["state"] == "ended" and info(station)["status"] == "finished"


@pytest.mark.parametrize("how", ["a minute", "lost", "a restart"])
def test_a_run_that_nobody_introduces_is_shown_under_its_id(station, how):
    """After a minute, or when it has ended: late by 200 ms is not without."""
    producer = Producer(station, "s1", source="rank1")
    producer.hello()
    producer.emit(metric(0))
    station.settle()
    at_once = info(station)
    if how == "a restart":
        station = station.restarted()
        station.settle()
    seconds = LOST_AFTER_S + 1 if how == "lost" else 61
    station.wait(seconds)
    station.settle()

    assert "name" not in at_once
    told = info(station)
    assert (told["name"], told["is_introduced"]) == ("r", False)
    assert told["state"] == ("ended" if how == "lost" else "running")


def test_a_run_that_finishes_without_an_introduction_is_shown_under_its_id(station):
    """A script that forgets RunStarted, and is over within a second."""
    producer = Producer(station, "s1")
    producer.hello()
    producer.emit(metric(0))
    producer.emit(finished())
    producer.fin()
    station.settle()

    told = info(station)
    assert (told["name"], told["is_introduced"]) == ("r", False)
    assert (told["state"], told["status"]) == ("ended", "finished")


def test_a_run_that_is_introduced_late_has_the_name_it_was_given(station):
    """It was shown under its id meanwhile."""
    other = Producer(station, "s2", source="rank1", peer=b"rank1")
    other.hello()
    other.emit(metric(0))
    station.settle()
    station.wait(61)
    station.settle()

    begun(station)

    assert info(station)["name"] == "n" and info(station)["is_introduced"] is True


@pytest.mark.parametrize("is_power_cut", [False, True])
def test_rows_behind_an_end_are_found_after_a_crash_between_journal_and_run_json(
    station, is_power_cut
):
    """Late events were journaled; run.json still says that the run is over. A power cut takes
    the newest mark as well, for that is not synced each time."""
    begun(station)
    station.wait(LOST_AFTER_S + 1)
    station.settle()
    before = run_file(station).read_bytes()
    mark = run_file(station).parent / "journal" / "durable"
    mark_before = mark.read_bytes()
    orphan = Producer(station, "s1", peer=b"adopter", late=True)
    orphan.hello()
    orphan.emit(metric(1))
    station.ingest.commit()
    station.killed()
    run_file(station).write_bytes(before)
    if is_power_cut:
        mark.write_bytes(mark_before)

    station = station.restarted()
    station.settle()

    assert info(station)["state"] == "ended" and info(station)["endings"] == 2


def test_an_ended_run_is_closed_and_opened_again_when_needed(station):
    """A sidecar that serves for months holds no descriptor of finished runs."""
    producer = begun(station)
    producer.emit(finished())
    producer.fin()
    station.settle()

    assert station.runs.get("r") is None
    assert begun(station, "s2").next_seq == 2


def test_a_run_of_a_former_sidecar_is_lost_when_nobody_comes_back(station):
    """It is opened at the start, and waited for."""
    begun(station)

    station = station.restarted()
    station.settle()
    before = info(station)["state"]
    station.wait(LOST_AFTER_S + 1)
    station.settle()

    assert before == "running" and info(station)["status"] == "lost"


def test_a_run_that_can_not_be_opened_keeps_no_other_from_it(station, caplog):
    """Its journal is held by somebody else, perhaps."""
    begun(station)
    begun(station, run_id="q", peer=b"q")
    station.killed()

    with JournalWriter(station.path / "runs" / "q" / "journal"):
        station = station.restarted()

        assert [run.run_id for run in station.runs] == ["r"]
        assert "q" in caplog.text
        # And a run that failed to open is not held by ourselves: see the next line.
    assert begun(station, "s9", run_id="q", peer=b"q2").next_seq == 2


class BrokenJournal(JournalWriter):
    """A journal that can be opened, and says nothing."""

    @property
    def durable_row(self) -> int:
        raise RuntimeError("no")


def test_a_run_whose_opening_failed_halfway_can_be_opened_later(tmp_path):
    """Its lock was let go."""
    with pytest.raises(RuntimeError):
        Runs(tmp_path, "s", ManualClock(), open_journal=BrokenJournal).open("r")

    runs = Runs(tmp_path, "s", ManualClock())

    assert runs.open("r").run_id == "r"
    runs.close()


# --- the end of the sidecar


def test_what_has_not_finished_is_lost_when_all_producers_are_gone(station):
    """`run -- CMD`: the command has ended, and nobody will come back."""
    begun(station)
    done = begun(station, run_id="done", peer=b"done")
    done.emit(finished())
    station.settle()

    station.ingest.declare_abandoned()
    station.settle()

    assert info(station)["state"] == "ended" and info(station)["status"] == "lost"
    assert info(station, "done")["status"] == "finished"


def test_the_hosts_own_run_finishes_with_the_sidecar_and_goes_on_with_the_next(station):
    """It is never lost: it lasts as long as somebody watches."""
    for expected_endings in (1, 2):
        sampler = Producer(station, "hw", "host-node1", "hardware:node1", b"hw")
        sampler.hello()
        sampler.emit(metric(0))
        station.settle()
        running = info(station, "host-node1")
        station.host_run.finish(station.runs)
        ended = info(station, "host-node1")
        assert running["state"] == "running" and "status" not in running
        assert ended["state"] == "ended" and ended["status"] == "finished"
        assert ended["endings"] == expected_endings
        station = station.restarted()


def test_run_json_is_json_for_people(station):
    """Indented, and with a newline at its end."""
    begun(station)

    text = run_file(station).read_text()

    assert text.endswith("}\n") and json.loads(text)["run_id"] == "r"


def test_a_run_that_began_and_ended_between_two_looks_is_told_of(station):
    """However short it was, and although its journal is closed again."""
    producer = begun(station)
    producer.emit(finished("finished"))
    producer.fin()
    station.ingest.commit()

    station.ingest.tick()
    station.ingest.tick()

    assert station.runs.get("r") is None, "it should have been released"
    assert station.runs.told_of == {"r"}
