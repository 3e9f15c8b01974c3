"""What an emitter tells of itself, as metrics that every sink shows."""

from __future__ import annotations

from pathlib import Path

from shared.emitter import Emitter
from shared.events import Envelope, MetricsLogged, decode_envelope, encode_event
from telemetry.journal.rows import Row, RunContext, point_of
from tests.fakes import FakeSidecar
from tests.telemetry.waiting import wait_until

RUN = "r"


def metric(step: int) -> MetricsLogged:
    return MetricsLogged(kind="train", step=step, values={"train/loss": 0.5})


def test_an_emitter_counts_what_became_of_its_events(place: Path) -> None:
    """Refused ones by reason, too; and it says so only while it has anything new to say."""
    endpoint = f"ipc://{place}/s"
    with FakeSidecar(endpoint) as sidecar:
        emitter = Emitter(endpoint, run_id=RUN, source="rank0", series_interval_s=0.05)

        def last_told() -> MetricsLogged | None:
            said = [sidecar.disk.typed(key) for key in list(sidecar.disk.events)]
            told = [e for events in said for e in events if getattr(e, "kind", "") == "custom"]
            last = told[-1] if told else None
            return last if isinstance(last, MetricsLogged) else None

        emitter.emit(metric(1))
        emitter.emit(MetricsLogged(kind="train", step=2, values={"x": object()}))
        told = wait_until(lambda: (e := last_told()) and e.values["telemetry/refused_total"] and e)
        emitter.emit(metric(3))
        later = wait_until(lambda: (e := last_told()) is not told and e != told and e)
        assert emitter.close(10)

    assert told.values["telemetry/refused_total"] == 1
    assert told.values["telemetry/refused_total/not_a_scalar"] == 1
    assert told.values["telemetry/dropped_total"] == 0
    assert later.values["telemetry/emitted_total"] > told.values["telemetry/emitted_total"]
    assert later.values["telemetry/emitted_total"] == emitter.stats().emitted


def test_what_was_dropped_or_refused_is_told_by_reason(place: Path) -> None:
    """By the method, and in what the emitter tells of itself once somebody hears it."""
    endpoint = f"ipc://{place}/s"
    emitter = Emitter(
        endpoint, run_id=RUN, source="rank0", queue_max_bytes=2**17, series_interval_s=0.05
    )
    emitter.emit(object())  # type: ignore[arg-type]
    for step in range(5000):
        emitter.emit(metric(step))
    stats = wait_until(lambda: (s := emitter.stats()).dropped and s.refused and s)
    with FakeSidecar(endpoint) as sidecar:
        assert emitter.close(10)
        said = [e for key in list(sidecar.disk.events) for e in sidecar.disk.typed(key)]

    assert stats.dropped_by_reason == {"queue full": stats.dropped}
    assert stats.refused_by_reason == {"not an event": 1}
    told = [e.values for e in said if getattr(e, "kind", "") == "custom"]
    assert told[-1]["telemetry/dropped_total/queue_full"] > 0
    assert told[-1]["telemetry/refused_total/not_an_event"] == 1


def test_sources_are_told_apart_in_what_they_tell_of_themselves() -> None:
    """Rank 0 has the plain names; in one wandb run others would write over them."""
    event = MetricsLogged(kind="custom", values={"telemetry/emitted_total": 7, "mine": 1})
    envelope: Envelope = decode_envelope(encode_event(event, 1, 1))

    def names(source: str) -> set[str]:
        point = point_of(Row(0, source, "s", 0, envelope), event, RunContext())
        assert point is not None
        return set(point.values)

    assert names("rank0") == {"telemetry/emitted_total", "mine"}
    assert names("rank3") == {"telemetry/rank3/emitted_total", "mine"}
