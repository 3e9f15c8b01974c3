"""The conversation of a sender with its sidecar, message by message, without a socket."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from shared.emitter.conversation import NOTICES_MAX, Conversation
from shared.emitter.peers import Peer
from shared.emitter.stream import OutgoingStream, State
from shared.wire import WHOLE_STREAM, Ack, Data, Fin, FinAck, Hello, Message, Nack, Welcome
from tests.fakes import ManualClock

CREDIT_BYTES = 10**6


class Wire:
    """A connection whose messages stay in two lists; it takes `room` messages and no more."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.arriving: list[Message] = []
        self.room = 1000
        self.rebuilt = 0

    def send(self, message: Message) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.sent.append(message)
        return True

    def receive(self) -> Iterator[Message]:
        arrived, self.arriving = self.arriving, []
        yield from arrived

    def rebuild(self) -> None:
        self.rebuilt += 1


class Desk:
    """A conversation about one stream, and the time."""

    def __init__(self, source: str = "rank0", silence_s: float = 20.0) -> None:
        self.wire, self.clock = Wire(), ManualClock()
        self.talk = Conversation(self.wire, self.clock, silence_s)  # type: ignore[arg-type]
        self.peer = Peer(OutgoingStream(1, "run", "session", source))

    @property
    def stream(self) -> OutgoingStream:
        return self.peer.stream

    def turn(self, *answers: Message, after_s: float = 0.0) -> list[Message]:
        """Take a turn in which these answers arrive; return what was sent."""
        self.clock.advance(after_s)
        self.wire.sent.clear()
        self.wire.arriving += answers
        self.talk.poll([self.peer])
        return list(self.wire.sent)

    def opened(self) -> Desk:
        self.turn()
        self.turn(Welcome(1, 0, CREDIT_BYTES))
        assert self.stream.state is State.OPEN
        return self

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            self.stream.add([b"\x01"], self.clock.mono)


def kinds(messages: list[Message]) -> list[str]:
    return [type(message).__name__ for message in messages]


def test_a_stream_is_asked_for_every_half_second_until_it_is_welcome():
    """Not at every turn, of which there are many."""
    desk = Desk()

    sent = [kinds(desk.turn(after_s=after_s)) for after_s in (0, 0.499, 0.001, 0.499, 0.001)]
    desk.turn(Welcome(1, 0, CREDIT_BYTES))

    assert sent == [["Hello"], [], ["Hello"], [], ["Hello"]]
    assert desk.turn(after_s=4.4) == []


def test_frames_are_sent_once_and_a_socket_that_is_full_gets_the_rest_later():
    """A message that was not taken is the next to be sent."""
    desk = Desk().opened()
    desk.add(3)
    desk.wire.room = 2

    first = desk.turn()
    desk.wire.room = 1000
    rest = desk.turn()

    assert [m.base_seq for m in first + rest if isinstance(m, Data)] == [0, 1, 2]
    assert kinds(first) == ["Data", "Data"] and desk.turn() == []


def test_an_idle_stream_says_every_five_seconds_that_it_is_alive():
    """Otherwise the sidecar takes its session for dead."""
    desk = Desk().opened()

    sent = [kinds(desk.turn(Welcome(1, 0, 1), after_s=s)) for s in (4.999, 0.001, 4.999, 0.001)]

    assert sent == [[], ["Hello"], [], ["Hello"]]


def test_an_overdue_acknowledgement_is_asked_for():
    """Two seconds after the last word about the stream, and after the last question."""
    desk = Desk().opened()
    desk.add(3)
    desk.turn(after_s=5.1)

    heard = kinds(desk.turn(Ack(1, 0, CREDIT_BYTES), after_s=1.9))
    quiet = [kinds(desk.turn(after_s=s)) for s in (1.999, 0.001, 1.999, 0.001)]

    assert heard == [] and quiet == [[], ["Hello"], [], ["Hello"]]


def test_a_stream_that_is_complete_ends_when_all_is_on_disk():
    """FIN is said again every half second, after a HELLO; when it is confirmed nothing follows."""
    desk = Desk().opened()
    desk.add()
    desk.turn()
    assert desk.turn(Ack(1, 0, CREDIT_BYTES)) == []
    desk.peer.is_complete = True

    assert desk.turn() == [Fin(1, 1)]
    assert desk.turn(after_s=0.499) == []
    assert kinds(desk.turn(after_s=0.001)) == ["Hello"]
    assert desk.turn(Welcome(1, 1, CREDIT_BYTES)) == [Fin(1, 1)]
    assert desk.turn(FinAck(1)) == [] and desk.stream.is_done
    assert desk.turn(after_s=60.0) == [] and desk.wire.rebuilt == 0


def test_a_fin_for_which_the_socket_has_no_room_is_said_later():
    """Not said is not asked: the answer is not waited for."""
    desk = Desk().opened()
    desk.peer.is_complete = True
    desk.wire.room = 0
    asked = desk.peer.asked_ns
    assert desk.turn(after_s=0.1) == []
    assert desk.peer.asked_ns == asked and desk.talk.unanswered_since_ns is None


@pytest.mark.parametrize("said", ["hello", "data"])
def test_a_sidecar_that_is_silent_for_too_long_gets_a_new_socket(said):
    """Each stream then asks anew; what was sent before may be lost."""
    desk = Desk(silence_s=3.0)
    if said == "data":
        desk.opened()
        desk.add()
    desk.turn()
    began = desk.talk.unanswered_since_ns
    assert began == desk.clock.mono

    desk.turn(after_s=3.0)
    assert (desk.wire.rebuilt, desk.talk.unanswered_since_ns) == (0, began)
    desk.turn(after_s=0.001)

    assert (desk.wire.rebuilt, desk.stream.state) == (1, State.CLOSED)
    assert desk.talk.unanswered_since_ns is None
    assert kinds(desk.turn(after_s=0.5)) == ["Hello"]


def test_any_answer_of_the_sidecar_ends_the_silence():
    """Also one about a stream that is not known here any more."""
    desk = Desk(silence_s=3.0).opened()
    desk.add()
    desk.turn()

    desk.turn(Ack(99, 5, CREDIT_BYTES), after_s=1.9)

    assert desk.talk.unanswered_since_ns is None and desk.stream.acknowledged == 0
    desk.turn(after_s=1.9)
    assert desk.wire.rebuilt == 0


def test_a_refusal_of_the_whole_stream_is_said_once_until_it_changes(caplog):
    """And anew after the stream was welcome again. What is refused of one event is not said."""
    caplog.set_level(logging.INFO, "telemetry.emitter")
    desk = Desk()
    for reason in ("full\x1b", "full\x1b", "no room", "no room"):
        desk.turn(Nack(1, WHOLE_STREAM, reason))
    desk.turn(Welcome(1, 0, CREDIT_BYTES))
    desk.add()
    desk.turn(Nack(1, 0, "too long"))
    desk.turn(Nack(1, WHOLE_STREAM, "no room"))

    assert [record.getMessage() for record in caplog.records] == [
        "stream of run run: full\\x1b",
        "stream of run run: no room",
        "stream of run run: no room",
    ]
    assert desk.stream.refused_events == 1


def test_a_worker_that_an_older_sidecar_refuses_is_sent_as_its_rank_at_once():
    """Its session still tells the two apart."""
    desk = Desk("rank0.worker3")
    desk.turn()

    (hello,) = desk.turn(Nack(1, WHOLE_STREAM, "source rank0.worker3 is unknown"))

    assert isinstance(hello, Hello) and hello.source == "rank0"
    assert desk.turn(Nack(1, WHOLE_STREAM, "source rank0 is unknown")) == []
    assert desk.peer.refusal == "source rank0 is unknown"


def test_another_refusal_of_a_worker_leaves_its_name():
    """There is no room, whatever it is called."""
    desk = Desk("rank0.worker3")
    desk.turn(Nack(1, WHOLE_STREAM, "too many sources"))

    assert desk.stream.id.source == "rank0.worker3"


def test_notices_are_given_once_each_and_not_for_ever(caplog):
    """A hostile sidecar has no end of them."""
    desk = Desk().opened()
    for number in range(2 * NOTICES_MAX):
        for _ in range(2):
            desk.turn(Ack(1, -1, CREDIT_BYTES, f"notice {number}"))

    assert len(caplog.records) == NOTICES_MAX
    assert caplog.records[0].getMessage() == "notice 0"


def test_the_streams_of_one_conversation_are_told_apart_by_number():
    """Each is asked for, and opened, by itself."""
    desk = Desk()
    other = Peer(OutgoingStream(7, "run", "session", "rank1"))
    desk.wire.arriving.append(Welcome(7, 0, CREDIT_BYTES))

    desk.talk.poll(iter([desk.peer, other]))

    assert (desk.stream.state, other.stream.state) == (State.ASKED, State.OPEN)
    assert (desk.peer.heard_ns, other.heard_ns) == (0, desk.clock.mono)
