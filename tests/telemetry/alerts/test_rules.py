"""Rules of alerts: when each begins, when it is over, and what a typo costs."""

from __future__ import annotations

import json
import math

import pytest

from shared.events import MetricsLogged, Scalar
from telemetry.alerts.evaluator import Evaluator
from telemetry.alerts.rules import DEFAULTS, read_rules
from telemetry.alerts.verdicts import CLEAR_S, HOST, REST_S, Conditions, Key, Verdict
from telemetry.watch.facts import RunFacts, SinkStatus, Situation
from telemetry.watch.feed import Fed
from telemetry.watch.latest import Latest

SECOND_NS = 10**9
RUN = RunFacts("r", is_started=True, main_session="s1", durable_row=100)


class Watched:
    """An evaluator and a clock; each call of `log` is one row of rank 0, a second later."""

    def __init__(self, **rules: object) -> None:
        self.evaluator = Evaluator(read_rules(json.dumps(rules)))
        self.latest = Latest()
        self.now_ns = SECOND_NS
        self.step = 0

    def log(self, session: str = "s1", kind: str = "train", **values: Scalar) -> None:
        self.step += 1
        self.now_ns += SECOND_NS
        named = {name.replace("__", "/"): value for name, value in values.items()}
        event = MetricsLogged(kind=kind, step=self.step, values=named)
        frame = Fed("r", session, "rank0", [event])
        self.evaluator.see([frame], self.now_ns)
        self.latest.take([frame], self.now_ns)

    def hardware(self, values: dict[str, Scalar]) -> None:
        event = MetricsLogged(kind="hardware", step=None, values=values)
        self.latest.take([Fed("r", "h", "hardware:n1", [event])], self.now_ns)

    def bad(self, **situation: object) -> set[tuple[str, str]]:
        """Name and subject of each condition that is bad now."""
        found = self.evaluator.verdicts(
            Situation(**{"runs": (RUN,), **situation}), self.latest, self.now_ns
        )
        return {(v.key.name, v.key.subject) for v in found if v.is_bad}


# --- the table of the user


def test_without_a_table_every_rule_has_its_defaults():
    """And nothing is complained of."""
    rules = read_rules("")

    assert rules.by_name.keys() == DEFAULTS.keys() and rules.complaints == ()
    assert rules.get("step_time").number("ratio") == 2.0


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"step_tme": {"ratio": 3}}, "step_tme: no such rule"),
        ({"step_time": {"ratoi": 3}}, "step_time.ratoi"),
        ({"step_time": {"ratio": "3"}}, "step_time.ratio"),
        ({"step_time": {"ratio": True}}, "step_time.ratio"),
        ({"step_time": {"ratio": -1}}, "step_time.ratio"),
        ({"step_time": {"severity": "loud"}}, "step_time.severity"),
        ({"step_time": 3}, "must be a table"),
        ({"mine": {"metric": "x"}}, "above and below"),
        ({"mine": {"metric": "x", "above": 1, "below": 0}}, "above and below"),
        ({"mine": {"metric": 7, "above": 1}}, "metric must be"),
        ({"mine": {"metric": "x", "above": "1"}}, "must be numbers"),
        ({"mine": {"metric": "x", "above": 1, "abov": 2}}, "'abov' is unknown"),
        ({"mine": {"metric": "x", "above": 1, "enabled": 0}}, "true or false"),
        ({"M\n": {"metric": "x", "above": 1}}, "a name has"),
    ],
)
def test_a_typo_is_one_line_and_the_rest_goes_on(table, complaint):
    """The other rules are as asked; the line has no line break in it."""
    rules = read_rules(json.dumps(table | {"loss_diverging": {"ratio": 4}}))

    (line,) = rules.complaints
    assert complaint in line and "\n" not in line
    assert rules.get("loss_diverging").number("ratio") == 4
    assert rules.get("step_time").number("ratio") == 2.0 and not rules.own


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '{"a": 1e999}'])
def test_a_table_that_is_no_table_costs_a_line(text):
    """The defaults stay."""
    rules = read_rules(text)

    assert len(rules.complaints) == 1 and rules.by_name.keys() == DEFAULTS.keys()


def test_a_rule_can_be_switched_off():
    """It gives no verdict."""
    watched = Watched(loss_not_finite={"enabled": False})
    watched.log(train__loss=math.nan)

    assert watched.bad() == set()


# --- training


def test_a_step_that_takes_twice_as_long_as_at_the_start_is_bad_until_it_is_not():
    """Each session has its own baseline."""
    watched = Watched()
    for _ in range(3):
        watched.log(train__step_seconds=30.0)  # compiling
    for _ in range(20):
        watched.log(train__step_seconds=0.1)
    for _ in range(5):
        watched.log(train__step_seconds=0.19)
    before = watched.bad()
    for _ in range(3):
        watched.log(train__step_seconds=0.25)
    doubled = watched.bad()
    for _ in range(3):
        watched.log(train__step_seconds=0.1)
    after = watched.bad()
    for _ in range(40):
        watched.log("s2", train__step_seconds=0.5)

    assert (before, after, watched.bad()) == (set(), set(), set())
    assert doubled == {("step_time", "rank0")}


def test_a_script_that_logs_no_step_time_is_timed_by_its_rows():
    """By the time between them; rows that come together say nothing."""
    watched = Watched()
    for _ in range(30):
        watched.log(loss=1.0)
    for _ in range(4):
        watched.now_ns += 2 * SECOND_NS
        watched.log(loss=1.0)

    assert watched.bad() == {("step_time", "rank0")}


@pytest.mark.parametrize("name", ["train__loss", "val__loss", "loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_bad_and_over_after_ten_that_are(name, value):
    """One such row is enough, also if finite ones follow before the rules look."""
    watched = Watched()
    watched.log(**{name: value})
    for _ in range(12):
        watched.log(**{name: 1.0})
    at_once, after = watched.bad(), watched.bad()

    assert at_once == {("loss_not_finite", name.replace("__", "/"))} and after == set()


def test_a_loss_that_grows_half_as_large_again_diverges():
    """Against the lowest of this session; one high row is no divergence."""
    watched = Watched()
    for _ in range(20):
        watched.log(train__loss=2.0)
    watched.bad()
    watched.log(train__loss=100.0)
    one = watched.bad()
    for _ in range(8):
        watched.log(train__loss=3.1)

    assert one == set() and watched.bad() == {("loss_diverging", "rank0")}


def test_a_negative_loss_diverges_upwards_only():
    """A log likelihood that falls from -2 to -4 gets better."""
    watched = Watched()
    for loss in [-2.0] * 10 + [-4.0] * 10:
        watched.log(train__loss=loss)
    better = watched.bad()
    for _ in range(10):
        watched.log(train__loss=-1.5)

    assert better == set() and watched.bad() == {("loss_diverging", "rank0")}


def test_a_validation_loss_that_rises_three_times_is_bad():
    """Until one is lower than that before."""
    watched = Watched()
    for loss in (2.0, 1.0, 1.1, 1.2):
        watched.log(kind="val", val__loss=loss)
    twice = watched.bad()
    watched.log(kind="val", val__loss=1.3)
    thrice = watched.bad()
    watched.log(kind="val", val__loss=1.25)

    assert (twice, watched.bad()) == (set(), set())
    assert thrice == {("val_loss_rising", "rank0")}


def test_ternary_codes_that_collapse_are_named_by_their_layer():
    """Nearly all 0; or hardly any -1."""
    watched = Watched()
    watched.log(quant__zero_ratio=0.5, quant__plus_ratio=0.25, quant__minus_ratio=0.25)
    watched.log(**{"quant/layers.3.ffn.up/zero_ratio": 0.97})
    watched.log(**{"quant/layers.4.ffn.up/minus_ratio": 0.01})

    assert watched.bad() == {
        ("ternary_collapse", "layers.3.ffn.up"),
        ("ternary_collapse", "layers.4.ffn.up"),
    }


# --- a trainer that is silent


@pytest.mark.parametrize(
    ("facts", "is_bad"),
    [
        ({"silent_s": 29}, False),
        ({"silent_s": 31}, True),
        ({"silent_s": 31, "finish_status": "finished"}, False),
    ],
)
def test_a_trainer_of_which_nothing_is_heard_is_silent(facts, is_bad):
    """Keepalives count as a word, and a trainer that has finished may be silent."""
    run = RunFacts("r", is_started=True, main_session="s1", **facts)

    assert bool(Watched().bad(runs=(run,))) == is_bad


def test_a_trainer_that_lives_and_logs_nothing_hangs():
    """After five times its longest time between two rows, and 300 s at least."""
    watched = Watched()
    watched.log(train__loss=1.0)
    watched.now_ns += 100 * SECOND_NS
    watched.log(train__loss=1.0)
    watched.now_ns += 400 * SECOND_NS
    slow = watched.bad()
    watched.now_ns += 110 * SECOND_NS

    assert slow == set() and watched.bad() == {("trainer_silent", "rank0")}


# --- machine, disk and sinks


def test_memory_near_its_limit_is_named():
    """Of the machine, of the control group and of each GPU; without a limit nothing is said."""
    watched = Watched()
    watched.hardware({"memory_percent": 50.0, "cgroup/memory_used_bytes": 10})
    fine = watched.bad()
    watched.hardware(
        {
            "memory_percent": 96.0, "cgroup/memory_used_bytes": 99,
            "cgroup/memory_limit_bytes": 100, "gpu/1/uuid": "GPU-1",
            "gpu/1/memory_used_bytes": 99, "gpu/1/memory_total_bytes": 100,
        }
    )  # fmt: skip

    assert fine == set()
    assert watched.bad() == {
        ("memory_near_limit", "n1 memory"),
        ("memory_near_limit", "n1 cgroup/memory"),
        ("gpu_memory_near_limit", "n1 gpu/1"),
    }


def test_a_disk_that_is_nearly_full_is_bad():
    """By the bytes that are free where runs are recorded."""
    assert Watched().bad(free_bytes=10**9) == {("disk_nearly_full", "disk")}
    assert Watched().bad(free_bytes=2 * 10**9) == set()
    assert Watched(disk_nearly_full={"free_bytes": 3e9}).bad(free_bytes=2 * 10**9)


def test_a_sink_that_is_away_and_one_that_does_not_move_are_bad():
    """One that has nothing to do may stand still."""
    watched = Watched()
    away = SinkStatus("r", "wandb", "unavailable", 100, 3, "401")
    stuck = SinkStatus("r", "tensorboard", "following", 40, 0, "")
    done = SinkStatus("r", "console", "following", 100, 0, "")
    now = watched.bad(sinks=[away, stuck, done])
    watched.now_ns += 301 * SECOND_NS
    later = watched.bad(sinks=[away, stuck, done])

    assert now == {("sink_away", "sink/wandb")}
    assert later == {("sink_away", "sink/wandb"), ("sink_behind", "sink/tensorboard")}


def test_a_rule_of_the_users_own_is_about_a_metric():
    """With `*`; of a run or of a machine; NaN is neither above nor below."""
    watched = Watched(
        gradients={"metric": "train/grad_*", "above": 10},
        hot={"metric": "gpu/*/temperature_celsius", "above": 80},
    )
    watched.log(train__grad_norm=11.0, train__grad_max=math.nan, train__grad_name="x")
    watched.hardware({"gpu/0/temperature_celsius": 81, "gpu/1/temperature_celsius": 79})

    assert watched.bad() == {
        ("gradients", "train/grad_norm"),
        ("hot", "n1 gpu/0/temperature_celsius"),
    }


# --- from verdicts to conditions

KEY = Key("r", "x", "")


def steps(conditions: Conditions, *verdicts: tuple[float, bool], for_s: float = 0.0) -> list[bool]:
    """After each (second, is_bad): True if the condition is active."""
    found = []
    for second, is_bad in verdicts:
        verdict = Verdict(KEY, is_bad, for_s=for_s)
        conditions.take([verdict], frozenset(), int(second * 1e9) + 1)
        found.append(KEY in conditions.active())
    return found


def test_a_condition_counts_when_it_lasts():
    """For as long as its rule says."""
    assert steps(Conditions(), (0, True), (4, True), (5, True), for_s=5) == [False, False, True]
    assert steps(Conditions(), (0, True), (4, False), (5, True), for_s=5) == [False] * 3


def test_an_end_has_to_last_and_the_next_onset_rests():
    """A value at its bound makes one alert a minute at most."""
    conditions = Conditions()
    flicker = [(second, second % 2 == 0) for second in range(8)]
    first = steps(conditions, *flicker)
    ended = steps(conditions, (8, True), (20, False), (20 + CLEAR_S, False))
    again = steps(conditions, (31, True), (32 + REST_S - 4, True), (31 + REST_S, True))

    assert first == [True] * 8 and ended == [True, True, False] and again == [False, False, True]


def test_what_an_earlier_sidecar_recorded_goes_on_until_it_is_seen_to_be_over():
    """Without evidence it is neither active nor over; with it, no second onset is needed."""
    conditions = Conditions()
    conditions.take([], frozenset({KEY}), 1)
    unknown = conditions.active(), conditions.over()
    conditions.take([Verdict(KEY, False)], frozenset({KEY}), 2)
    still = KEY in conditions.active()
    conditions.take([Verdict(KEY, False)], frozenset({KEY}), 2 + int(CLEAR_S * 1e9))

    assert unknown == ({}, {}) and still and set(conditions.over()) == {KEY}


def test_conditions_are_bounded_and_those_of_ended_runs_forgotten():
    """A hostile producer makes up layers."""
    conditions = Conditions(conditions_max=100)
    for number in range(200):
        conditions.take([Verdict(Key("r", "x", str(number)), True)], frozenset(), 1)
    one_rule = len(conditions.active())
    for number in range(200):
        conditions.take([Verdict(Key("r", str(number), ""), True)], frozenset(), 1)
    in_all = len(conditions.active())
    conditions.take([Verdict(Key(HOST, "x", ""), True)], frozenset(), 1)
    conditions.forget(frozenset())

    assert (one_rule, in_all, len(conditions.active())) == (64, 100, 0)
