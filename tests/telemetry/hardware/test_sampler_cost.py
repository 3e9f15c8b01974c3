"""The cost of the sampler: CPU time of the real process over eight pretend GPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def measured(*flags: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.sampler_cost", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.faults
def test_it_takes_at_most_one_percent_of_a_core():
    """At 1 Hz over 60 s, with a training process to watch."""
    code, said = measured("--seconds=60", "--gpus=8", "--hz=1")

    assert code == 0, said


def test_no_reading_has_become_several_times_as_dear():
    """A short look, with a limit that a busy machine does not reach."""
    code, said = measured("--seconds=8", "--gpus=8", "--hz=1", "--warm-up=4", "--limit=3")

    assert code == 0, said
    assert "8 GPUs at 1 Hz" in said
