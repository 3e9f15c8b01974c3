"""What the sink needs to start at all, and what it never shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from telemetry.sinks.base import START, Position, SinkRejected, SinkUnavailable
from telemetry.sinks.wandb import WandbSink, core

from .surroundings import make_context

KEY = "0123456789abcdef0123456789abcdef01234567"


def test_a_missing_wandb_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.library.cache_clear()
    monkeypatch.setitem(sys.modules, "wandb", None)

    with pytest.raises(SinkUnavailable, match=r"pip install 'training-telemetry\[wandb\]'"):
        WandbSink(make_context(tmp_path / "run")).open(START)


def test_a_wandb_that_crashes_at_import_makes_the_sink_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only this sink stops, and it is tried again. Faults, row 17."""
    core.library.cache_clear()
    for name in [n for n in sys.modules if n == "wandb" or n.startswith("wandb.")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "wandb.py").write_text("raise TypeError('Descriptors cannot be created directly')")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(SinkUnavailable, match="can't be imported: TypeError: Descriptors"):
        WandbSink(make_context(tmp_path / "run", "online")).open(START)
    core.library.cache_clear()


def test_disabled_nothing_of_wandb_is_loaded_or_written(tmp_path: Path) -> None:
    """No import, no process, no file; the position follows the rows."""
    script = f"""
import sys
from pathlib import Path
from telemetry.sinks.base import START
from telemetry.sinks.wandb import WandbSink
from tests.telemetry.sinks.wandb_sink.surroundings import make_context
from tests.telemetry.sinks.wandb_sink.journal import mixed_journal
sink = WandbSink(make_context(Path({str(tmp_path / "run")!r}), "disabled"))
assert sink.open(START) == 0
sink.write(mixed_journal(30)[:20])
assert sink.commit().row == 20
assert sink.finish("finished", 0).row == 20
sink.close()
assert "wandb" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

    assert list((tmp_path / "run").iterdir()) == []


def test_with_an_unknown_mode_a_run_stays_offline_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A typing error neither uploads anything nor costs the run."""
    sink = WandbSink(make_context(tmp_path / "run", "onlin"))
    sink.open(START)
    position = sink.commit()
    sink.close()

    assert position.state["mode"] == "offline"
    assert "'onlin' is none of online, offline, disabled" in caplog.text


def test_a_position_of_something_else_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SinkRejected, match="not ours"):
        WandbSink(make_context(tmp_path / "run")).open(Position(3, {"server": {"row": "x"}}))


@pytest.mark.parametrize(
    "text", [f"key {KEY} refused", "https://me:secret@host/x", f"local{KEY}", "a\nb"]
)
def test_an_error_is_one_line_without_secrets(text: str) -> None:
    shown = core.without_secrets(ValueError(text))

    assert KEY not in shown
    assert "secret" not in shown
    assert "\n" not in shown
