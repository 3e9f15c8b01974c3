"""The report: one file, written whole, that only its own scripts run in."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from telemetry.errors import CommandError
from telemetry.page.report import report
from tests.telemetry.page.recorded_runs import HOSTILE, write_run
from tests.telemetry.sidecar_process import clean_env


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_its_policy_names_each_of_its_scripts_and_nothing_else(tmp_path):
    run_dir = write_run(tmp_path, "r", steps=50, hostile=HOSTILE)
    report([run_dir], tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()

    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1].replace("&#39;", "'")
    scripts = re.findall(r'<script nonce="[^"]+">(.*?)</script>', html, re.DOTALL)
    hashes = {
        "'sha256-" + base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() + "'"
        for s in scripts
    }

    assert set(re.search(r"script-src ([^;]+);", policy)[1].split()) == hashes
    assert "default-src 'none'" in policy
    assert len(re.findall(r"<script", html)) - len(scripts) <= 2 + html.count('"<script')
    assert "<script>window.hostile" not in html and "<img src=x" not in html
    assert "\u202e" not in html


def test_it_has_the_values_of_all_its_runs(tmp_path):
    runs = [write_run(tmp_path, name, steps=50) for name in ("a", "b")]
    report(runs, tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()

    answers = json.loads(re.search(r'id="answers">(.*?)</script>', html, re.DOTALL)[1])

    assert set(answers["runs"]) == {"a", "b"}
    series = {one["name"]: one for one in answers["runs"]["a"]["series"]}
    assert series["train/loss"]["count"] == 50
    assert answers["runs"]["b"]["layers"]["quant/zero_ratio"]["y"][0] == "layers.0.attn.out"
    assert "https://" not in html.partition("<main")[2].partition("</main>")[0]


def test_it_replaces_a_file_only_when_told(tmp_path):
    run_dir = write_run(tmp_path, "r", steps=20)
    out = tmp_path / "r.html"
    out.write_text("mine")

    with pytest.raises(CommandError, match="is there already; give --force"):
        report([run_dir], out)
    assert out.read_text() == "mine"
    report([run_dir], out, may_replace=True)

    assert out.read_text().startswith("<!doctype html>")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    run_dir = write_run(tmp_path, "r", steps=20)
    out = tmp_path / "r.html"
    out.write_text("mine")
    monkeypatch.setattr("shared.files.os.fsync", failing)

    with pytest.raises(CommandError, match="can't be written: No space left"):
        report([run_dir], out, may_replace=True)

    assert out.read_text() == "mine"


def failing(fd: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: d / "no", "there is no"),
        (lambda d: d, "is not a recorded run"),
        (lambda d: write_run(d, "r", steps=5).parent.parent, "holds several runs"),
    ],
)
def test_what_is_no_run_is_one_clear_line(tmp_path, make, words):
    command = [sys.executable, "-m", "telemetry", "report", str(make(tmp_path))]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "r.html")], env=clean_env(), capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip

    assert done.returncode == 2 and words in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "r.html").exists()


def test_a_damaged_and_half_copied_run_is_reported_as_far_as_it_goes(tmp_path):
    """And what is recorded stays byte for byte."""
    run_dir = write_run(tmp_path, "r", steps=200)
    (segment,) = (run_dir / "journal").glob("*.seg")
    data = bytearray(segment.read_bytes()[: segment.stat().st_size * 2 // 3])
    data[len(data) // 2] ^= 0xFF
    segment.write_bytes(data)
    (run_dir / "run.json").write_text("{")
    before = files_of(run_dir)

    report([run_dir], tmp_path / "r.html")

    assert files_of(run_dir) == before
    assert "train/loss" in (tmp_path / "r.html").read_text()
