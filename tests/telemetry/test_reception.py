"""Reception: peers are answered at once, whatever the disk does, and memory is bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from shared.events import MessageLogged, MetricsLogged, encode_event, join_events
from shared.wire import SCHEMA, WHOLE_STREAM, Ack, Data, Fin, FinAck, Hello, Message, Nack, Welcome
from telemetry.ingest.inbox import (
    CREDIT_MAX_BYTES,
    OPENINGS_MAX,
    PEER_MAX_BYTES,
    PEER_OPENINGS_MAX,
    QUEUE_MAX_BYTES,
    Inbox,
)
from telemetry.ingest.reception import Reception, count_of
from tests.fakes import ManualClock
from tests.telemetry.wire_client import Station, acks, metric, nacks, packed

PEER = b"peer"


def hello(number: int = 1, session: str = "s1", first_seq: int = 0) -> Hello:
    return Hello(number, "r", session, "rank0", SCHEMA, first_seq)


def body(size: int) -> Raw:
    """A frame of one event, about this large."""
    return Raw(packed(MessageLogged(level="info", text="x" * size)))


class Desk:
    """A reception in front of an ingest; `turn` is the journal thread's."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.station = Station(path, self.clock)
        self.inbox = Inbox()
        self.reception = Reception(self.inbox, self.clock)

    def say(self, *messages: Message, peer: bytes = PEER) -> list[Message]:
        """What is answered at once, to whomever."""
        return [
            answer for message in messages for _, answer in self.reception.handle(peer, message)
        ]

    def take(self) -> list[Message]:
        """The journal thread takes what there is; its answers pass."""
        self.reception.polled_ns = self.clock.mono
        self.station.ingest.limits.begin_poll()
        items = []
        while item := self.inbox.take_opening():
            items.append(item)
        items += self.inbox.take(QUEUE_MAX_BYTES)
        replies = [r for item in items for r in self.station.ingest.handle(*item)]
        return self._passed(replies)

    def commit(self) -> list[Message]:
        self.station.ingest.hear(self.reception.taken_heard())
        return self._passed(self.station.ingest.commit())

    def turn(self) -> list[Message]:
        return self.take() + self.commit()

    def _passed(self, replies: list[tuple[bytes, Message]]) -> list[Message]:
        for reply in replies:
            self.reception.passes(*reply)
        return [message for _, message in replies]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def opened(desk: Desk, number: int = 1, peer: bytes = PEER) -> None:
    assert desk.say(hello(number, f"s-{number}"), peer=peer) == []
    desk.turn()


def test_a_stream_goes_its_way_through_both_threads(desk):
    """Opened, filled, acknowledged and ended."""
    at_once = desk.say(hello())
    welcome, *_ = desk.turn()
    queued = desk.say(Data(1, 0, Raw(packed(metric(0), metric(1)))))
    told = desk.turn()
    ended = desk.say(Fin(1, 2)) + desk.turn()

    assert at_once == queued == [] and isinstance(welcome, Welcome)
    assert acks(told) == [1] and FinAck(1) in ended
    assert desk.station.steps() == [0, 1]


def test_a_known_stream_is_answered_while_the_disk_stands_still(desk):
    """From what is known: received so far, and on disk so far. Row 37."""
    opened(desk)
    desk.say(Data(1, 0, Raw(packed(metric(0)))))
    desk.turn()
    desk.say(Data(1, 1, Raw(packed(metric(1), metric(2)))))
    desk.clock.mono += 60 * 10**9

    answers = desk.say(hello(1, "s-1"))

    assert answers == [Welcome(1, 3, 0), Ack(1, 0, 0)]


def test_a_new_stream_is_told_to_wait_while_the_disk_stands_still(desk):
    """It asks again; nothing is kept of it meanwhile. Row 37."""
    desk.clock.mono += 2 * 10**9

    answers = [desk.say(hello(number, f"s{number}")) for number in range(3)]

    assert all(nacks(answer) == [WHOLE_STREAM] for answer in answers)
    assert answers[0][0].reason == "wait: the disk stands still"
    assert desk.inbox.take_opening() is None


def test_who_was_heard_while_the_disk_stood_still_is_not_taken_for_silent(desk):
    """Its keepalives were answered here. Row 37."""
    opened(desk)
    for _ in range(20):
        desk.clock.mono += 5 * 10**9
        desk.say(hello(1, "s-1"))
    desk.turn()

    assert desk.station.ingest.has_live_trainers


def test_frames_over_the_bound_are_thrown_away_counted_and_asked_for_again(desk):
    """A peer that ignores its credit. Row 39."""
    opened(desk)
    frames = [Data(1, n, body(250_000)) for n in range(100)]
    answers = desk.say(*frames)
    held = desk.inbox.bytes_held
    while_full = desk.reception.ask_again()

    desk.turn()
    again = desk.reception.ask_again()

    assert answers == [] and held <= PEER_MAX_BYTES and while_full == []
    assert desk.reception.counts["frames_over_credit_total"] > 70
    ((peer, welcome),) = again
    assert peer == PEER and isinstance(welcome, Welcome)
    assert 0 < welcome.next_seq < 100 and desk.reception.ask_again() == []
    desk.say(*frames[welcome.next_seq : welcome.next_seq + 3])
    assert max(acks(desk.turn())) == welcome.next_seq + 2


def test_many_peers_that_ignore_their_credit_hold_a_bounded_number_of_bytes(desk):
    """And a peer that keeps to it finds room as soon as something was taken. Row 39."""
    for number in range(1, 11):
        opened(desk, number, b"peer%d" % number)
    for seq in range(40):
        for number in range(1, 11):
            desk.say(Data(number, seq, body(200_000)), peer=b"peer%d" % number)

    assert desk.inbox.bytes_held <= QUEUE_MAX_BYTES
    desk.inbox.take(1)
    opened_too = desk.say(hello(1, "other"), peer=b"other")
    assert opened_too == []


def test_a_flooding_peer_leaves_room_for_another(desk):
    """Whatever it sends. Row 39."""
    opened(desk, 1, b"flood")
    opened(desk, 1, b"honest")
    desk.say(*(Data(1, n, body(250_000)) for n in range(200)), peer=b"flood")

    desk.say(Data(1, 0, Raw(packed(metric(0)))), peer=b"honest")
    taken = desk.inbox.take(QUEUE_MAX_BYTES)

    assert (b"honest", 0) in [(peer, m.base_seq) for peer, m in taken]


def test_openings_wait_in_a_bounded_lane_each_peer_in_turn(desk):
    """A flood of HELLOs with ever new ids waits behind itself. Row 39."""
    flood = [desk.say(Hello(n, f"f{n}", "s", "rank0", SCHEMA), peer=b"flood") for n in range(100)]
    desk.say(hello(), peer=b"honest")

    order = []
    while item := desk.inbox.take_opening():
        order.append(item[0])

    refused = [answer for answer in flood if answer]
    assert len(refused) == 100 - PEER_OPENINGS_MAX and order.index(b"honest") == 1
    assert all(answer[0].reason.startswith("wait: ") for answer in refused)


def test_altogether_only_so_many_openings_wait(desk):
    """From however many peers."""
    for n in range(OPENINGS_MAX + 50):
        desk.say(Hello(1, f"f{n}", "s", "rank0", SCHEMA), peer=b"p%d" % n)
    count = 0
    while desk.inbox.take_opening():
        count += 1

    assert count == OPENINGS_MAX


def test_a_hello_that_is_repeated_before_it_is_answered_waits_once(desk):
    """Emitters ask twice a second."""
    for _ in range(10):
        desk.say(hello())

    assert desk.inbox.take_opening() is not None and desk.inbox.take_opening() is None


def test_a_new_stream_of_a_number_comes_behind_the_frames_of_the_former_one(desk):
    """Else these would be journaled as its own."""
    opened(desk)
    desk.say(Data(1, 0, Raw(packed(metric(0)))))
    desk.say(Hello(1, "other", "s9", "rank0", SCHEMA))

    told = desk.turn()

    assert any(isinstance(answer, Welcome) and answer.next_seq == 0 for answer in told)
    assert desk.station.steps() == [0]
    assert not (desk.station.path / "runs" / "other" / "journal" / "durable").exists() or (
        desk.station.steps("other") == []
    )


def test_what_the_journal_thread_could_not_go_on_with_is_handed_back(desk, monkeypatch):
    """A message failed there: what was queued behind it is a hole, and asked for again."""
    opened(desk)
    desk.say(*(Data(1, n, Raw(packed(metric(n)))) for n in range(3)))
    desk.inbox.take(1)  # the first frame is lost to a failure

    told = desk.turn()
    answers = desk.say(hello(1, "s-1"))

    assert [m.next_seq for m in told if isinstance(m, Welcome)] == [0]
    assert answers[0].next_seq == 0
    desk.say(*(Data(1, n, Raw(packed(metric(n)))) for n in range(3)))
    assert acks(desk.turn()) == [2] and desk.station.steps() == [0, 1, 2]


def test_a_stream_that_is_not_known_is_told_so_at_once(desk):
    """Nothing of it is kept."""
    assert nacks(desk.say(Data(1, 0, body(10)), Fin(1, 0))) == [WHOLE_STREAM] * 2
    assert desk.inbox.bytes_held == 0


def test_messages_that_only_a_sidecar_says_are_counted_and_ignored(desk):
    """Forged acknowledgements are no business of ours. Row 24."""
    assert desk.say(Ack(1, 5, 0), Welcome(1, 5, 0), FinAck(1), Nack(1, 0, "x")) == []
    assert desk.reception.counts["unexpected_messages_total"] == 4


def test_streams_of_which_nobody_speaks_are_forgotten(desk):
    """Ten minutes of silence."""
    opened(desk)
    desk.clock.mono += 601 * 10**9
    desk.reception.forget_silent()

    assert nacks(desk.say(Data(1, 0, body(10)))) == [WHOLE_STREAM]


@pytest.mark.parametrize("count", [0, 1, 15, 16, 200, 256, 70_000])
def test_the_events_of_a_frame_are_counted_by_its_head(count):
    """Without decoding one; of what is no array nobody can tell."""
    packed_events = [encode_event(metric(0), 1, 1)] * count
    if count < 1 << 16:
        assert count_of(memoryview(join_events(packed_events))) == count
    else:
        assert count_of(memoryview(b"\xdd" + count.to_bytes(4, "big"))) is None
    for data in (b"", b"\xc0", b"\xdc", b"\xdc\x00"):
        assert count_of(memoryview(data)) is None


class Sender:
    """An emitter that keeps to the wire: numbered frames, resent from where it is told."""

    def __init__(self, count: int) -> None:
        self.frames = [packed(metric(n)) for n in range(count)]
        self.next_seq = 0
        self.acknowledged = -1
        self.is_open = False

    def hear(self, answers: list[Message]) -> None:
        for answer in answers:
            if isinstance(answer, Welcome):
                self.is_open, self.next_seq = True, answer.next_seq
            elif isinstance(answer, Ack):
                self.acknowledged = max(self.acknowledged, answer.durable_seq)
            elif isinstance(answer, Nack) and answer.seq == WHOLE_STREAM:
                self.is_open = False

    def send(self) -> Message | None:
        if not self.is_open:
            return hello(1, "s1", max(0, self.acknowledged + 1))
        if self.next_seq >= len(self.frames):
            return None
        self.next_seq += 1
        return Data(1, self.next_seq - 1, Raw(self.frames[self.next_seq - 1]))


acts = st.lists(
    st.sampled_from(["send", "send", "send", "take", "commit", "lose", "fail", "ask", "hello"]),
    max_size=60,
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(script=acts)
def test_whatever_is_lost_thrown_away_or_fails_each_event_is_journaled_once(tmp_path, script):
    """In order; nothing is acknowledged that is not there; and all of it comes in the end."""
    desk, sender = Desk(tmp_path / os.urandom(8).hex()), Sender(30)
    for act in [*script, *["send", "take", "commit", "hello", "ask"] * 40]:
        if act in ("send", "lose"):
            message = sender.send()
            if message is not None and act == "send":
                sender.hear(desk.say(message))
        elif act == "take":
            sender.hear(desk.take())
        elif act == "commit":
            durable = desk.commit()
            sender.hear(durable)
        elif act == "fail":
            desk.inbox.take(1)
        elif act == "ask":
            sender.hear([answer for _, answer in desk.reception.ask_again()])
        elif sender.is_open:
            desk.clock.mono += 600_000_000
            desk.reception.polled_ns = desk.clock.mono
            sender.hear(desk.say(hello(1, "s1", sender.acknowledged + 1)))
        if sender.acknowledged >= 0:
            assert len(desk.station.steps()) > sender.acknowledged
    desk.station.killed()

    assert desk.station.steps() == list(range(30)) and sender.acknowledged == 29
    assert all(isinstance(event, MetricsLogged) for event in desk.station.events())


def test_a_credit_is_never_more_than_what_one_peer_may_have_queued():
    """Who keeps to it is never thrown away."""
    assert CREDIT_MAX_BYTES + 2**20 <= PEER_MAX_BYTES < QUEUE_MAX_BYTES
