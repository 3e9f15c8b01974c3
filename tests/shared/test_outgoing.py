"""One stream against a sidecar that loses, repeats, restarts and answers late."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared.emitter.frames import FRAME_OVERHEAD_BYTES, Frame, FrameLost
from shared.emitter.stream import OutgoingStream, State
from shared.events import split_events
from shared.wire import WHOLE_STREAM, Ack, Data, Fin, FinAck, Hello, Message, Nack, Welcome

CREDIT_BYTES = 40
LOST = b"lost"


class StreamAgainstSidecar(RuleBasedStateMachine):
    """A stream, a lossy wire in both directions, and a sidecar that may crash.

    The oracle: the sidecar's disk is a prefix of what was said, each event once
    and in order (or the mark of a loss that was told), and nothing is let go of
    that is not on that disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stream = OutgoingStream(1, "run", "session", "rank0")
        self.said: list[bytes] = []
        self.spooled: dict[int, bytes] = {}
        self.is_readable = True
        # The sidecar: what it received, and how much of that is on its disk.
        self.received: list[bytes] = []
        self.durable = 0
        self.is_known = False
        self.is_finished = False
        self.up: deque[Message] = deque()
        self.down: deque[Message] = deque()
        self.stale: list[Message] = []
        self.closing = False

    @initialize(is_open=st.sampled_from([True, True, True, False]))
    def begin(self, is_open):
        """Mostly in the middle of a conversation, where the trouble is."""
        if is_open:
            self._sidecar(self.stream.hello())
            self._emitter(self.down.popleft())

    # --- the emitter's side

    @precondition(lambda self: not self.closing)
    @rule(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3))
    def add(self, sizes):
        events = [b"\xc4" + bytes([size + 2]) + self._number() + bytes(size) for size in sizes]
        self.said += events
        self.stream.add(events, now_ns=0)

    def _number(self) -> bytes:
        self.counter = getattr(self, "counter", 0) + 1
        return self.counter.to_bytes(2, "big")

    @precondition(lambda self: self.stream.frames.in_memory)
    @rule()
    def spool(self):
        frame = self.stream.frames.in_memory[0]
        body = frame.load()
        self.stream.moved_to_spool(lambda: self._loaded(body))

    def _loaded(self, body: bytes) -> bytes:
        if not self.is_readable:
            raise FrameLost
        return body

    @rule()
    def hello(self):
        if not self.stream.is_done:
            self.up.append(self.stream.hello())

    @rule(most=st.integers(0, 3))
    def send(self, most):
        self._send(most)

    def _send(self, most: int) -> None:
        for message in self.stream.sendable():
            if most == 0:
                return
            most -= 1
            self.up.append(message)
            before = self.stream.in_flight_bytes
            assert not before or before + len(message.events) <= CREDIT_BYTES

    @precondition(lambda self: self.stream.frames.spooled_events)
    @rule()
    def the_spool_breaks_for_a_while(self):
        self.is_readable = not self.is_readable

    @rule()
    def silence(self):
        self.stream.lost()

    @precondition(lambda self: len(self.said) > 5)
    @rule()
    def finish(self):
        self._finish()

    def _finish(self) -> None:
        self.closing = True
        if (fin := self.stream.finish()) is not None:
            self.up.append(fin)

    # --- the wire and the sidecar

    @precondition(lambda self: self.up)
    @rule(repeats=st.integers(0, 2))
    def deliver_up(self, repeats):
        """Lost, once, or twice."""
        message = self.up.popleft()
        for _ in range(repeats):
            self._sidecar(message)

    @precondition(lambda self: self.down)
    @rule(repeats=st.integers(0, 2))
    def deliver_down(self, repeats):
        message = self.down.popleft()
        self.stale.append(message)
        for _ in range(repeats):
            self._emitter(message)

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def deliver_an_old_answer_again(self, data):
        """From before a restart or a reconnection."""
        message = data.draw(st.sampled_from(self.stale))
        # An old WELCOME or FIN_ACK says what was true; an ack that is durable stays so.
        self._emitter(message)

    @rule(beyond=st.integers(0, 2**40))
    def deliver_a_forged_ack(self, beyond):
        """Row 24: of events that were never sent."""
        self._emitter(Ack(1, self.stream.next_seq + len(self.received) + beyond, 10**9))

    @rule(seq=st.integers(-1, 30))
    def deliver_a_nack(self, seq):
        self._emitter(Nack(1, seq, "why"))

    @rule()
    def sync(self):
        self.durable = len(self.received)
        self.down.append(Ack(1, self.durable - 1, CREDIT_BYTES))

    @rule()
    def sidecar_restarts(self):
        """It has what was durable, and knows no stream."""
        del self.received[self.durable :]
        self.is_known = False
        self.up.clear()

    def _sidecar(self, message: Message) -> None:
        if isinstance(message, Hello):
            self.is_known = True
            missing = message.first_seq - len(self.received)
            self.received += [LOST] * missing
            self.down.append(Welcome(1, len(self.received), CREDIT_BYTES))
        elif not self.is_known:
            self.down.append(Nack(1, WHOLE_STREAM, "unknown stream"))
        elif isinstance(message, Data):
            self._sidecar_data(message)
        elif isinstance(message, Fin):
            if message.next_seq <= self.durable:
                self.is_finished = True
                self.down.append(FinAck(1))
            else:
                self.down.append(Welcome(1, len(self.received), CREDIT_BYTES))

    def _sidecar_data(self, message: Data) -> None:
        known = len(self.received) - message.base_seq
        events = split_events(message.events)
        if known < 0:
            self.down.append(Welcome(1, len(self.received), CREDIT_BYTES))
        elif known >= len(events):
            self.down.append(Ack(1, self.durable - 1, CREDIT_BYTES))
        else:
            self.received += events[known:]

    def _emitter(self, message: Message) -> None:
        if isinstance(message, Welcome):
            self.stream.on_welcome(message)
        elif isinstance(message, Ack):
            self.stream.on_ack(message)
        elif isinstance(message, Nack):
            self.stream.on_nack(message)
        elif isinstance(message, FinAck):
            self.stream.on_fin_ack(message)

    # --- what must be true

    @invariant()
    def the_sidecar_has_each_event_once_and_in_order(self):
        for mine, theirs in zip(self.said, self.received, strict=False):
            assert theirs in (mine, LOST)
        assert len(self.received) <= len(self.said)

    @invariant()
    def nothing_is_let_go_of_that_is_not_durable(self):
        held = {
            seq for frame in self.stream.frames for seq in range(frame.base_seq, frame.next_seq)
        }
        gone = set(range(len(self.said))) - held
        lost = {seq for seq in gone if seq >= self.durable}
        assert len(lost) <= self.stream.lost_events

    @invariant()
    def the_counts_are_right(self):
        stream = self.stream
        memory = [frame for frame in stream.frames if not frame.is_spooled]
        assert list(stream.frames.in_memory) == memory
        assert stream.frames.memory_bytes == sum(f.size + FRAME_OVERHEAD_BYTES for f in memory)
        assert stream.frames.spooled_events == sum(f.count for f in stream.frames if f.is_spooled)
        held = sum(frame.count for frame in stream.frames)
        assert stream.acknowledged + stream.lost_events + held == stream.next_seq
        assert 0 <= stream.in_flight_bytes <= sum(frame.size for frame in stream.frames)

    def teardown(self):
        """From wherever it was left: on a wire that works, all arrives and the stream ends."""
        self.up.clear()
        self.down.clear()
        self.is_readable = True
        for turn in range(6 * len(self.said) + 30):
            # Whatever was lost on the way, silence makes the sender ask again.
            if turn % 4 == 0:
                self.hello()
            self._send(1000)
            while self.up:
                self._sidecar(self.up.popleft())
            if len(self.received) > self.durable:
                self.sync()
            while self.down:
                self._emitter(self.down.popleft())
            self._finish()
            if self.stream.state is State.DONE:
                break
        assert self.stream.state is State.DONE and self.is_finished
        assert self.durable == len(self.said)
        assert self.received.count(LOST) <= self.stream.lost_events
        assert [e for e in self.received if e != LOST] == [
            mine for mine, theirs in zip(self.said, self.received, strict=True) if theirs != LOST
        ]


StreamAgainstSidecar.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
TestStreamAgainstSidecar = StreamAgainstSidecar.TestCase


def opened(next_seq: int = 0, credit: int = 10**6) -> OutgoingStream:
    stream = OutgoingStream(1, "run", "session", "rank0")
    stream.hello()
    stream.on_welcome(Welcome(1, next_seq, credit))
    return stream


def test_a_frame_that_the_socket_did_not_take_is_offered_again():
    """A message counts as sent when the next is asked for."""
    stream = opened()
    stream.add([b"\x01"], 0)

    first = next(iter(stream.sendable()))
    again = next(iter(stream.sendable()))

    assert (
        (first.base_seq, bytes(first.events))
        == (again.base_seq, bytes(again.events))
        == (0, b"\x91\x01")
    )
    assert stream.unacknowledged == 0 and stream.in_flight_bytes == 0


def test_a_forged_ack_lets_go_of_nothing():
    """Row 24: of events that were never sent; not even of those that were."""
    stream = opened()
    stream.add([b"\x01"], 0)
    assert len(list(stream.sendable())) == 1

    stream.on_ack(Ack(1, 1, 10**9))
    assert len(stream.frames) == 1 and stream.acknowledged == 0

    stream.on_ack(Ack(1, 0, 10**9))
    assert len(stream.frames) == 0 and stream.acknowledged == 1


def test_one_frame_goes_even_above_the_credit():
    """Or it would never go."""
    stream = opened(credit=0)
    stream.add([b"\x01"] * 10, 0)
    stream.add([b"\x01"] * 10, 0)

    assert len(list(stream.sendable())) == 1


def test_frames_fill_the_credit_to_its_last_byte():
    """And not one byte more."""
    stream = opened(credit=22)
    for _ in range(3):
        assert stream.add([b"\x01"] * 10, 0).size == 11

    assert len(list(stream.sendable())) == 2


def test_an_orphan_whose_sidecar_has_more_than_its_spool_still_ends():
    """What was sent from memory and acknowledged after the trainer's death."""
    stream = OutgoingStream(2, "run", "session", "rank0")
    stream.add_frame(Frame(5, 2, 3, 0, lambda: b"\x92\x01\x01", is_spooled=True))
    stream.hello()

    stream.on_welcome(Welcome(2, 50, 100))
    sent = list(stream.sendable())
    stream.on_ack(Ack(2, 49, 100))

    assert [message.base_seq for message in sent] == [5]
    assert stream.acknowledged == 2 and not stream.frames
    assert stream.finish() == Fin(2, 50)


def test_a_hole_in_a_spool_is_told_by_the_hello_behind_it():
    """Sending across it would only be asked for again, for ever."""
    stream = OutgoingStream(2, "run", "session", "rank0")
    for base_seq in (0, 20):
        stream.add_frame(Frame(base_seq, 1, 2, 0, lambda: b"\x91\x01", is_spooled=True))
    stream.hello()
    stream.on_welcome(Welcome(2, 0, 100))

    before = [message.base_seq for message in stream.sendable()]
    stream.on_ack(Ack(2, 0, 100))
    across = list(stream.sendable())

    assert before == [0] and across == []
    assert stream.state is State.CLOSED
    assert stream.hello().first_seq == 20


def test_an_event_that_comes_between_fin_and_its_answer_reopens_the_stream():
    """It is not lost with the stream that is over."""
    stream = opened()
    stream.finish()
    stream.add([b"\x01"], 0)

    stream.on_fin_ack(FinAck(1))

    assert stream.state is State.CLOSED and len(stream.frames) == 1


def test_a_repeated_nack_is_no_news():
    """An event is counted as refused once, however often its frame was resent."""
    stream = opened()
    stream.add([b"\x01", b"\x02"], 0)

    for seq in (1, 1, 2, WHOLE_STREAM, 0):
        stream.on_nack(Nack(1, seq, "why"))

    assert stream.refused_events == 2


@pytest.mark.parametrize("kind", [Welcome, FinAck])
def test_a_finished_stream_stays_finished(kind):
    """Row 24: replayed frames change nothing."""
    stream = opened()
    stream.finish()
    stream.on_fin_ack(FinAck(1))

    stream.on_welcome(Welcome(1, 3, 3)) if kind is Welcome else stream.on_fin_ack(FinAck(1))
    stream.lost()

    assert stream.state is State.DONE


FRAME = 64 * 1024


def stream_of(count: int) -> OutgoingStream:
    stream = OutgoingStream(1, "run", "session", "rank0")
    for _ in range(count):
        stream.add([bytes([0xC6]) + (FRAME - 5).to_bytes(4, "big") + bytes(FRAME - 5)], 0)
    return stream


@pytest.mark.parametrize("received", [1, 64, 100, 119, 120])
def test_what_the_sidecar_has_already_takes_no_credit(received):
    """However much it is: the rest is sent, and everything is acknowledged."""
    stream, credit = stream_of(120), 4 * 2**20
    stream.hello()
    stream.on_welcome(Welcome(1, received, credit))

    on_disk, turns = received, 0
    while stream.frames and turns < 120:
        turns += 1
        for data in stream.sendable():
            on_disk = max(on_disk, data.base_seq + 1)
        assert stream.in_flight_bytes <= credit
        stream.on_ack(Ack(1, on_disk - 1, credit))

    assert not stream.frames and stream.acknowledged == 120 and turns < 5
    assert stream.in_flight_bytes == 0


def test_what_the_sidecar_has_received_is_kept_until_it_is_on_its_disk():
    """A WELCOME is no acknowledgement: the sidecar may die before its sync."""
    stream = stream_of(3)
    stream.hello()
    stream.on_welcome(Welcome(1, 3, 10**6))
    assert [data.base_seq for data in stream.sendable()] == [2]
    assert len(stream.frames) == 3 and stream.acknowledged == 0

    stream.lost()
    stream.hello()
    stream.on_welcome(Welcome(1, 0, 10**6))

    assert [data.base_seq for data in stream.sendable()] == [0, 1, 2]


def test_a_hole_behind_what_is_durable_already_does_not_stall():
    """Nothing new can be sent across it: a repeated frame gets the acknowledgement."""
    stream = OutgoingStream(2, "run", "session", "rank0")
    for base_seq in (0, 20):
        stream.add_frame(Frame(base_seq, 1, 2, 0, lambda: b"\x91\x01", is_spooled=True))
    stream.hello()

    stream.on_welcome(Welcome(2, 1, 100))
    sent = [data.base_seq for data in stream.sendable()]
    stream.on_ack(Ack(2, 0, 100))

    assert sent == [0] and list(stream.sendable()) == []
    assert stream.hello().first_seq == 20


def test_a_frame_that_was_sent_once_and_can_not_be_loaded_again_is_told():
    """The sidecar had it, and forgot it when it was killed: nothing is sent across the hole."""
    is_readable = True

    def load() -> bytes:
        if not is_readable:
            raise FrameLost
        return b"\x91\x01"

    stream = OutgoingStream(2, "run", "session", "rank0")
    for base_seq in range(3):
        stream.add_frame(Frame(base_seq, 1, 2, 0, load, is_spooled=True))
    stream.hello()
    stream.on_welcome(Welcome(2, 0, 100))
    assert len(list(stream.sendable())) == 3
    stream.lost()
    stream.hello()
    stream.on_welcome(Welcome(2, 0, 100))

    is_readable = False
    first = stream.frames[1]
    first.load = lambda: b"\x91\x02"

    assert list(stream.sendable()) == [] and stream.lost_events == 1
    assert stream.state is State.CLOSED and stream.hello().first_seq == 1


@pytest.mark.parametrize("is_late", [True, False])
def test_a_hello_says_whether_its_session_is_over(is_late):
    """The sidecar must not take the rest of a former session for the newest one."""
    stream = OutgoingStream(2, "run", "session", "rank0", is_late=is_late)

    assert stream.hello().late is is_late


def test_each_state_says_what_may_be_sent_and_what_is_awaited():
    """The sender waits, sends or ends by these claims."""
    stream = OutgoingStream(1, "run", "session", "rank0")
    claims = []

    def note() -> None:
        claims.append((stream.state, stream.is_answer_due, stream.can_send_now, stream.is_unused))
        assert stream.is_done == (stream.state is State.DONE)

    note()
    assert list(stream.sendable()) == []
    stream.hello()
    note()
    stream.on_welcome(Welcome(1, 0, 100))
    note()
    stream.add([b"\x01"], 0)
    note()
    assert len(list(stream.sendable())) == 1
    note()
    stream.on_ack(Ack(1, 0, 100))
    stream.finish()
    note()
    stream.on_fin_ack(FinAck(1))
    note()

    assert claims == [
        (State.CLOSED, True, False, True),
        (State.ASKED, True, False, True),
        (State.OPEN, False, True, False),
        (State.OPEN, False, False, False),
        (State.OPEN, False, True, False),
        (State.FINISHING, True, False, False),
        (State.DONE, False, False, False),
    ]


def test_a_stream_with_an_event_is_in_use_before_any_sidecar_knows_it():
    """It needs an end, and nothing of it is sent before its WELCOME."""
    stream = OutgoingStream(1, "run", "session", "rank0")
    stream.add([b"\x01"], 0)

    stream.hello()

    assert not stream.is_unused and list(stream.sendable()) == []


def test_an_ack_lets_go_of_the_frames_up_to_it_and_of_no_other():
    """The next one may not be on the sidecar's disk."""
    stream = opened()
    for count in (2, 1, 1):
        stream.add([b"\x01"] * count, 0)
    assert len(list(stream.sendable())) == 3

    stream.on_ack(Ack(1, 1, 10**6))

    assert [frame.base_seq for frame in stream.frames] == [2, 3]
    assert (stream.acknowledged, stream.unacknowledged_events) == (2, 2)
    assert stream.unacknowledged == 2


def test_events_that_are_lost_are_not_waited_for():
    """Neither acknowledged nor outstanding."""
    stream = opened()

    def lost() -> bytes:
        raise FrameLost

    stream.add([b"\x01"] * 3, 0)
    stream.moved_to_spool(lost)
    stream.add([b"\x01"] * 2, 0)

    assert list(stream.sendable()) == []
    assert (stream.lost_events, stream.unacknowledged_events) == (3, 2)


def test_a_frame_in_the_spool_is_sent_from_there():
    """Its memory is free; what is sent is what the spool holds."""
    stream = opened()
    stream.add([b"\x01"], 0)

    stream.moved_to_spool(lambda: b"\x91\x02")

    assert [bytes(message.events) for message in stream.sendable()] == [b"\x91\x02"]
    assert not stream.frames.in_memory and stream.frames.spooled_events == 1


def test_an_ack_may_widen_the_credit():
    """What waited for it goes at once."""
    stream = opened(credit=4)
    for _ in range(6):
        stream.add([b"\x01"], 0)
    assert len(list(stream.sendable())) == 2

    stream.on_ack(Ack(1, 0, 8))

    assert len(list(stream.sendable())) == 3


def test_a_hello_on_the_way_sends_nothing_again():
    """An idle stream keeps itself alive with it, under the name that it has now."""
    stream = opened()
    stream.add([b"\x01"], 0)
    assert len(list(stream.sendable())) == 1

    stream.rename("rank0.again")
    hello = stream.hello()

    assert (hello.source, stream.state) == ("rank0.again", State.OPEN)
    assert (stream.unacknowledged, list(stream.sendable())) == (1, [])


def test_a_fin_that_nobody_answers_is_followed_by_a_hello():
    """The sidecar may have forgotten the stream: it ends only if it is known again."""
    stream = opened()
    stream.finish()

    stream.hello()
    stream.on_fin_ack(FinAck(1))

    assert stream.state is State.ASKED


def test_a_stream_that_the_sidecar_does_not_know_is_opened_anew():
    """Nothing is sent before it is welcome again, and then all that is not on disk."""
    stream = opened()
    for _ in range(2):
        stream.add([b"\x01"], 0)
    assert len(list(stream.sendable())) == 2

    stream.on_nack(Nack(1, WHOLE_STREAM, "unknown stream"))

    assert (stream.state, stream.unacknowledged, stream.in_flight_bytes) == (State.CLOSED, 0, 0)
    assert list(stream.sendable()) == []
    stream.hello()
    stream.on_welcome(Welcome(1, 0, 10**6))
    assert [message.base_seq for message in stream.sendable()] == [0, 1]


def test_last_events_that_are_lost_are_told_by_a_hello_before_the_end():
    """No frame follows that could show the hole."""

    def lost() -> bytes:
        raise FrameLost

    stream = opened()
    stream.add([b"\x01"] * 3, 0)
    stream.moved_to_spool(lost)
    assert list(stream.sendable()) == []

    assert stream.finish() is None and stream.state is State.CLOSED
    assert stream.hello().first_seq == 3
    stream.on_welcome(Welcome(1, 3, 10**6))
    assert stream.finish() == Fin(1, 3)
