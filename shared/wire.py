"""Wire: the messages between an emitter and the sidecar over ZeroMQ.

In: messages as structs, or the two frames of a message as bytes.
Out: the same as bytes, or as a struct.
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
time: it asks for the next seq, and keeps an idle stream alive.

The sidecar answers a frame that it has already with an ACK, and a frame behind a
hole with a WELCOME; of a frame that it has in part it takes the rest. It answers a
frame that is not an array of events with a NACK of its base_seq; the base_seq of the
next frame, or FIN, then shows how many events that frame had, and they are counted as
missing.

A HELLO whose first_seq lies beyond the last seq of the sidecar says that the events
between are lost. The stream, also an open one, continues at first_seq.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

import msgspec

from shared.events import DecodeError
from shared.ids import StreamId

VERSION: Final = 1
SCHEMA: Final = 1
"""Version of the event schema of this code, sent in HELLO."""

FRAME_MAX_BYTES: Final = 1024 * 1024
FRAME_MAX_EVENTS: Final = 256
FRAME_TARGET_BYTES: Final = 256 * 1024
"""Size at which an emitter closes a frame, as at FRAME_MAX_EVENTS; one event always fits."""

WHOLE_STREAM: Final = -1
"""Value of seq in a NACK that refuses the whole stream for now, not one event."""

U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
# Small enough that a seq plus a frame's count can never leave int64.
Seq = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
SeqOrNone = Annotated[int, msgspec.Meta(ge=-1, le=2**62)]
Name = Annotated[str, msgspec.Meta(max_length=256)]


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One message; TYPE is the second byte of its head."""

    TYPE: ClassVar[int] = 0


class Hello(Message, frozen=True, array_like=True):
    """Open a stream, or ask for its next seq again.

    first_seq: the oldest event that the emitter still holds; events between the
    sidecar's last and this one are lost, and are counted as a gap.
    late: the session has ended, and another process sends the spool that it left.
    """

    TYPE: ClassVar[int] = 1

    stream: U32
    run_id: Name
    session: Name
    source: Name
    schema: U32
    first_seq: Seq = 0
    late: bool = False

    @property
    def stream_id(self) -> StreamId:
        return StreamId(self.run_id, self.session, self.source)


class Welcome(Message, frozen=True, array_like=True):
    """Tell the emitter to send from next_seq on, with at most credit_bytes unacknowledged.

    Events before next_seq were received; an ACK says which of them are on disk.
    notice: a sentence for the person who runs the producer, for example that another
    session is live; logged once.
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
    """Confirm that all events up to and including durable_seq are on disk."""

    TYPE: ClassVar[int] = 4

    stream: U32
    durable_seq: SeqOrNone
    credit_bytes: Seq
    notice: str = ""


class Nack(Message, frozen=True, array_like=True):
    """Refuse one event for good or, with WHOLE_STREAM as seq, the whole stream for now."""

    TYPE: ClassVar[int] = 5

    stream: U32
    seq: SeqOrNone
    reason: str


class Fin(Message, frozen=True, array_like=True):
    """End the stream, which has next_seq events in all."""

    TYPE: ClassVar[int] = 6

    stream: U32
    next_seq: Seq


class FinAck(Message, frozen=True, array_like=True):
    """Confirm that all events of a finished stream are on disk."""

    TYPE: ClassVar[int] = 7

    stream: U32


_TYPES: Final = (Hello, Welcome, Data, Ack, Nack, Fin, FinAck)
_DECODERS: Final = {cls.TYPE: msgspec.msgpack.Decoder(cls) for cls in _TYPES}
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(message: Message) -> list[bytes]:
    """Encode a message as its two ZeroMQ frames."""
    return [bytes((VERSION, message.TYPE)), _ENCODER.encode(message)]


def decode(frames: list[bytes]) -> Message:
    """Decode the two ZeroMQ frames of a message.

    Raises:
        DecodeError: the frames are not a valid message.
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
