"""Rules of alerts: their defaults, and the table of the user that changes them.

In: the table `[alerts]` of the configuration file, or the same as JSON.
Out: rules, and one line for each entry that can't be used.
Never: stops for a mistake in one rule: it keeps its default, and the others are as asked.

    [alerts.step_time]          # a rule that exists: change its numbers, or switch it off
    ratio = 3.0
    [alerts.val_loss_rising]
    enabled = false
    [alerts.gradients]          # a rule of your own: a metric, and a bound
    metric = "train/grad_norm"  # `*` stands for any characters
    above = 100.0               # or below
    for_s = 60
    severity = "error"
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from shared.events import SEVERITIES
from shared.text import clean

DEFAULTS: Final[dict[str, dict[str, float | str]]] = {
    "trainer_silent": {"severity": "error", "unheard_s": 30.0, "after_s": 300.0},
    "step_time": {"severity": "warning", "ratio": 2.0},
    "loss_not_finite": {"severity": "error"},
    "loss_diverging": {"severity": "warning", "ratio": 1.5},
    "val_loss_rising": {"severity": "warning", "count": 3.0},
    "ternary_collapse": {"severity": "warning", "zero_ratio": 0.95, "sign_ratio": 0.02},
    "memory_near_limit": {"severity": "warning", "ratio": 0.95, "for_s": 30.0},
    "gpu_memory_near_limit": {"severity": "warning", "ratio": 0.98, "for_s": 30.0},
    "disk_nearly_full": {"severity": "warning", "free_bytes": float(1 << 30)},
    "sink_away": {"severity": "warning", "for_s": 60.0},
    "sink_behind": {"severity": "warning", "rows": 50_000.0, "for_s": 300.0},
}
"""Rules with their numbers. A bad GPU, an OOM kill and a probe that hangs are the sampler's."""

OWN_MAX: Final = 50
"""Rules of the user's own."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_OWN_FIELDS: Final = {"metric", "above", "below", "for_s", "severity", "enabled"}


@dataclass(frozen=True)
class Rule:
    """One rule: its numbers by name; metric is empty for those that are built in."""

    name: str
    severity: str = "warning"
    numbers: Mapping[str, float] = field(default_factory=dict)
    metric: str = ""

    def number(self, name: str, default: float = 0.0) -> float:
        return self.numbers.get(name, default)


@dataclass(frozen=True)
class Rules:
    """The rules that are switched on, by name, and what could not be used of a table."""

    by_name: Mapping[str, Rule]
    complaints: tuple[str, ...] = ()

    @property
    def own(self) -> list[Rule]:
        """The user's own rules, each about a metric."""
        return [rule for rule in self.by_name.values() if rule.metric]

    def get(self, name: str) -> Rule | None:
        return self.by_name.get(name)


def read_rules(text: str) -> Rules:
    """Return the rules by a table in JSON; empty for the defaults."""
    try:
        table = json.loads(text) if text else {}
        if not isinstance(table, dict):
            raise ValueError("it is no table")
    except (ValueError, RecursionError) as exc:
        return Rules(_defaults(), (f"alerts: not JSON ({exc}); all rules have their defaults",))
    rules, complaints = _defaults(), list[str]()
    for name, said in table.items():
        shown = clean(str(name), 80)
        if not isinstance(said, dict):
            complaints.append(f"alerts.{shown} must be a table, such as {{enabled = false}}")
        elif name in DEFAULTS:
            _change(rules, name, said, complaints)
        elif "metric" in said:
            _add(rules, shown, said, complaints)
        else:
            known = ", ".join(DEFAULTS)
            complaints.append(f"alerts.{shown}: no such rule, and no `metric`; known: {known}")
    return Rules(rules, tuple(complaints))


def _defaults() -> dict[str, Rule]:
    return {
        name: Rule(
            name,
            str(said["severity"]),
            {key: value for key, value in said.items() if isinstance(value, float)},
        )
        for name, said in DEFAULTS.items()
    }


def _change(
    rules: dict[str, Rule], name: str, said: Mapping[str, Any], complaints: list[str]
) -> None:
    """Change one built-in rule. A field that can't be used keeps its default."""
    rule = rules[name]
    numbers, severity = dict(rule.numbers), rule.severity
    for key, value in said.items():
        place = f"alerts.{name}.{clean(str(key), 80)}"
        if key == "enabled" and isinstance(value, bool):
            if not value:
                del rules[name]
                return
        elif key == "severity" and value in SEVERITIES:
            severity = value
        elif key in numbers and is_number(value) and value > 0:
            numbers[key] = float(value)
        else:
            known = ", ".join(["enabled", "severity", *rule.numbers])
            complaints.append(
                f"{place} = {clean(repr(value), 60)} can't be used, the default stays; "
                f"known: {known}; numbers are above 0, severity is one of {', '.join(SEVERITIES)}"
            )
    rules[name] = Rule(name, severity, numbers)


def _add(rules: dict[str, Rule], name: str, said: Mapping[str, Any], complaints: list[str]) -> None:
    """Add a rule of the user's own; without all of its fields it would not mean the same."""
    why = _wrong_with(name, said)
    if not why and sum(bool(rule.metric) for rule in rules.values()) >= OWN_MAX:
        why = f"there are {OWN_MAX} rules of your own already"
    if why:
        complaints.append(f"alerts.{name} is left out: {why}")
    elif said.get("enabled", True):
        numbers = {key: float(said[key]) for key in ("above", "below", "for_s") if key in said}
        severity = str(said.get("severity", "warning"))
        rules[name] = Rule(name, severity, numbers, str(said["metric"]))


def _wrong_with(name: str, said: Mapping[str, Any]) -> str:
    """Return the reason why a rule of the user's own can't be used, or ""."""
    unknown = [str(key) for key in said if key not in _OWN_FIELDS]
    numbers = [key for key in ("above", "below", "for_s") if key in said]
    if not _NAME.fullmatch(name):
        return "a name has the characters a-z, 0-9 and _"
    if unknown:
        known = ", ".join(sorted(_OWN_FIELDS))
        return f"{clean(unknown[0], 60)!r} is unknown; known: {known}"
    if not isinstance(said["metric"], str) or not 0 < len(said["metric"]) <= 256:
        return "metric must be the name of a metric"
    if ("above" in said) == ("below" in said):
        return "it needs one of above and below"
    if any(not is_number(said[key]) for key in numbers):
        return "above, below and for_s must be numbers"
    if not isinstance(said.get("enabled", True), bool):
        return "enabled must be true or false"
    if said.get("severity", "warning") not in SEVERITIES:
        return f"severity must be one of {', '.join(SEVERITIES)}"
    return ""


def is_number(value: Any) -> bool:
    """Return True for a finite number that is no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**63
