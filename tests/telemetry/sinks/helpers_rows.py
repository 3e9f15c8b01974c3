"""Rows for sink tests: a journal without files.

In: events, in the order in which ingest would have journaled them.
Out: rows, numbered as ingest numbers them.
Never: touches a disk or a clock.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from shared.events import Event, MetricsLogged, RunStarted, Scalar, decode_envelope, encode_event
from telemetry.journal.rows import Row

START_WALL_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000


class RowMaker:
    """A journal in memory: append events, then take its rows."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._seqs: Counter[tuple[str, str]] = Counter()

    def append(
        self,
        event: Event,
        source: str = "rank0",
        session: str = "s1",
        *,
        wall_ns: int | None = None,
        mono_ns: int | None = None,
        seq: int | None = None,
    ) -> Row:
        """Journal an event, a second after the one before on both clocks unless told otherwise."""
        number = len(self.rows)
        stream = (source, session)
        if seq is not None:
            self._seqs[stream] = seq
        wall_ns = START_WALL_NS + number * SECOND_NS if wall_ns is None else wall_ns
        mono_ns = number * SECOND_NS if mono_ns is None else mono_ns
        envelope = decode_envelope(encode_event(event, wall_ns, mono_ns))
        row = Row(number, source, session, self._seqs[stream], envelope)
        self._seqs[stream] += 1
        self.rows.append(row)
        return row

    def start(
        self,
        source: str = "rank0",
        session: str = "s1",
        *,
        wall_ns: int | None = None,
        mono_ns: int | None = None,
        **fields: Any,
    ) -> Row:
        defaults: dict[str, Any] = {"project": "p", "name": "n", "host": "node1", "pid": 7}
        event = RunStarted(**(defaults | fields))
        return self.append(event, source, session, wall_ns=wall_ns, mono_ns=mono_ns)

    def metrics(
        self,
        step: int | None,
        values: dict[str, Scalar],
        source: str = "rank0",
        session: str = "s1",
        *,
        kind: str = "train",
        **place: Any,
    ) -> Row:
        event = MetricsLogged(kind=kind, step=step, values=values)
        return self.append(event, source, session, **place)

    def hardware(self, values: dict[str, Scalar], host: str = "node1", **place: Any) -> Row:
        place = {"session": f"sampler-{host}"} | place
        return self.metrics(None, values, f"hardware:{host}", kind="hardware", **place)
