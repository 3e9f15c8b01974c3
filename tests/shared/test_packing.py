"""Packing: what is refused, what is converted, and that the sidecar accepts the rest."""

from __future__ import annotations

import datetime
import enum
import math
import pathlib
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.events import (
    CONFIG_MAX_BYTES,
    ConfigUpdated,
    Event,
    Gap,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
    decode_envelope,
)
from shared.packing import Refused, kind_of, pack_event
from tests.shared.strategies import TIMES, events, same


def through(event: Event) -> Event | None:
    """The event as the sidecar has it."""
    return decode_envelope(pack_event(event, 1, 2)).event()


def metrics(**values: object) -> MetricsLogged:
    return MetricsLogged(kind="train", step=1, values=values)


class Unspeakable:
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        return "Unspeakable()"


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Shape:
    width: int
    path: pathlib.Path


@given(event=events(), wall_ns=TIMES, mono_ns=TIMES)
def test_what_is_packed_decodes_to_the_same_values(event, wall_ns, mono_ns):
    """The emitter's msgpack and the sidecar's msgspec agree on every event."""
    envelope = decode_envelope(pack_event(event, wall_ns, mono_ns))

    assert (envelope.tag, envelope.wall_ns, envelope.mono_ns) == (event.TAG, wall_ns, mono_ns)
    assert same(envelope.event(), event)


WILD_TEXT = st.text(st.characters(exclude_categories=[]), max_size=5)
"""Lone surrogates among it."""
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | WILD_TEXT
    | st.binary(max_size=3)
    | st.sampled_from([Unspeakable(), Colour.RED, Level.HIGH, np.float32(0.5), np.zeros(3)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(), inner, max_size=3),
    max_leaves=5,
)


@given(
    event=st.one_of(
        st.builds(MetricsLogged, kind=ANYTHING, step=ANYTHING, values=ANYTHING),
        st.builds(MetricsLogged, kind=st.just("val"), values=st.dictionaries(WILD_TEXT, ANYTHING)),
        st.builds(MessageLogged, level=ANYTHING, text=ANYTHING),
        st.builds(ConfigUpdated, config=ANYTHING),
        st.builds(RunStarted, project=ANYTHING, name=st.just("n"), tags=ANYTHING),
        st.builds(Gap, count=ANYTHING, reason=st.just("r"), by_kind=ANYTHING),
        st.builds(RunFinished, status=ANYTHING, exit_code=ANYTHING),
    )
)
def test_whatever_a_script_says_is_refused_or_decodes(event):
    """No third outcome: an exception would stop the sender, a bad event the sidecar's frame."""
    assert isinstance(kind_of(event), str)
    try:
        packed = pack_event(event, 1, 2)
    except Refused as exc:
        assert exc.reason
        return
    assert decode_envelope(packed).event() is not None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.25), 0.25),
        (np.int64(-(2**63)), -(2**63)),
        (np.uint8(255), 255),
        (np.bool_(True), True),
        (np.array(1.5), 1.5),
        (np.str_("warmup"), "warmup"),
        (Level.HIGH, 3),
        (type("Celsius", (float,), {})(1.5), 1.5),
        (type("Count", (int,), {})(4), 4),
        (type("Name", (str,), {})("a"), "a"),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_numpy_scalars_and_subclasses_are_their_values(value, expected):
    """A training script has them everywhere."""
    event = through(metrics(x=value))

    assert isinstance(event, MetricsLogged)
    assert event.values == {"x": expected} and type(event.values["x"]) is type(expected)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (object(), "not a scalar"),
        (None, "not a scalar"),
        ([1.0], "not a scalar"),
        (b"bytes", "not a scalar"),
        (1j, "not a scalar"),
        (np.zeros(1), "not a scalar"),
        (np.datetime64("2026-01-01"), "not a scalar"),
        (Unspeakable(), "not a scalar"),
        (2**63, "int beyond 64 bits"),
        (-(2**63) - 1, "int beyond 64 bits"),
        (np.uint64(2**64 - 1), "int beyond 64 bits"),
        (10**5000, "int beyond 64 bits"),
        ("x" * 200 * 1024, "event too large"),
        ("\ud800", "not serializable"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:12],
)
def test_what_is_no_scalar_of_64_bits_is_refused(value, reason):
    """Row 23 of the fault catalogue."""
    with pytest.raises(Refused) as refused:
        pack_event(metrics(x=value), 1, 2)

    assert refused.value.reason == reason


def test_a_live_tensor_is_refused_and_never_read(monkeypatch):
    """Row 23: reading it would stall the device. The message names the way."""
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(1.0)
    for name in ("item", "__float__", "__repr__", "__str__", "tolist", "__array__", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *a, **k: pytest.fail("it was read"))

    with pytest.raises(Refused, match="asynchronous copy") as refused:
        pack_event(metrics(loss=tensor), 1, 2)

    assert refused.value.reason == "not a scalar"
    for event in (
        MetricsLogged(kind="train", step=tensor, values={}),
        MetricsLogged(kind=tensor, values={}),
        MetricsLogged(kind="train", values={tensor: 1}),
        HistogramLogged(kind="quant", name="h", edges=[0.0, tensor], counts=[tensor]),
        HistogramLogged(kind="quant", name=tensor, edges=[0.0, 1.0], counts=[1.0]),
    ):
        with pytest.raises(Refused):
            pack_event(event, 1, 2)
    assert kind_of(MetricsLogged(kind=tensor, values={})) == "custom"


def test_a_tensor_in_a_config_becomes_its_type_unread(monkeypatch):
    """A config is never refused for one entry, and never read from a device."""
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(1.0)
    for name in ("item", "__float__", "__repr__", "__str__", "tolist", "__array__", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *a, **k: pytest.fail("it was read"))

    event = through(ConfigUpdated(config={"w": tensor, "dtype": torch.float32}))

    assert event == ConfigUpdated(config={"w": "torch.Tensor", "dtype": "torch.float32"})


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (metrics(**{f"m{i}": 1.0 for i in range(10_000)}), "too many values"),
        (metrics(**{"x" * 10_240: 1.0}), "bad name"),
        (metrics(**{"é" * 129: 1.0}), "bad name"),
        (MetricsLogged(kind="k" * 300, values={}), "bad name"),
        (MetricsLogged(kind="train", values={1: 1.0}), "bad name"),
        (MetricsLogged(kind="train", step=1.5, values={}), "bad step"),
        (MetricsLogged(kind="train", step=True, values={}), "bad step"),
        (MetricsLogged(kind="train", step=2**63, values={}), "int beyond 64 bits"),
        (MetricsLogged(kind="train", values=3), "not serializable"),
        (
            HistogramLogged(kind="q", name="n", edges=[0.0] * 514, counts=[0.0] * 513),
            "too many values",
        ),
        (HistogramLogged(kind="q", name="n", edges=["0", 1.0], counts=[1.0]), "not a scalar"),
        (MessageLogged(level="info", text="x" * 200 * 1024), "event too large"),
        (MessageLogged(level="info", text=7), "bad field"),
        (RunStarted(project=None, name="n"), "bad field"),
        (RunFinished(status="finished", exit_code="0"), "bad field"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_breaks_a_bound_is_refused_with_its_reason(event, reason):
    """Row 23: 10,000 keys, names of 10 kB, and fields of the wrong type."""
    with pytest.raises(Refused) as refused:
        pack_event(event, 1, 2)

    assert refused.value.reason == reason


def test_values_at_the_bounds_are_accepted():
    """1,024 values, names of 256 bytes, 512 bins, NumPy edges."""
    values = {f"{i:0256d}": float(i) for i in range(512)} | {f"m{i}": i for i in range(512)}
    histogram = HistogramLogged(
        kind="quant",
        step=np.int64(3),
        name="é" * 128,
        edges=list(np.arange(513.0)),
        counts=[1] * 512,
    )

    assert through(MetricsLogged(kind="train", step=np.int32(3), values=values)) == MetricsLogged(
        kind="train", step=3, values=values
    )
    found = through(histogram)
    assert isinstance(found, HistogramLogged) and found.edges[-1] == 512.0 and found.step == 3


def test_a_run_starts_with_any_config():
    """A run without its RunStarted would not be shown: entries become text instead."""
    cyclic: dict[str, object] = {}
    cyclic["self"] = cyclic
    config = {
        "path": pathlib.Path("/data"),
        "file": "caf\udce9",
        "rate": np.float64(3e-4),
        "steps": np.int64(7),
        "huge": 2**70,
        "colour": Colour.RED,
        "shape": Shape(2, pathlib.Path("p")),
        "when": datetime.date(2026, 1, 2),
        "tuple": (1, {2}),
        "array": np.zeros(3),
        "bad": Unspeakable(),
        "nan": math.nan,
        3: "three",
        "cyclic": cyclic,
    }

    event = through(RunStarted(project="p", name="n", config=config))

    assert isinstance(event, RunStarted)
    found = event.config
    assert found["path"] == "/data" and found["file"] == "caf\\udce9"
    assert found["rate"] == 3e-4 and found["steps"] == 7 and found["huge"] == str(2**70)
    assert found["colour"] == "red" and found["shape"] == {"width": 2, "path": "p"}
    assert found["when"] == "2026-01-02" and found["tuple"] == [1, [2]]
    assert found["array"] == "numpy.ndarray" and found["bad"].endswith("Unspeakable")
    assert math.isnan(found["nan"]) and found["3"] == "three" and "self" in found["cyclic"]


def test_too_large_a_config_is_replaced_by_a_word_about_it():
    """The run is shown all the same, and says why it has no config."""
    event = through(RunStarted(project="p", name="n", config={"x": "y" * CONFIG_MAX_BYTES}))

    assert isinstance(event, RunStarted)
    assert list(event.config) == ["telemetry_refused"]
    assert f"at most {CONFIG_MAX_BYTES}" in event.config["telemetry_refused"]


def test_kinds_are_counted_under_a_fixed_few_names():
    """Whatever a script calls its kinds, counts by kind stay bounded."""
    assert kind_of(MetricsLogged(kind="val", values={})) == "val"
    assert kind_of(MetricsLogged(kind="run_started", values={})) == "custom"
    assert kind_of(MetricsLogged(kind="x" * 10**6, values={})) == "custom"
    assert kind_of(RunFinished(status="finished")) == "run_finished"
