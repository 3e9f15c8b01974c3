"""Ingest: acknowledged means on disk, once and in order, whatever producers send."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import integers, lists, sampled_from, tuples

from shared.events import Gap, MessageLogged, MetricsLogged, encode_event, join_events
from shared.wire import WHOLE_STREAM, Ack, Nack, Welcome
from telemetry.ingest.streams import StreamTable
from telemetry.journal.writer import JournalFault, JournalFull
from telemetry.supervise.tombstones import write_tombstone
from tests.fakes import ManualClock
from tests.telemetry.wire_client import (
    Producer,
    Station,
    acks,
    finished,
    is_fin_acked,
    metric,
    nacks,
    packed,
    started,
)

# --- frames


def test_a_stream_is_welcomed_journaled_and_acknowledged(station):
    """The plain way of an event."""
    producer = Producer(station)
    welcome = producer.hello()
    replies = producer.emit(started(), metric(0))

    committed = producer.committed()

    assert isinstance(welcome, Welcome) and welcome.next_seq == 0 and welcome.credit_bytes > 0
    assert replies == [] and acks(committed) == [1]
    assert station.events() == [started(), metric(0)]


def test_nothing_is_acknowledged_before_it_is_synced(station):
    """What was received may be forgotten; what was acknowledged may not."""
    producer = Producer(station)
    producer.hello()
    producer.emit(started())

    durable_before = station.rows()

    assert acks(producer.replies) == [] and durable_before == []


def test_a_frame_that_came_before_is_acknowledged_again_and_not_journaled_again(station):
    """Perhaps the first answer was lost. Row 24: replayed frames."""
    producer = Producer(station)
    producer.hello()
    producer.emit(metric(0), metric(1))
    producer.committed()

    again = producer.frame(0, packed(metric(0), metric(1)))
    producer.committed()

    assert acks(again) == [1]
    assert station.steps() == [0, 1]


def test_a_repeated_frame_is_not_acknowledged_before_the_first_one_is_durable(station):
    """Its answer tells what is on disk, which is nothing yet."""
    producer = Producer(station)
    producer.hello()
    producer.emit(metric(0))

    again = producer.frame(0, packed(metric(0)))

    assert acks(again) == [-1]


def test_behind_a_hole_the_missing_frame_is_asked_for_once(station):
    """Not once for each of the frames that follow it; but again if it does not come."""
    producer = Producer(station)
    producer.hello()
    producer.emit(metric(0))

    first = producer.frame(5, packed(metric(5)))
    more = [producer.frame(n, packed(metric(n))) for n in range(6, 50)]
    station.wait(1)
    later = producer.frame(50, packed(metric(50)))

    assert first == later == [Welcome(1, 1, first[0].credit_bytes)]
    assert not any(more)
    producer.committed()
    assert station.steps() == [0]


def test_of_a_frame_that_overlaps_only_what_is_new_is_taken(station):
    """Ours are resent on their first boundaries; another client may cut them anew. A bad
    event in the part that is new is refused by its own number."""
    producer = Producer(station)
    producer.hello()
    producer.emit(metric(0), b"\xc0")

    replies = producer.frame(0, packed(metric(0), b"\xc0", metric(2), b"\xc0", metric(4)))

    assert nacks(replies) == [3]
    assert acks(producer.committed()) == [4]
    assert station.steps() == [0, 2, 4]
    assert [row.seq for row in station.rows()] == [0, 1, 2, 3, 4]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=lists(
        tuples(sampled_from(["frame", "commit", "kill", "reconnect"]), integers(0, 7)), max_size=30
    )
)
def test_any_order_of_frames_commits_and_kills_journals_each_event_once(tmp_path, script):
    """Frames lost, repeated and reordered; the sidecar killed: acknowledged events are
    there exactly once and in order, and nothing is there that was not sent."""
    frames = [packed(metric(2 * n), metric(2 * n + 1)) for n in range(8)]
    directory = tmp_path / os.urandom(8).hex()
    station = Station(directory, ManualClock())
    producer = Producer(station)
    producer.hello()
    acknowledged = -1
    for number, (action, which) in enumerate(script):
        if action == "frame":
            acknowledged = max([acknowledged, *acks(producer.frame(2 * which, frames[which]))])
        elif action == "commit":
            acknowledged = max([acknowledged, *acks(producer.committed())])
        else:
            station = station.restarted() if action == "kill" else station
            producer = Producer(station, peer=b"peer-%d" % number)
            producer.hello()
    station.killed()

    steps = station.steps() if (directory / "runs").exists() else []

    assert steps == list(range(len(steps)))
    assert len(steps) > acknowledged


def test_a_bad_event_is_answered_and_its_neighbours_are_acknowledged(station):
    """One NACK for each; the journal has a Gap there, and quarantine/ the bytes. Row 24."""
    producer = Producer(station)
    producer.hello()

    replies = producer.emit(metric(0), b"\xc0", metric(2), b"\xc0")

    assert nacks(replies) == [1, 3]
    assert acks(producer.committed()) == [3]
    kinds = [type(event) for event in station.events()]
    assert kinds == [MetricsLogged, Gap, MetricsLogged, Gap]
    assert [row.seq for row in station.rows()] == [0, 1, 2, 3]
    kept = sorted((station.path / "runs" / "r" / "quarantine").iterdir())
    assert [path.read_bytes() for path in kept] == [b"\xc0", b"\xc0"]
    assert station.ingest.counts["quarantined_events_total"] == 2


def test_a_frame_that_is_no_list_is_refused_kept_aside_and_counted(station):
    """Nothing of it is journaled; the stream goes on behind it. Row 24."""
    producer = Producer(station)
    producer.hello()

    replies = producer.frame(0, b"\xc0")
    producer.emit(metric(0))
    producer.committed()

    assert nacks(replies) == [0]
    assert station.steps() == [0]
    (kept,) = (station.path / "runs" / "r" / "quarantine").iterdir()
    assert kept.read_bytes() == b"\xc0"
    assert station.ingest.counts["quarantined_frames_total"] == 1


@pytest.mark.parametrize("end", ["frame", "fin"])
def test_a_client_that_insists_on_a_frame_that_is_no_list_gets_past_it(station, caplog, end):
    """What it sends behind it tells how many events it took that frame for: so many are
    missing. It is said and kept aside once. Row 24."""
    producer = Producer(station)
    producer.hello()
    producer.emit(metric(0))

    replies = [producer.frame(1, b"\xc0") for _ in range(3)]
    producer.frame(4, packed(metric(4))) if end == "frame" else producer.fin(4)
    answered = producer.committed()

    assert [nacks(answers) for answers in replies] == [[1]] * 3
    assert acks(answered) == ([4] if end == "frame" else [3])
    assert is_fin_acked(answered) is (end == "fin")
    (gap,) = [event for event in station.events() if isinstance(event, Gap)]
    assert gap.count == 3 and "not a frame" in gap.reason
    assert station.steps() == ([0, 4] if end == "frame" else [0])
    assert len(list((station.path / "runs" / "r" / "quarantine").iterdir())) == 1
    assert station.ingest.counts["quarantined_frames_total"] == 1
    assert caplog.text.count("refused") == 1


def test_a_frame_of_too_many_events_is_refused_whole(station):
    """It would not fit into a record. Row 24."""
    producer = Producer(station)
    producer.hello()
    count = 70_000

    replies = producer.frame(0, b"\xdd" + count.to_bytes(4, "big") + b"\xc0" * count)

    assert nacks(replies) == [0]
    assert station.ingest.pending_bytes == 0


def test_an_unknown_stream_is_refused_whole(station):
    """Data and FIN without HELLO: the emitter asks again, with one."""
    producer = Producer(station)

    assert nacks(producer.emit(metric(0))) == nacks(producer.fin()) == [WHOLE_STREAM]


def test_messages_that_only_a_sidecar_says_are_counted_and_ignored(station):
    """Forged acknowledgements are no business of ours. Row 24."""
    producer = Producer(station)

    assert producer.say(Ack(1, 5, 0)) == producer.say(Welcome(1, 5, 0)) == []
    assert station.ingest.counts["unexpected_messages_total"] == 2


def test_the_order_of_the_journal_survives_a_wall_clock_that_steps_back(station):
    """Both clocks are kept as they were said. Row 28."""
    producer = Producer(station)
    producer.hello()
    hour = 3_600_000_000_000
    producer.emit(encode_event(metric(0), 2 * hour, 10))
    station.clock.wall -= hour
    producer.emit(encode_event(metric(1), hour, 20))
    producer.committed()

    rows = station.rows()

    assert station.steps() == [0, 1]
    assert [(r.envelope.wall_ns, r.envelope.mono_ns) for r in rows] == [(2 * hour, 10), (hour, 20)]


# --- FIN


def test_fin_is_acknowledged_when_all_is_on_disk(station):
    """Not before."""
    producer = Producer(station)
    producer.hello()
    producer.emit(metric(0))

    at_once = producer.fin()

    assert at_once == []
    assert is_fin_acked(producer.committed())


def test_a_fin_beyond_what_came_is_answered_with_where_the_stream_stands(station):
    """A forged or early FIN ends nothing. Row 24."""
    producer = Producer(station)
    producer.hello()
    producer.emit(metric(0))

    replies = producer.fin(2)

    assert [(type(r), r.next_seq) for r in replies] == [(Welcome, 1)]
    assert not is_fin_acked(producer.committed())


# --- who may speak


def test_several_live_sessions_of_a_source_are_all_recorded(station):
    """A notebook cell run again, two jobs with one id: each is a stream with its own
    numbers. Row 40."""
    producers = [Producer(station, f"s{n}", peer=b"peer%d" % n) for n in range(3)]
    answers = [producer.hello() for producer in producers]
    for step in range(4):
        for producer in producers:
            producer.emit(metric(step))

    acknowledged = station.ingest.commit()

    assert all(isinstance(answer, Welcome) for answer in answers)
    assert sorted(m.durable_seq for _, m in acknowledged) == [3, 3, 3]
    for producer in producers:
        told = [row.seq for row in station.rows() if row.session == producer.session]
        assert told == [0, 1, 2, 3]


def messages_of(station: Station) -> list[str]:
    return [event.text for event in station.events() if isinstance(event, MessageLogged)]


@pytest.mark.parametrize("says", ["hello", "events"])
def test_two_live_main_sessions_are_told_of_once_on_both_sides_and_in_the_journal(
    station, caplog, says
):
    """Two jobs with one id. Row 40."""
    first, second = Producer(station), Producer(station, "s2", peer=b"other")
    first.hello()
    second.hello()

    for step in range(5):
        for producer in (first, second):
            producer.hello() if says == "hello" else producer.emit(metric(step))
    answers = [reply for _, reply in station.ingest.commit()]
    answers += first.replies + second.replies

    assert len(messages_of(station)) == 1 and "two live sessions" in messages_of(station)[0]
    assert len([record for record in caplog.records if "two live" in record.message]) == 1
    assert len([answer for answer in answers if getattr(answer, "notice", "")]) == 2
    (said,) = [row for row in station.rows() if isinstance(row.envelope.event(), MessageLogged)]
    assert said.source == "sidecar" and said.envelope.event().level == "warning"


def test_a_restart_after_a_crash_is_no_second_live_session(station, caplog):
    """The former session never speaks again, however soon the next one comes. Row 40."""
    first, second = Producer(station), Producer(station, "s2", peer=b"other")
    first.hello()
    first.emit(metric(0))

    welcome = second.hello()
    second.emit(metric(0))
    second.hello()
    station.settle()

    assert isinstance(welcome, Welcome) and not messages_of(station) and not caplog.records


def test_a_worker_beside_its_parent_is_a_source_of_its_own(station):
    """Neither says anything of the other. Row 40."""
    parent = Producer(station)
    workers = [
        Producer(station, f"w{n}", source=f"rank0.worker{n}", peer=b"w%d" % n) for n in (0, 1)
    ]
    for producer in (parent, *workers):
        producer.hello()
        producer.emit(metric(0))
    station.settle()

    assert [row.source for row in station.rows()] == ["rank0", "rank0.worker0", "rank0.worker1"]
    assert not messages_of(station)


def test_the_same_session_goes_on_over_a_new_connection(station):
    """The emitter rebuilt its socket: what is not on disk is taken over, too."""
    old, new = Producer(station), Producer(station, peer=b"new")
    old.hello()
    old.emit(metric(0))

    welcome = new.hello()
    new.emit(metric(1))

    assert welcome.next_seq == 1
    assert acks(new.committed()) == [1]
    assert station.steps() == [0, 1]


@pytest.mark.parametrize("is_said", [True, False])
def test_the_spool_of_a_former_session_is_taken_beside_the_live_one(station, is_said):
    """A trainer that was restarted sends what its former self left. An emitter of before
    `late` is known by its stream's number. Rows 22 and 33."""
    live = Producer(station, "s2")
    orphan = Producer(station, "s1", number=2, late=is_said)
    live.hello()
    live.emit(started(name="second"), metric(10))

    welcome = orphan.hello()
    orphan.emit(started(name="first"), metric(0), finished("failed"))
    orphan.fin()
    done = orphan.committed()
    station.settle()

    assert isinstance(welcome, Welcome) and is_fin_acked(done)
    assert station.steps() == [10, 0]
    assert [row.is_late for row in station.rows()] == [False] * 2 + [True] * 3
    run = station.runs.get("r")
    # The live session has the say: its run neither ends nor takes a former name.
    assert not run.is_ended and run.finish_status is None and run.file.name == "second"


def test_a_live_session_with_a_spool_reconnects(station):
    """Neither its own stream nor the spool's stands in the way of the other."""
    for peer in (b"before", b"after"):
        live, orphan = (
            Producer(station, "s2", peer=peer),
            Producer(station, "s1", number=2, peer=peer),
        )
        answers = [live.hello(), orphan.hello()]

    assert [type(answer) for answer in answers] == [Welcome, Welcome]


BAD_RUN_IDS = ["..", "../r", "/etc/r", "a/b", "a\0b", "r\n", "", ".", "ü", "x" * 65]


@pytest.mark.parametrize("run_id", BAD_RUN_IDS)
def test_a_bad_run_id_is_refused_and_the_disk_is_not_touched(station, run_id):
    """A run id becomes the name of a directory. Row 27."""
    before = sorted(station.path.rglob("*"))

    answer = Producer(station, run_id=run_id).hello()

    assert isinstance(answer, Nack) and answer.seq == WHOLE_STREAM and "run id" in answer.reason
    assert sorted(station.path.rglob("*")) == before


@pytest.mark.parametrize(
    ("session", "source"),
    [("../s", "rank0"), ("", "rank0"), ("s", "rank"), ("s", "sidecar"), ("s", "hardware:a/b")],
)
def test_a_bad_session_or_source_is_refused(station, session, source):
    """A session becomes part of a file name; 'sidecar' is the service itself. Row 27."""
    answer = Producer(station, session, source=source).hello()

    assert isinstance(answer, Nack)
    assert not (station.path / "runs").exists()


SEGMENT = "journal/00000000000000000000.seg"
LINKS = ["journal", "run.json", "quarantine", "cursors", "journal/durable", "journal/closed",
         SEGMENT, "quarantine/x", ".run.json.tmp", "tensorboard"]  # fmt: skip


@pytest.mark.parametrize("is_dangling", [False, True])
@pytest.mark.parametrize("name", LINKS)
def test_a_link_that_somebody_planted_below_a_runs_directory_is_not_followed(
    station, tmp_path, name, is_dangling
):
    """Whatever it is called, nothing is written behind it. Row 27."""
    target = tmp_path / "elsewhere"
    if not is_dangling:
        target.write_text("precious")
    link = station.path / "runs" / "r" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(target)

    answer = Producer(station).hello()

    assert isinstance(answer, Nack) and "symbolic link" in answer.reason
    assert not target.exists() if is_dangling else target.read_text() == "precious"


@pytest.mark.parametrize("name", ["quarantine", "quarantine/s1-1.msgpack"])
def test_a_link_planted_while_the_run_is_open_is_not_followed_either(station, tmp_path, name):
    """Bytes that are put aside go nowhere else. Row 27."""
    target = tmp_path / "elsewhere"
    producer = Producer(station)
    producer.hello()
    link = station.path / "runs" / "r" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target)
    if name == "quarantine":
        target.mkdir()

    producer.emit(metric(0), b"\xc0")

    assert acks(producer.committed()) == [1]
    assert not any(target.iterdir()) if target.is_dir() else not target.exists()


@pytest.mark.parametrize("is_dangling", [False, True])
def test_a_run_directory_that_is_a_symlink_is_refused(station, tmp_path, is_dangling):
    """Whoever can plant one must not make the sidecar write elsewhere. Row 27."""
    target = tmp_path / "elsewhere"
    if not is_dangling:
        target.mkdir()
    (station.path / "runs").mkdir()
    (station.path / "runs" / "r").symlink_to(target)

    answer = Producer(station).hello()

    assert isinstance(answer, Nack) and "symbolic link" in answer.reason
    assert not target.exists() or not any(target.iterdir())


def test_a_refusal_is_logged_once_and_counted_each_time(station, caplog):
    """Who is refused asks again twice a second, for days perhaps."""
    for _ in range(50):
        Producer(station, run_id="../r").hello()

    assert len(caplog.records) == 1
    assert station.ingest.counts["refused_streams_total"] == 50


# --- what an emitter has lost


def test_a_hole_before_the_first_event_that_an_emitter_still_has_is_a_gap(station):
    """Its sidecar's disk was replaced: what was acknowledged there can't be had here."""
    producer = Producer(station)

    welcome = producer.hello(first_seq=5)
    producer.emit(metric(5))
    producer.committed()

    assert welcome.next_seq == 5
    gap, event = station.events()
    assert isinstance(gap, Gap) and gap.count == 5 and event == metric(5)


def test_a_hole_that_opens_on_a_known_stream_is_skipped_and_counted(station):
    """A spool was damaged while the stream was open: without the hole it would wait for ever."""
    producer = Producer(station)
    producer.hello()
    producer.emit(metric(0))

    welcome = producer.hello(first_seq=4)
    producer.emit(metric(4))

    assert welcome.next_seq == 4
    assert acks(producer.committed()) == [4]
    assert [e.count for e in station.events() if isinstance(e, Gap)] == [3]


def test_a_hole_is_counted_once_however_often_it_is_told(station):
    """Over the same connection and over a new one."""
    for peer in (b"a", b"a", b"b"):
        producer = Producer(station, peer=peer)
        producer.hello(first_seq=5)
    producer.committed()

    assert [e.count for e in station.events() if isinstance(e, Gap)] == [5]


# --- hardware


def sampler(station: Station, session: str = "hw", peer: bytes = b"sampler") -> Producer:
    return Producer(station, session, "host-node1", "hardware:node1", peer)


def test_hardware_goes_into_every_active_run_and_not_into_the_hosts_own(station):
    """One sampler serves all."""
    for run_id in ("a", "b"):
        producer = Producer(station, run_id=run_id, peer=run_id.encode())
        producer.hello()
        producer.emit(started())
    hardware = sampler(station)
    hardware.hello()
    hardware.emit(metric(1))

    acknowledged = acks(hardware.committed())

    assert acknowledged == [0]
    assert station.steps("a", "hardware:node1") == station.steps("b", "hardware:node1") == [1]
    assert not (station.path / "runs" / "host-node1").exists()


def test_hardware_goes_into_the_hosts_own_run_while_nothing_trains(station):
    """It is introduced once, so that sinks know what to call it."""
    hardware = sampler(station)
    hardware.hello()
    hardware.emit(metric(0))
    hardware.emit(metric(1))
    hardware.committed()

    introduction, *rest = station.events("host-node1")
    assert introduction.name == "node1" and introduction.project == "hardware"
    assert rest == [metric(0), metric(1)]


def test_hardware_of_a_host_without_a_run_of_its_own_is_let_go(tmp_path):
    """Nobody wants it: it is acknowledged, and kept nowhere."""
    station = Station(tmp_path, ManualClock(), host_run=False)
    hardware = sampler(station)
    hardware.hello()
    hardware.emit(metric(0))

    assert acks(hardware.committed()) == [0]
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def two_runs(station: Station) -> Station:
    """Two active runs, their introduction on disk."""
    for run_id in ("a", "b"):
        producer = Producer(station, run_id=run_id, peer=run_id.encode())
        producer.hello()
        producer.emit(started())
    station.ingest.commit()
    return station


def test_hardware_is_not_acknowledged_before_every_run_has_it_on_disk(two_runs):
    """The slowest journal decides."""
    hardware = sampler(two_runs)
    hardware.hello()
    hardware.emit(metric(1))
    with two_runs.journals.failing("b", JournalFull("full")):
        while_full = acks(hardware.committed())

    afterwards = acks(hardware.committed())

    assert while_full == [] and afterwards == [0]


def test_after_a_crash_between_two_syncs_hardware_is_whole_and_single_in_both(two_runs):
    """One journal had it, the other had not: it is sent again, and goes where it is missing."""
    hardware = sampler(two_runs)
    hardware.hello()
    hardware.emit(metric(0))
    hardware.committed()
    hardware.emit(metric(1))
    two_runs.journals.sync_errors["b"] = JournalFull("full")
    assert acks(hardware.committed()) == []
    two_runs.journals.sync_errors.clear()
    assert two_runs.steps("a", "hardware:node1") == [0, 1]

    station = two_runs.restarted()
    hardware = sampler(station, peer=b"again")
    welcome = hardware.hello()
    for step in range(welcome.next_seq, 3):
        hardware.emit(metric(step))
    acknowledged = acks(hardware.committed())
    station.killed()

    assert acknowledged == [2]
    assert station.steps("a", "hardware:node1") == [0, 1, 2]
    assert station.steps("b", "hardware:node1") == [0, 1, 2]


def test_a_sampler_that_reconnects_while_the_disk_is_full_is_told_only_what_is_on_disk(two_runs):
    """What was appended for it is in memory. Row 11."""
    sampler(two_runs).hello()
    hardware = sampler(two_runs)
    hardware.hello()
    hardware.emit(metric(1))
    assert acks(hardware.committed()) == [0]
    two_runs.ingest.has_room = False
    hardware.emit(metric(2))

    again = sampler(two_runs, peer=b"again")
    welcome = again.hello()
    repeated = again.frame(1, packed(metric(2)))
    while_full = again.committed()
    two_runs.ingest.has_room = True

    assert welcome.next_seq == 2 and acks(again.replies) == [0, 0] and acks(repeated) == [0]
    assert acks(while_full) == []
    assert acks(again.committed()) == [1]
    assert two_runs.steps("a", "hardware:node1") == [1, 2]


@pytest.mark.parametrize("missing", ["a", "b"])
def test_a_sampler_that_reconnects_waits_for_the_journal_that_is_behind(two_runs, missing):
    """One run's rows are on disk, the other's are not: nobody is told that they are."""
    hardware = sampler(two_runs)
    hardware.hello()
    hardware.emit(metric(1))
    two_runs.journals.sync_errors[missing] = JournalFull("full")
    hardware.committed()

    again = sampler(two_runs, peer=b"again")
    again.hello()
    told = acks(again.replies) + acks(again.committed())
    two_runs.journals.sync_errors.clear()

    assert told == []
    assert acks(again.committed()) == [0]


def test_a_welcome_says_what_was_received_and_an_ack_what_is_on_disk(station):
    """A client whose acknowledgement was lost must not wait for one for ever."""
    producer = Producer(station)
    producer.hello()
    producer.emit(metric(0), metric(1))
    producer.committed()
    producer.emit(metric(2))

    again = Producer(station, peer=b"again")
    welcome = again.hello()

    assert welcome.next_seq == 3 and acks(again.replies) == [1]
    assert acks(again.committed()) == [2]


def test_hardware_that_no_run_takes_is_counted(tmp_path):
    """Before RunStarted, without a run of the host's own."""
    station = Station(tmp_path, ManualClock(), host_run=False)
    hardware = sampler(station)
    hardware.hello()
    for step in range(3):
        hardware.emit(metric(step))
    hardware.committed()

    assert station.ingest.counts["hardware_events_without_a_run_total"] == 3


@pytest.mark.parametrize("is_full_at", ["sync", "look"])
def test_a_gap_that_a_hello_tells_of_an_ended_run_outlives_a_full_disk(station, is_full_at):
    """The run was closed and is opened again for it: it stays open until it is on disk."""
    producer = Producer(station)
    producer.hello()
    producer.emit(started(), finished())
    producer.fin()
    station.settle()
    assert station.runs.get("r") is None
    late = Producer(station, "s2", peer=b"late", late=True)
    if is_full_at == "look":
        station.ingest.has_room = False
    else:
        station.journals.sync_errors["r"] = JournalFull("full")
    late.hello(first_seq=4)
    for _ in range(3):
        station.wait(100)
        station.settle()
    station.journals.sync_errors.clear()
    station.ingest.has_room = True
    station.settle()

    assert [e.count for e in station.events() if isinstance(e, Gap)] == [4]


# --- a run that was removed


def removed(station: Station) -> None:
    """Let retention take run r."""
    producer = Producer(station)
    producer.hello()
    producer.emit(started(), metric(0), finished())
    producer.fin()
    station.settle()
    write_tombstone(station.path / "runs", "r", "to make room")
    shutil.rmtree(station.path / "runs" / "r")


@pytest.mark.parametrize("session", ["s1", "s0"])
def test_late_events_of_a_removed_run_are_refused_by_name(station, session):
    """They stay in their spool; no second journal of that id begins with them. Row 46."""
    removed(station)

    answer = Producer(station, session, peer=b"carrier", late=True).hello()

    assert isinstance(answer, Nack) and answer.seq == WHOLE_STREAM
    assert "run r was removed (to make room)" in answer.reason
    assert not (station.path / "runs" / "r").exists()


def test_a_new_session_may_begin_a_removed_run_anew(station):
    """Somebody uses the name again; what is late of the former one is refused still."""
    removed(station)
    new = Producer(station, "s2", peer=b"new")

    welcome = new.hello()
    new.emit(started(), metric(7))
    acknowledged = acks(new.committed())
    late = Producer(station, "s1", peer=b"carrier", late=True).hello()

    assert welcome.next_seq == 0 and acknowledged == [1] and station.steps() == [7]
    assert isinstance(late, Nack) and "was removed" in late.reason


def test_a_session_that_outlives_its_removed_run_goes_on_at_its_number(station):
    """Nothing of it is missing: what came before was on disk."""
    removed(station)
    again = Producer(station, peer=b"again")

    welcome = again.hello(first_seq=3)
    again.emit(metric(1))

    assert welcome.next_seq == 3 and acks(again.committed()) == [3]
    assert not [event for event in station.events() if isinstance(event, Gap)]


# --- limits


def test_a_flood_of_new_run_ids_makes_few_directories_and_gets_in_by_and_by(station):
    """Row 39: whoever asks again gets in; nobody is refused for good."""
    asked = [f"flood-{n}" for n in range(2000)]
    answers = []
    for number, run_id in enumerate(asked):
        station.ingest.limits.begin_poll()
        answers.append(Producer(station, run_id=run_id, number=number).hello())
    made = len(list((station.path / "runs").iterdir()))

    station.wait(60)
    station.ingest.limits.begin_poll()
    later = Producer(station, run_id=asked[-1], number=1999).hello()

    refused = [answer for answer in answers if isinstance(answer, Nack)]
    assert made <= 200 and len(refused) == 2000 - made
    assert all(answer.reason.startswith("wait: ") for answer in refused)
    assert isinstance(later, Welcome)
    assert station.ingest.counts["refused_streams_total"] == 0


def test_a_launch_of_500_runs_each_by_a_process_of_its_own_gets_in(station):
    """Honest, and at once."""
    for n in range(500):
        station.ingest.limits.begin_poll()
        answer = Producer(station, run_id=f"run-{n}", peer=b"peer%d" % n).hello()
        assert isinstance(answer, Welcome)


def test_a_turn_opens_only_so_many_runs(station):
    """Those that train are acknowledged between two of them. Row 39."""

    def slow() -> None:
        station.clock.mono += 10_000_000

    station.journals.on_open = slow
    station.ingest.limits.begin_poll()
    answers = [Producer(station, run_id=f"r{n}", number=n).hello() for n in range(10)]
    station.ingest.limits.begin_poll()
    next_turn = Producer(station, run_id="r9", number=9).hello()

    assert [isinstance(answer, Welcome) for answer in answers] == [True] * 3 + [False] * 7
    assert isinstance(next_turn, Welcome)


def test_only_so_many_runs_are_open_and_an_ended_one_makes_room(tmp_path):
    """File descriptors are few. Row 38."""
    station = Station(tmp_path, ManualClock(), open_runs_max=3)
    producers = [Producer(station, run_id=f"r{n}", peer=b"p%d" % n) for n in range(4)]
    answers = [producer.hello() for producer in producers]
    producers[0].emit(started(), finished())
    station.settle()

    later = producers[3].hello()

    assert [type(answer) for answer in answers] == [Welcome] * 3 + [Nack]
    assert "3 runs are open" in answers[3].reason and "ulimit" in answers[3].reason
    assert isinstance(later, Welcome)
    station.killed()


def test_a_run_that_a_hello_opened_and_nothing_followed_leaves_nothing(station):
    """Directories of a flood go again. Row 39."""
    Producer(station).hello()
    Producer(station, "s2", run_id="full", peer=b"2").emit()
    full = Producer(station, "s2", run_id="full", peer=b"2")
    full.hello()
    full.emit(metric(0))
    station.settle()
    station.wait(61)
    station.settle()

    assert not (station.path / "runs" / "r").exists()
    assert (station.path / "runs" / "full").exists()
    again = Producer(station, peer=b"again")
    again.hello()
    again.emit(metric(0))
    assert acks(again.committed()) == [0]


def test_streams_of_a_peer_are_bounded(tmp_path):
    """Each takes memory. Row 39."""
    station = Station(tmp_path, ManualClock(), streams=StreamTable(peer_streams_max=5))
    answers = [Producer(station, f"s{n}", number=n).hello() for n in range(7)]
    other = Producer(station, "other", peer=b"other").hello()

    assert [type(answer) for answer in answers] == [Welcome] * 5 + [Nack] * 2
    assert "too many streams" in answers[-1].reason and isinstance(other, Welcome)
    station.killed()


# --- a full disk, a broken disk


def test_without_room_nothing_is_acknowledged_and_with_room_all_goes_on(station):
    """Nothing is lost or doubled meanwhile. Row 11."""
    producer = Producer(station)
    producer.hello()
    producer.emit(started())
    with station.journals.failing("r", JournalFull("full")):
        while_full = producer.committed()
        told = producer.hello()
        is_writable = station.ingest.is_writable

    afterwards = producer.committed()

    assert while_full == [] and told.credit_bytes == 0 and not is_writable
    assert acks(afterwards) == [0] and afterwards[0].credit_bytes > 0
    assert station.ingest.is_writable
    assert station.events() == [started()]


def test_a_reconnect_while_the_disk_is_full_acknowledges_nothing(station):
    """The new stream knows that what was received is not on disk. Row 11."""
    old = Producer(station)
    old.hello()
    old.emit(metric(0))
    station.journals.sync_errors["r"] = JournalFull("full")
    old.committed()
    new = Producer(station, peer=b"new")

    new.hello()

    assert acks(new.committed()) == []


def test_below_the_free_space_limit_nothing_is_written(station):
    """The service looks at the disk; ingest obeys. Row 11."""
    producer = Producer(station)
    producer.hello()
    station.ingest.has_room = False
    producer.emit(metric(0))

    while_low = producer.committed()
    station.ingest.has_room = True

    assert while_low == []
    assert acks(producer.committed()) == [0]


def test_a_full_disk_is_logged_once_and_so_is_its_end(station, caplog):
    """A disk may be full for hours."""
    caplog.set_level("INFO")
    producer = Producer(station)
    producer.hello()
    producer.emit(metric(0))
    with station.journals.failing("r", JournalFull("full")):
        for _ in range(20):
            producer.committed()

    producer.committed()

    assert len([r for r in caplog.records if "room on disk" in r.message]) == 2


@pytest.mark.parametrize("error", [JournalFull("no room"), OSError(28, "No space left on device")])
def test_a_run_that_there_is_no_room_for_is_refused_for_now(station, error):
    """Others go on; the emitter asks again. Row 11."""
    station.journals.open_error = error
    refused = Producer(station).hello()
    station.journals.open_error = None

    accepted = Producer(station).hello()

    assert isinstance(refused, Nack) and isinstance(accepted, Welcome)


def test_a_disk_fault_is_for_the_service_to_end_on(station):
    """No acknowledgement comes out of it. Row 12."""
    producer = Producer(station)
    producer.hello()
    producer.emit(metric(0))
    station.journals.sync_errors["r"] = JournalFault("EIO")

    with pytest.raises(JournalFault):
        station.ingest.commit()


def test_a_run_directory_that_was_deleted_disturbs_no_other_run(two_runs, tmp_path):
    """Somebody tidied up too early: the others are recorded as before."""

    shutil.rmtree(tmp_path / "runs" / "a")
    producer = Producer(two_runs, run_id="b", peer=b"b", next_seq=1)
    producer.emit(metric(1))
    gone = Producer(two_runs, run_id="a", peer=b"a", next_seq=1)
    gone.emit(finished())

    acknowledged = acks(producer.committed())
    two_runs.settle()

    assert acknowledged == [1]
    assert two_runs.steps("b") == [1]


# --- restarts


def test_after_a_restart_a_stream_goes_on_behind_its_last_durable_event(station):
    """The rest is sent again. Row 1."""
    producer = Producer(station)
    producer.hello()
    producer.emit(metric(0), metric(1))
    producer.committed()
    producer.emit(metric(2))

    station = station.restarted()
    producer = Producer(station, peer=b"again")
    welcome = producer.hello()
    producer.emit(metric(2))
    producer.committed()
    station.killed()

    assert welcome.next_seq == 2
    assert station.steps() == [0, 1, 2]


def test_two_ranks_keep_their_own_order_in_one_journal(station):
    """Streams do not wait for one another."""
    ranks = [Producer(station, f"s{n}", source=f"rank{n}", number=n + 1) for n in (0, 1)]
    for rank in ranks:
        rank.hello()
    for step in range(5):
        for rank in ranks:
            rank.emit(metric(step))

    acknowledged = sorted((m.stream, m.durable_seq) for _, m in station.ingest.commit())

    assert acknowledged == [(1, 4), (2, 4)]
    assert station.steps(source="rank0") == station.steps(source="rank1") == list(range(5))


def test_a_lost_event_of_the_sidecar_itself_has_its_own_source(station):
    """What the sidecar says is in the journal as its own."""
    Producer(station).hello(first_seq=3)
    station.ingest.commit()

    (row,) = station.rows()

    assert row.source == "sidecar" and isinstance(row.envelope.event(), Gap)


def test_an_empty_frame_is_harmless(station):
    """It has no event, and takes no row."""
    producer = Producer(station)
    producer.hello()

    replies = producer.frame(0, join_events([]))

    assert acks(replies) == [-1]
    assert station.ingest.pending_bytes == 0
