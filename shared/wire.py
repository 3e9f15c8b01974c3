"""The wire: what an emitter and the sidecar say to each other over ZeroMQ.

In: messages as structs, or the two frames of a message as bytes.
Out: the other of the two.
Never: opens a socket, or looks into an event.

A message is two ZeroMQ frames: a head of two bytes, [version u8, type u8],
and a body, one MessagePack array whose items are the fields of the struct, in
order. Items that a later version adds behind them are ignored.

    emitter                               sidecar
    HELLO stream, run_id, session,   ->
          source, schema, first_seq,
          late
                                     <-   WELCOME stream, next_seq, credit_bytes, notice
    DATA  stream, base_seq, [events] ->
                                     <-   ACK  stream, durable_seq, credit_bytes, notice
                                     <-   NACK stream, seq, reason
    FIN   stream, next_seq           ->
                                     <-   FIN_ACK stream

`stream` numbers the (run_id, session, source) triples of one socket. Events
of a stream are numbered from 0 without holes. HELLO may be repeated at any
time: it asks where to go on, and keeps an idle stream alive. A frame that the
sidecar has already is answered with an ACK, one behind a hole with a WELCOME; of one
that it has in part it takes the rest. A frame that is no array of events is answered
with a NACK of its base_seq, and the next frame, or FIN, tells how many it had: they
are missing, and counted.
A HELLO whose first_seq lies beyond what the sidecar has says that the events
between are lost: also on a stream that is open, it goes on from there.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

import msgspec

from shared.events import DecodeError

VERSION: Final = 1
SCHEMA: Final = 1
"""Version of the event schema that this code speaks, told in HELLO."""

FRAME_MAX_BYTES: Final = 1024 * 1024
FRAME_MAX_EVENTS: Final = 256
FRAME_TARGET_BYTES: Final = 256 * 1024
"""An emitter closes a frame here, or at FRAME_MAX_EVENTS; a single event fits always."""

WHOLE_STREAM: Final = -1
"""As the seq of a NACK: not one event but the stream is refused, for now."""

U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
# Small enough that a seq plus a frame's count can never leave int64.
Seq = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
SeqOrNone = Annotated[int, msgspec.Meta(ge=-1, le=2**62)]
Name = Annotated[str, msgspec.Meta(max_length=256)]


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One message; TYPE is the second byte of its head."""

    TYPE: ClassVar[int] = 0


class Hello(Message, frozen=True, array_like=True):
    """Open a stream, or ask again where it stands.

    first_seq is the oldest event that the emitter still holds: what lies
    between the sidecar's last and this one is lost, and is counted as a gap.
    late says that the events are those of a session that is over: somebody else
    sends the spool that it left.
    """

    TYPE: ClassVar[int] = 1

    stream: U32
    run_id: Name
    session: Name
    source: Name
    schema: U32
    first_seq: Seq = 0
    late: bool = False


class Welcome(Message, frozen=True, array_like=True):
    """Send on from next_seq, with at most credit_bytes unacknowledged.

    All before next_seq is received; an ACK says what is on disk of it. notice is a
    sentence for whoever runs the producer, told once: another session is live, for one.
    """

    TYPE: ClassVar[int] = 2

    stream: U32
    next_seq: Seq
    credit_bytes: Seq
    notice: str = ""


class Data(Message, frozen=True, array_like=True):
    """A frame of events, still packed as one array; base_seq is that of the first."""

    TYPE: ClassVar[int] = 3

    stream: U32
    base_seq: Seq
    events: msgspec.Raw


class Ack(Message, frozen=True, array_like=True):
    """Everything up to and with durable_seq is on disk."""

    TYPE: ClassVar[int] = 4

    stream: U32
    durable_seq: SeqOrNone
    credit_bytes: Seq
    notice: str = ""


class Nack(Message, frozen=True, array_like=True):
    """This one event will never be accepted (or, with WHOLE_STREAM, the stream is refused)."""

    TYPE: ClassVar[int] = 5

    stream: U32
    seq: SeqOrNone
    reason: str


class Fin(Message, frozen=True, array_like=True):
    """The stream ends here: next_seq events in all."""

    TYPE: ClassVar[int] = 6

    stream: U32
    next_seq: Seq


class FinAck(Message, frozen=True, array_like=True):
    """All of a finished stream is on disk."""

    TYPE: ClassVar[int] = 7

    stream: U32


_TYPES: Final = (Hello, Welcome, Data, Ack, Nack, Fin, FinAck)
_DECODERS: Final = {cls.TYPE: msgspec.msgpack.Decoder(cls) for cls in _TYPES}
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(message: Message) -> list[bytes]:
    """The two frames of a message."""
    return [bytes((VERSION, message.TYPE)), _ENCODER.encode(message)]


def decode(frames: list[bytes]) -> Message:
    """The message in two frames.

    Raises:
        DecodeError: anything else, whatever it is.
    """
    if len(frames) != 2 or len(frames[0]) != 2:
        raise DecodeError(f"message of {len(frames)} frames, expected a head and a body")
    version, kind = frames[0]
    if version != VERSION:
        raise DecodeError(f"wire version {version}, expected {VERSION}")
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise DecodeError(f"unknown message type {kind}")
    if len(frames[1]) > FRAME_MAX_BYTES:
        raise DecodeError(f"body of {len(frames[1])} bytes, at most {FRAME_MAX_BYTES}")
    # RecursionError and UnicodeDecodeError (a ValueError) come from hostile bytes.
    try:
        return decoder.decode(frames[1])
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise DecodeError(f"message type {kind}: {exc}") from exc
