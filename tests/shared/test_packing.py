"""Packing: what is refused, what is converted, and that the sidecar accepts the rest."""

from __future__ import annotations

import argparse
import datetime
import enum
import itertools
import math
import pathlib
import time
import types
from collections import ChainMap, OrderedDict, UserDict
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.emitter.packing import Refused, kind_of, pack_event, packed_row
from shared.events import (
    CONFIG_MAX_BYTES,
    ConfigUpdated,
    Event,
    Gap,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    PartialEvent,
    RunFinished,
    RunStarted,
    decode_envelope,
)
from tests.shared.strategies import TIMES, events, same


def through(event: Event) -> Event | None:
    """The event as the sidecar has it."""
    (packed,) = pack_event(event, 1, 2).pieces
    return decode_envelope(packed).event()


def left_out(event: Event) -> dict[str, str]:
    """What the sidecar is told is missing in it."""
    found = through(event)
    assert isinstance(found, PartialEvent) and found.left_out_count == len(found.left_out)
    return found.left_out


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


class Stage(enum.Enum):
    WARMUP = 1


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Shape:
    width: int
    path: pathlib.Path


@given(event=events(), wall_ns=TIMES, mono_ns=TIMES)
def test_what_is_packed_decodes_to_the_same_values(event, wall_ns, mono_ns):
    """The emitter's msgpack and the sidecar's msgspec agree on every event."""
    (packed,) = pack_event(event, wall_ns, mono_ns).pieces
    envelope = decode_envelope(packed)

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
        pieces = pack_event(event, 1, 2).pieces
    except Refused as exc:
        assert exc.reason
        return
    assert pieces and all(decode_envelope(packed).event() for packed in pieces)


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
        (Colour.RED, "red"),
        (Stage.WARMUP, "WARMUP"),
        (pathlib.PurePosixPath("/data"), "/data"),
        (Decimal("0.5"), 0.5),
        (Fraction(1, 4), 0.25),
        (np.longdouble(0.5), 0.5),
        (10**20, 1e20),
        ("caf\udce9", "caf\\udce9"),
        (datetime.timedelta(seconds=2), 2.0),
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
        (None, "None"),
        (b"bytes", "not a scalar"),
        (1j, "not a scalar"),
        (np.zeros(600), "too large"),
        (np.datetime64("2026-01-01"), "not a scalar"),
        (Unspeakable(), "not a scalar"),
        (2**64 - 1, "int beyond 64 bits"),
        (-(2**63) - 1, "int beyond 64 bits"),
        (np.uint64(2**64 - 1), "int beyond 64 bits"),
        (10**5000, "int beyond 64 bits"),
        (Decimal("1e400"), "beyond a float"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:12],
)
def test_what_is_no_scalar_of_64_bits_is_left_out_by_name(value, reason):
    """Rows 23 and 41: the rest of the row is recorded; a row of nothing else is refused."""
    event = metrics(loss=2.5, x=value)

    found = through(event)

    assert isinstance(found, MetricsLogged) and found.values == {"loss": 2.5}
    assert left_out(event) == {"x": reason} and found.step == 1
    with pytest.raises(Refused) as refused:
        pack_event(metrics(x=value), 1, 2)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2.5], {"x/0": 1, "x/1": 2.5}),
        ((True,), {"x/0": True}),
        (np.array([1.5]), {"x": 1.5}),
        (np.array([[1.0, 2.0], [3.0, 4.0]]), {"x/0/0": 1.0, "x/0/1": 2.0, "x/1/0": 3.0,
                                              "x/1/1": 4.0}),
        ({"a": 1, "b": {"c": "t"}}, {"x/a": 1, "x/b/c": "t"}),
        ({3, 1}, {"x/0": 1, "x/1": 3}),
        ([], {}),
        (np.array(1.5), {"x": 1.5}),
    ],
    ids=str,
)  # fmt: skip
def test_a_small_container_is_a_value_for_each_element(value, expected):
    """Named by its place, at any depth."""
    assert through(metrics(y=0, x=value)) == metrics(y=0, **expected)


def test_what_can_not_be_recorded_within_a_container_is_left_out_by_its_place():
    """The other elements are there."""
    event = metrics(x=[1, None, object()])

    assert through(event).values == {"x/0": 1}
    assert left_out(event) == {"x/1": "None", "x/2": "not a scalar"}


def test_a_live_tensor_is_left_out_and_never_read(monkeypatch):
    """Row 23: reading it would stall the device. The message names the way."""
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(1.0)
    for name in ("item", "__float__", "__repr__", "__str__", "tolist", "__array__", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *a, **k: pytest.fail("it was read"))

    with pytest.raises(Refused, match="asynchronous copy") as refused:
        pack_event(metrics(loss=tensor), 1, 2)

    assert refused.value.reason == "tensor"
    partly = MetricsLogged(kind=tensor, step=tensor, values={"a": 1, "b": tensor})
    assert left_out(partly) == {"kind": "tensor", "step": "tensor", "b": "tensor"}
    assert through(partly).values == {"a": 1} and through(partly).kind == "custom"
    keyed = through(MetricsLogged(kind="train", values={tensor: 1}))
    assert [name.startswith("torch.Tensor~") for name in keyed.values] == [True]
    with pytest.raises(Refused):
        pack_event(
            HistogramLogged(kind="quant", name="h", edges=[0.0, tensor], counts=[tensor]), 1, 2
        )
    assert kind_of(MetricsLogged(kind=tensor, values={})) == "custom"


def test_a_tensor_in_a_config_becomes_its_type_unread(monkeypatch):
    """A config is never refused for one entry, and never read from a device."""
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(1.0)
    for name in ("item", "__float__", "__repr__", "__str__", "tolist", "__array__", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *a, **k: pytest.fail("it was read"))

    event = through(ConfigUpdated(config={"w": tensor, "dtype": torch.float32}))

    assert isinstance(event, ConfigUpdated) and event.left_out == {"w": "tensor"}
    assert event.config == {"w": "torch.Tensor", "dtype": "torch.float32"}


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (MetricsLogged(kind="train", values=3), "not serializable"),
        (HistogramLogged(kind="q", name="n", edges=["0", 1.0], counts=[1.0]), "not a histogram"),
        (HistogramLogged(kind="q", name="n", edges=[1.0, 0.0], counts=[1.0]), "not a histogram"),
        (HistogramLogged(kind="q", name="n", edges=[0.0], counts=[1.0]), "not a histogram"),
        (HistogramLogged(kind="q", name="n", edges=None, counts=[1.0]), "not a scalar"),
        (MessageLogged(level="info", text=Unspeakable()), "not a scalar"),
        (MessageLogged(level="info", text=None), "not a text"),
        (Gap(count=-1, reason="r"), "bad field"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_event_of_which_nothing_can_be_recorded_is_refused_with_its_reason(event, reason):
    """Row 23: only then."""
    with pytest.raises(Refused) as refused:
        pack_event(event, 1, 2)

    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (None, None),
        (7, 7),
        (10.0, 10),
        (np.int64(3), 3),
        (np.float32(4.0), 4),
        (np.array(5), 5),
        (Decimal(6), 6),
        (Level.HIGH, 3),
        (-1, -1),
    ],
)
def test_a_step_is_the_whole_number_that_was_meant(step, expected):
    """Row 41: 10.0 is step 10."""
    assert through(MetricsLogged(kind="train", step=step, values={"x": 1})) == MetricsLogged(
        kind="train", step=expected, values={"x": 1}
    )


@pytest.mark.parametrize(
    "step",
    [1.5, math.nan, math.inf, True, "7", 2**63, 1e300, object(), [1]],
    ids=["1.5", "nan", "inf", "True", "7", "2**63", "1e300", "object", "list"],
)
def test_what_is_no_step_is_left_out_and_the_row_is_recorded(step):
    """Row 41: without a step, and saying so."""
    event = MetricsLogged(kind="train", step=step, values={"x": 1})

    assert through(event).step is None and through(event).values == {"x": 1}
    assert list(left_out(event)) == ["step"]


def test_a_wide_row_is_split_and_all_of_it_recorded():
    """10,000 values, and texts of 8 kB each: several events of one moment and step."""
    for values in (
        {f"m{i}": float(i) for i in range(10_000)},
        {f"t{i}": "x" * 8_000 for i in range(100)},
    ):
        pieces = pack_event(MetricsLogged(kind="train", step=3, values=values), 5, 6).pieces
        envelopes = [decode_envelope(packed) for packed in pieces]
        found = [envelope.event() for envelope in envelopes]

        assert {(e.wall_ns, e.mono_ns) for e in envelopes} == {(5, 6)} and len(found) > 1
        assert {event.step for event in found} == {3} and all(len(p) < 192 * 1024 for p in pieces)
        merged: dict[str, object] = {}
        for event in found:
            assert not merged.keys() & event.values.keys()
            merged |= event.values
        assert merged == values


LONG = "x" * 299


def test_names_that_have_to_be_changed_never_meet():
    """Too long, not Unicode, or not texts: each keeps a value of its own."""
    values = {LONG + "a": 1, LONG + "b": 2, "\udce9": 3, "\\udce9": 4, 1: 5, "1": 6, None: 7,
              Colour.RED: 8, "red": 9, (1, 2): 10, "é" * 129: 11, "é" * 128: 12}  # fmt: skip

    found = through(MetricsLogged(kind="train", values=values))

    assert sorted(found.values.values()) == list(range(1, 13))
    assert all(len(name.encode()) <= 256 for name in found.values)
    assert {"\\udce9", "1", "None", "red", "é" * 128, "1/2"} <= set(found.values)
    again = through(MetricsLogged(kind="train", values={LONG + "b": 0}))
    assert set(again.values) < set(found.values), "the same name is the same in every row"


@pytest.mark.parametrize("size", [513, 5_000, 65_536])
def test_too_many_bins_are_merged_with_their_neighbours(size):
    """None of the counts is lost; the ends stay."""
    event = HistogramLogged(
        kind="quant", name="h", edges=np.arange(size + 1.0), counts=np.ones(size)
    )

    found = through(event)

    assert len(found.counts) <= 512 and sum(found.counts) == size
    assert found.edges[0] == 0 and found.edges[-1] == size
    assert [high - low for low, high in itertools.pairwise(found.edges)] == found.counts


def test_a_long_text_is_cut_and_says_so():
    """Of a row, a message, notes."""
    row, message = metrics(x="y" * 10**6), MessageLogged(level="info", text="é" * 10**6)
    run = RunStarted(project="p", name="n", notes="z" * 300_000)

    assert len(through(row).values["x"]) == 8 * 1024 and left_out(row) == {"x": "text cut"}
    assert len(through(message).text.encode()) <= 64 * 1024 and through(message).text[-3:] == "..."
    assert len(through(run).notes) == 16 * 1024 and left_out(run) == {"notes": "text cut"}


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


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("project", None, ""),
        ("name", None, "my-run"),
        ("name", "", "my-run"),
        ("group", 7, "7"),
        ("notes", None, ""),
        ("notes", pathlib.PurePosixPath("/n"), "/n"),
        ("tags", None, []),
        ("tags", "one", ["one"]),
        ("tags", [1, "a", None, Colour.RED], ["1", "a", "red"]),
        ("tags", ("a", "b"), ["a", "b"]),
        ("tags", {"b", "a"}, ["a", "b"]),
        ("wandb_mode", Colour.RED, "red"),
        ("rank", np.int64(3), 3),
        ("rank", None, 0),
        ("world_size", 2.0, 2),
        ("resumed_from_step", np.float64(8.0), 8),
        ("config", None, {}),
    ],
)
def test_a_run_starts_whatever_stands_in_a_field(field, value, expected):
    """Row 41: taken as it was meant."""
    event = RunStarted(**{"project": "p", "name": "n", field: value})

    found = decode_envelope(pack_event(event, 1, 2, "my-run").pieces[0]).event()

    assert getattr(found, field) == expected and found.left_out == {}


@pytest.mark.parametrize("field", sorted(RunStarted.__struct_fields__))
def test_a_field_that_can_not_be_taken_is_left_out_and_the_run_starts(field):
    """Row 41: in no field does an object keep a run out of the sinks."""
    event = RunStarted(**{"project": "p", "name": "n", field: Unspeakable()})

    found = through(event)

    assert isinstance(found, RunStarted) and "Unspeakable()" not in str(found)
    if not field.startswith("left_out"):
        assert found.left_out_count == 1


class Model(msgspec.Struct):
    lr: float = 0.1


@dataclass
class Settings:
    lr: float = 0.1


@pytest.mark.parametrize(
    "config",
    [
        argparse.Namespace(lr=0.1),
        types.SimpleNamespace(lr=0.1),
        Settings(),
        Model(),
        OrderedDict(lr=0.1),
        types.MappingProxyType({"lr": 0.1}),
        ChainMap({"lr": 0.1}),
        UserDict(lr=0.1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_config_of_any_kind_is_its_names_and_values(config):
    """Row 41: also as a summary, and within another."""
    for event in (
        RunStarted(project="p", name="n", config={"inner": config, "lr": 0.1}),
        ConfigUpdated(config=config),
        RunFinished(status="finished", summary=config),
    ):
        found = through(event)
        body = found.summary if isinstance(found, RunFinished) else found.config
        assert body["lr"] == 0.1 and body.get("inner", body) == {"lr": 0.1} | body.get(
            "inner", body
        )
        assert found.left_out == {}


def test_a_run_starts_with_any_config():
    """A run without its RunStarted would not be shown: entries become text instead."""
    cyclic: dict[str, object] = {"lr": 1}
    cyclic["self"] = cyclic
    config = {
        "path": pathlib.Path("/data"),
        "file": "caf\udce9",
        "rate": np.float64(3e-4),
        "steps": np.int64(7),
        "huge": 2**70 + 1,
        "colour": Colour.RED,
        "shape": Shape(2, pathlib.Path("p")),
        "when": datetime.date(2026, 1, 2),
        "tuple": (1, {2}),
        "array": np.zeros(3),
        "large": np.zeros(1000, np.float32),
        "bad": Unspeakable(),
        "kind": Shape,
        "nan": math.nan,
        "none": None,
        3: "three",
        "cyclic": cyclic,
    }

    event = through(RunStarted(project="p", name="n", config=config))

    assert isinstance(event, RunStarted)
    found = event.config
    assert found["path"] == "/data" and found["file"] == "caf\\udce9"
    assert found["rate"] == 3e-4 and found["steps"] == 7 and found["huge"] == str(2**70 + 1)
    assert found["colour"] == "red" and found["shape"] == {"width": 2, "path": "p"}
    assert found["when"] == "2026-01-02" and found["tuple"] == [1, [2]]
    assert found["array"] == [0.0] * 3 and found["bad"].endswith("Unspeakable")
    assert found["kind"].endswith(".Shape") and found["none"] is None
    assert math.isnan(found["nan"]) and found["3"] == "three"
    assert found["cyclic"] == {"lr": 1, "self": "(itself)"}
    assert set(event.left_out) == {"bad", "cyclic.self"} and event.left_out_count == 2


def nested(depth: int) -> dict[str, object]:
    config: dict[str, object] = {"leaf": 1}
    for _ in range(depth):
        config = {"in": config}
    return config


def doubled(times: int) -> list[object]:
    """A list that holds itself twice at every level: 2 ** times elements when walked."""
    value: list[object] = [1]
    for _ in range(times):
        value = [value, value]
    return value


@pytest.mark.parametrize("config", [nested(900), {"x": doubled(40)}, {"x": [[1] * 999] * 999}])
def test_a_config_without_end_is_cut_in_time(config):
    """Row 41: 900 levels deep, or more elements than there is memory for; lr survives."""
    began = time.monotonic()

    event = through(RunStarted(project="p", name="n", config={"lr": 0.1, **config}))

    assert event.config["lr"] == 0.1 and event.left_out_count > 0
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "large",
    [
        {"id2label": {str(i): f"LABEL_{i}" for i in range(50_000)}},
        {"x": "y" * 10**6},
        {"x": list(range(100_000))},
        {"a": {"b": {"c": ["z" * 1000] * 200}}},
        {f"k{i}": "v" * 100 for i in range(2_000)},
    ],
    ids=lambda value: next(iter(value)),
)
def test_too_large_a_config_loses_its_largest_parts_only(large):
    """Row 41: what was cut is named, what is small and stands beside it is there."""
    event = through(RunStarted(project="p", name="n", config={"lr": 0.1, "seed": 1, **large}))

    assert isinstance(event, RunStarted)
    size = len(msgspec.msgpack.encode(event.config))
    assert size <= CONFIG_MAX_BYTES and event.config["lr"] == 0.1 and event.config["seed"] == 1
    assert event.left_out_count >= len(event.left_out) > 0
    assert set(event.left_out.values()) <= {"configuration too large", "too large"}
    assert size > CONFIG_MAX_BYTES * 0.9


@pytest.mark.parametrize(
    ("code", "expected"),
    [(None, None), (0xC0000005, 0xC0000005), (1.0, 1), (np.int32(2), 2), (-9, -9), (True, 1)],
)
def test_an_exit_code_is_the_number_that_it_was(code, expected):
    """Also that of a crash on Windows."""
    event = through(RunFinished(status="failed", exit_code=code))

    assert event == RunFinished(status="failed", exit_code=expected)


def test_an_ending_without_a_status_is_told_by_its_code():
    """What is no code is left out by name."""
    assert through(RunFinished(status=None)).status == "finished"
    assert through(RunFinished(status=None, exit_code=3)).status == "failed"
    assert left_out(RunFinished(status="finished", exit_code="0")) == {"exit_code": "not an int"}


def test_the_name_of_an_object_is_the_same_in_every_row():
    """Or each row would begin a curve of its own."""
    names = [list(through(MetricsLogged(kind="train", values={key: 1})).values)
             for key in (Unspeakable(), Unspeakable(), b"k", b"k")]  # fmt: skip

    assert names[0] == names[1] != names[2] == names[3]


def test_a_histogram_without_a_name_is_recorded():
    """What is no name is left out."""
    event = HistogramLogged(kind="quant", name=Unspeakable(), edges=(0, 1), counts=(1,))

    assert through(event).name == "histogram" and left_out(event) == {"name": "not a scalar"}


def test_a_message_is_a_text_whatever_it_was():
    """An exception is its type and what it was raised with."""
    said = [through(MessageLogged(level=level, text=text)) for level, text in
            ((None, 7), ("info", KeyError("x")), (3, pathlib.PurePosixPath("/p")))]  # fmt: skip

    assert [(event.level, event.text) for event in said] == [
        ("info", "7"), ("info", "KeyError: x"), ("3", "/p")
    ]  # fmt: skip


def test_what_was_left_out_is_told_for_at_most_64_names_and_counted_in_all():
    """However many there are; names are safe to print."""
    values = {f"n{i}\x1b": None for i in range(5_000)} | {"x": 1}

    found = through(MetricsLogged(kind="train", values=values))

    assert len(found.left_out) == 64 and found.left_out_count == 5_000
    assert all(name.isprintable() for name in found.left_out)


def test_kinds_are_counted_under_a_fixed_few_names():
    """Whatever a script calls its kinds, counts by kind stay bounded."""
    assert kind_of(MetricsLogged(kind="val", values={})) == "val"
    assert kind_of(MetricsLogged(kind="run_started", values={})) == "custom"
    assert kind_of(MetricsLogged(kind="x" * 10**6, values={})) == "custom"
    assert kind_of(RunFinished(status="finished")) == "run_finished"


@given(
    event=st.builds(
        MetricsLogged,
        kind=st.sampled_from(["train", "val", "custom", "other"]),
        step=st.none() | st.integers(-(2**63), 2**63 - 1) | st.just(2**64),
        values=st.dictionaries(
            st.sampled_from(["a", "b/c", "d" * 300]),
            st.floats() | st.integers(-(2**63), 2**64) | st.booleans() | st.text() | st.none(),
        ),
    ),
    wall_ns=TIMES,
    mono_ns=TIMES,
)
def test_the_short_way_of_a_row_gives_the_same_bytes(event, wall_ns, mono_ns):
    """Of a row that the short way takes; names become known on the long way."""
    try:
        pieces = pack_event(event, wall_ns, mono_ns).pieces
    except Refused:
        pieces = []
    row = packed_row(event, wall_ns, mono_ns)
    assert row is None or [row] == pieces


def test_the_short_way_is_taken_by_rows_of_numbers_and_no_others():
    pack_event(metrics(loss=1.0), 1, 2)
    assert packed_row(metrics(loss=1.0), 1, 2) is not None
    assert packed_row(metrics(loss=True, lr=2), 1, 2) is None, "lr is not known yet"
    for odd in ("text", None, np.float64(1), [1], 2**63):
        assert packed_row(metrics(loss=odd), 1, 2) is None
    assert packed_row(MetricsLogged(kind="mine", step=1, values={"loss": 1.0}), 1, 2) is None
    assert packed_row(MessageLogged(level="info", text="loss"), 1, 2) is None
