"""The three questions of docs/QUERY.md, over recorded runs whose answers are known."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shared.events import Event, MetricsLogged, RunFinished, RunStarted
from telemetry.cli import main
from telemetry.commands.replay import replay
from tests.telemetry.monitor.runs import START_S, write_rows, write_run_file

PAGE = Path(__file__).parents[3] / "docs/QUERY.md"
BEST, FLIPS, ENERGY = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)


def ask(capsys: pytest.CaptureFixture[str], question: str, *places: Path) -> list[dict[str, Any]]:
    assert main(["query", question, *map(str, places), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def train(step: int, values: dict[str, float], kind: str = "train") -> MetricsLogged:
    return MetricsLogged(kind=kind, step=step, values=values)


def record(data_dir: Path, run_id: str, events: Sequence[Event], **told: object) -> Path:
    run_dir = data_dir / "runs" / run_id
    write_rows(run_dir, events)
    write_run_file(run_dir, state="ended", status="finished", **told)
    return run_dir


@pytest.mark.parametrize("is_parquet", [False, True])
def test_the_best_of_a_hundred_runs(tmp_path, capsys, is_parquet) -> None:
    """A better loss that a restart took back does not count, nor one that is no number; from
    journals, and from what a replay made of them."""
    dice = random.Random(1)
    known = []
    for n in range(100):
        losses = [round(dice.uniform(1, 5), 6) for _ in range(4)]
        rate = round(dice.uniform(1e-4, 1e-3), 6)
        events: list[Event] = [RunStarted(project="p", name=f"n{n}")]
        events += [train(100 * i, {"val/loss": loss}, "val") for i, loss in enumerate(losses)]
        if n % 10 == 0:
            events.append(train(400, {"val/loss": math.nan}, "val"))
        path = record(tmp_path, f"run-{n:03}", events, name=f"n{n}", config={"learning_rate": rate})
        if n == 50:
            # This one would be the best of all, but for a restart that did the step again.
            write_rows(path, [train(500, {"val/loss": 0.01}, "val")], seq=len(events))
            again = [RunStarted(project="p", name="n50", resumed_from_step=400)]
            write_rows(path, [*again, train(500, {"val/loss": 4.9}, "val")], session="s2")
        least = min(range(4), key=losses.__getitem__)
        known.append((losses[least], f"run-{n:03}", f"n{n}", str(rate), 100 * least))
    place = tmp_path
    if is_parquet:
        assert replay(sorted((tmp_path / "runs").iterdir()), "parquet", tmp_path / "out", None) == 0
        capsys.readouterr()
        # The settings are in run.json, and not in parquet: from there only what was measured.
        place = tmp_path / "out"

    answer = ask(capsys, BEST if not is_parquet else BEST.replace("JOIN", "LEFT JOIN"), place)

    if is_parquet:
        assert [(a["val_loss"], a["at_step"]) for a in answer] == [
            (loss, step) for loss, _, _, _, step in sorted(known)[:5]
        ]
    else:
        assert [
            (a["val_loss"], a["run"], a["name"], a["learning_rate"], a["at_step"]) for a in answer
        ] == sorted(known)[:5]


def test_the_layers_that_flip_most_before_a_loss_diverges(tmp_path, capsys) -> None:
    """Only runs that diverge count, and of them only the 500 steps before."""
    dice = random.Random(2)
    layers = [f"layers.{n}.ffn.up" for n in range(4)]
    flips: dict[str, list[float]] = {layer: [] for layer in layers}
    for n in range(6):
        diverges_at = {0: 800, 1: 1200, 2: 600}.get(n)
        events: list[Event] = [RunStarted(project="p", name="n")]
        for step in range(0, 1500, 50):
            loss = 8.0 - step / 500
            if diverges_at is not None and step >= diverges_at:
                loss = math.nan if n == 0 else 99.0
            rates = {layer: dice.random() * (1 + i) for i, layer in enumerate(layers)}
            events.append(train(step, {"train/loss": loss}))
            named = {f"quant/{layer}/flip_rate_per_step": rate for layer, rate in rates.items()}
            events.append(train(step, named, "quant"))
            if diverges_at is not None and diverges_at - 500 <= step < diverges_at:
                for layer, rate in rates.items():
                    flips[layer].append(rate)
        record(tmp_path, f"run-{n}", events)

    answer = ask(capsys, FLIPS, tmp_path)

    known = sorted(((sum(v) / len(v), layer) for layer, v in flips.items()), reverse=True)
    assert [a["layer"] for a in answer] == [layer for _, layer in known]
    assert [a["flip_rate"] for a in answer] == pytest.approx([rate for rate, _ in known])
    assert {a["runs"] for a in answer} == {3}


def test_hours_of_gpus_and_joules_per_1000_tokens_by_project(tmp_path, capsys) -> None:
    """From the counters of the sampler; ranks that share a GPU count it once, a run whose
    energy nobody read counts in the hours alone."""
    watts, tokens_per_second = 250.0, 800.0
    for run_id, project, seconds, has_energy in (
        ("a1", "a", 600, True), ("a2", "a", 1200, True), ("a3", "a", 300, False),
        ("b1", "b", 60, True),
    ):  # fmt: skip
        path = tmp_path / "runs" / run_id
        told = {"project": project, "name": run_id, "host": "node1"}
        write_rows(path, [RunStarted(**told, gpu_uuids=["GPU-1", "GPU-2"])])
        for second in range(0, seconds + 1, 20):
            at_s = START_S + second
            if has_energy:
                joules = {f"gpu/{i}/energy_joules": 5e6 + second * watts for i in range(2)}
                uuids = {f"gpu/{i}/uuid": f"GPU-{i + 1}" for i in range(2)}
                sample = MetricsLogged(kind="hardware", values={**joules, **uuids})
                write_rows(path, [sample], "hardware:node1", "h", start_s=at_s, seq=second // 20)
            row = train(second, {"train/tokens_per_second": tokens_per_second})
            write_rows(path, [row], start_s=at_s, seq=1 + second // 20)
        # A second rank on the same GPUs, which began later and left sooner.
        rank1 = RunStarted(**told, rank=1, gpu_uuids=["GPU-2"])
        write_rows(path, [rank1, RunFinished(status="finished")], "rank1", "r", start_s=START_S + 5)
        write_run_file(path, state="ended", status="finished", project=project)

    answer = ask(capsys, ENERGY, tmp_path)

    hours = {"a": 2 * (600 + 1200 + 300) / 3600, "b": 2 * 60 / 3600}
    assert [a["project"] for a in answer] == ["a", "b"]
    assert [a["gpu_hours"] for a in answer] == pytest.approx([hours["a"], hours["b"]])
    # Both GPUs, for each second and the tokens of that second.
    per_1000 = 1000 * 2 * watts / tokens_per_second
    assert [a["joules_per_1000_tokens"] for a in answer] == pytest.approx([per_1000] * 2)
