"""The sink online: what the server's word moves, and what happens without a server."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from telemetry.sinks.base import START, Position, SinkRejected, SinkUnavailable
from telemetry.sinks.wandb import WandbSink, client
from telemetry.sinks.wandb.policy import Policy

from .conftest import make_context
from .journal import expected_history, mixed_journal, steps, written_history

KEY = "0123456789abcdef0123456789abcdef01234567"


class FakeRun:
    """A wandb run on a server that has some rows, and may refuse more."""

    def __init__(self, first_row: int = 0) -> None:
        self.first_row = first_row
        self.sent: list[int] = []
        self.finished: int | None = None
        self.fails = False

    def answer(self) -> client.Answer:
        return client.Answer(self.first_row > 0, self.first_row)

    def send(self, row: int, values: dict[str, Any]) -> None:
        self.sent.append(row)

    def ignore(self, *_: Any) -> None: ...

    update_config = update_summary = alert = ignore

    def finish(self, exit_code: int) -> None:
        if self.fails:
            raise SinkUnavailable("finish_timeout")
        self.finished = exit_code


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    run = FakeRun()
    monkeypatch.setattr(client, "start", lambda context, mode: run)
    return run


def test_online_the_position_stays_until_a_clean_finish(fake: FakeRun, tmp_path: Path) -> None:
    """Nothing that wandb returns before means that the server has a row."""
    rows = mixed_journal(50)
    sink = WandbSink(make_context(tmp_path / "run", "online"))
    sink.open(START)
    sink.write(rows)

    assert sink.commit() == START
    fake.fails = True
    with pytest.raises(SinkUnavailable):
        sink.finish("finished", 0)
    assert sink.commit() == START
    fake.fails = False
    assert sink.finish("finished", 0).row == 50
    assert fake.finished == 0
    assert fake.sent == steps(expected_history(rows))


def test_online_rows_that_the_server_has_are_not_sent_again(fake: FakeRun, tmp_path: Path) -> None:
    """They are folded, for the windows, and count as confirmed."""
    rows = mixed_journal(50)
    fake.first_row = 20
    sink = WandbSink(make_context(tmp_path / "run", "online"))

    assert sink.open(START) == 0
    sink.write(rows)

    assert fake.sent == [row for row in steps(expected_history(rows)) if row >= 20]
    policy = Policy()
    for row in rows[:20]:
        policy, _ = policy.after(row)
    position = sink.commit()
    assert position.row == 20
    assert position.state["policy"] == policy.to_json()


@pytest.mark.parametrize("timeout_s", [2])
def test_an_unreachable_server_means_offline_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    timeout_s: int,
) -> None:
    """Within init_timeout; said once, without the key; the same process goes on. Row 15."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setitem(client._SETTINGS, "init_timeout", timeout_s)
    rows = mixed_journal(100)
    sink = WandbSink(make_context(tmp_path / "run", "online"))
    began = time.monotonic()

    sink.open(START)

    assert time.monotonic() - began < timeout_s + 8
    sink.write(rows)
    final = sink.finish("finished", 0)
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len([line for line in said if "goes on offline" in line]) == 1
    assert KEY not in caplog.text
    assert (final.row, final.state["mode"]) == (100, "offline")
    assert written_history(tmp_path / "run") == expected_history(rows)


def test_no_key_means_offline_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = mixed_journal(50)
    sink = WandbSink(make_context(tmp_path / "run", "online"))

    sink.open(START)
    sink.write(rows)

    assert sink.finish("finished", 0).row == 50
    assert "goes on offline" in caplog.text
    assert written_history(tmp_path / "run") == expected_history(rows)


def test_rows_in_a_fragment_are_not_sent_online_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is back for the second process: it gets what no file has."""
    rows = mixed_journal(100)
    sink = WandbSink(make_context(tmp_path / "run"))
    sink.open(START)
    sink.write(rows[:60])
    sink.close()
    server = FakeRun()
    monkeypatch.setattr(client, "start", lambda context, mode: server)

    again = WandbSink(make_context(tmp_path / "run", "online"))
    again.open(START)
    again.write(rows)
    final = again.finish("finished", 0)

    assert server.sent == [row for row in steps(expected_history(rows)) if row >= 60]
    assert steps(written_history(tmp_path / "run")) + server.sent == steps(expected_history(rows))
    assert final.row == 100


def test_a_refused_upload_is_noticed(tmp_path: Path) -> None:
    """wandb says a 403 in mid-run on its console only, and to its stop_fn. Faults, row 16."""
    refused: list[bool] = []
    running = client.Client(FakeWandb(), FakeWandb(), lambda: bool(refused))
    running.send(0, {"a": 1})
    refused.append(True)

    with pytest.raises(SinkUnavailable, match="refused"):
        running.send(1, {"a": 1})
    with pytest.raises(SinkUnavailable, match="refused"):
        running.finish(0)


class FakeWandb:
    """Takes every call, as wandb does behind a server that says 403."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def test_a_missing_wandb_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client._library.cache_clear()
    monkeypatch.setitem(sys.modules, "wandb", None)

    with pytest.raises(SinkUnavailable, match=r"pip install 'training-telemetry\[wandb\]'"):
        WandbSink(make_context(tmp_path / "run")).open(START)


def test_a_wandb_that_crashes_at_import_makes_the_sink_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only this sink stops, and it is tried again. Faults, row 17."""
    client._library.cache_clear()
    for name in [n for n in sys.modules if n == "wandb" or n.startswith("wandb.")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "wandb.py").write_text("raise TypeError('Descriptors cannot be created directly')")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(SinkUnavailable, match="can't be imported: TypeError: Descriptors"):
        WandbSink(make_context(tmp_path / "run", "online")).open(START)
    client._library.cache_clear()


def test_disabled_nothing_of_wandb_is_loaded_or_written(tmp_path: Path) -> None:
    """No import, no process, no file; the position follows the rows."""
    script = f"""
import sys
from pathlib import Path
from telemetry.sinks.base import START
from telemetry.sinks.wandb import WandbSink
from tests.telemetry.sinks.wandb_sink.conftest import make_context
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


def test_an_unknown_mode_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SinkRejected, match="'shared'"):
        WandbSink(make_context(tmp_path / "run", "shared")).open(START)


def test_a_position_of_something_else_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SinkRejected, match="not ours"):
        WandbSink(make_context(tmp_path / "run")).open(Position(3, {"policy": {"windows": 7}}))


@pytest.mark.parametrize(
    "text", [f"key {KEY} refused", "https://me:secret@host/x", f"local{KEY}", "a\nb"]
)
def test_an_error_is_one_line_without_secrets(text: str) -> None:
    shown = client.without_secrets(ValueError(text))

    assert KEY not in shown
    assert "secret" not in shown
    assert "\n" not in shown
