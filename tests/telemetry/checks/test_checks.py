"""`telemetry doctor`: what works, what doesn't, and that nothing keeps it from ending."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shared.events import MetricsLogged, encode_event, join_events
from shared.ids import StreamId
from telemetry.checks import disk, machine, sockets, wandb
from telemetry.checks.check import ABSENT, DOUBTFUL, FAILS, WORKS, Check, Finding, run_checks
from telemetry.commands import doctor
from telemetry.config import load
from telemetry.journal.writer import JournalWriter
from tests.fake_wandb import FakeWandb
from tests.telemetry.sidecar_process import SidecarProcess, clean_env


def config_of(data_dir: Path, **flags: object):
    return load({"data_dir": data_dir, "http": "off", **flags}, {}, None)


Done = subprocess.CompletedProcess[bytes]


def run_doctor(
    *flags: str, timeout_s: float = 60, **env: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "telemetry", "doctor", *flags],
        env=clean_env(**env), capture_output=True, timeout=timeout_s, check=False,
    )  # fmt: skip


def states(findings: list[Finding], part: str) -> list[str]:
    return [finding.state for finding in findings if finding.part == part]


def test_a_plain_machine_works_and_nothing_is_left_behind(tmp_path):
    """No GPU, no key, no data directory yet: none of that was configured, so the exit code is 0."""
    done = run_doctor(f"--data-dir={tmp_path}/data", "--http=off", NETRC=str(tmp_path / "none"))

    out = " ".join(done.stdout.decode().split())
    assert done.returncode == 0, out
    assert "can be written and locked" in out and "all that was configured works" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_the_page_fits_80_columns_and_poor_terminals(tmp_path, encoding):
    """A data directory with a character that the terminal lacks is escaped."""
    done = run_doctor(
        f"--data-dir={tmp_path}/d\u00e4ta\u4e16", "--http=off", PYTHONIOENCODING=encoding,
        NETRC=str(tmp_path / "none"),
    )  # fmt: skip

    lines = done.stdout.decode(encoding).splitlines()
    assert done.returncode == 0 and "\\u4e16" in done.stdout.decode(encoding)
    assert all(len(line) < 80 or max(map(len, line.split())) > 50 for line in lines)


def test_a_directory_that_cannot_be_written_ends_with_1(tmp_path):
    """A file lies in its place; the line names the flag that helps."""
    (tmp_path / "file").write_text("")

    done = run_doctor(f"--data-dir={tmp_path}/file", "--http=off", "--json")

    said = json.loads(done.stdout)
    (found,) = [f for f in said["findings"] if f["state"] == FAILS and f["part"] == "disk"]
    assert done.returncode == 1 and said["ok"] is False
    assert "--data-dir" in found["advice"]


def test_a_full_disk_fails_and_one_nearly_full_is_doubtful(tmp_path):
    """By the setting below which recording pauses."""
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize

    full = list(disk.look_at_disk(tmp_path, 2 * free))
    nearly = list(disk.look_at_disk(tmp_path, free // 2))

    assert FAILS in states(full, "disk") and FAILS not in states(nearly, "disk")
    assert DOUBTFUL in states(nearly, "disk")


def test_a_check_that_hangs_is_named_and_the_others_are_kept(monkeypatch):
    """A driver that never answers: what its check found before stays, and the page appears."""
    forever = threading.Event()

    def hangs():
        yield Finding("GPU", WORKS, "a driver")
        forever.wait()

    began_s = time.monotonic()
    found = run_checks([Check("GPU", hangs), Check("clock", machine.look_at_clock)], 0.5)
    took_s = time.monotonic() - began_s
    forever.set()

    assert took_s < 5 and states(found, "GPU") == [WORKS, FAILS]
    assert "no answer within 0.5 s" in found[1].text and states(found, "clock")


def test_a_check_that_raises_costs_only_itself():
    """Its finding says what was raised."""

    def breaks():
        raise ZeroDivisionError("x")
        yield

    found = run_checks([Check("a", breaks), Check("b", lambda: iter([]))], 5)

    assert [f.part for f in found] == ["a"] and "ZeroDivisionError" in found[0].text


def test_a_socket_path_that_is_too_long_fails_with_its_length(tmp_path):
    """The kernel takes 107 bytes."""
    found = list(sockets.look_at_socket(config_of(tmp_path, bind=f"ipc://{tmp_path}/{'x' * 120}")))

    assert states(found, "socket") == [FAILS] and "107" in found[0].text


def test_a_port_that_another_program_has_fails(tmp_path):
    """And a free one works."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = config_of(tmp_path, bind=f"tcp://{address}", http=address)
        found = [*sockets.look_at_socket(config), *sockets.look_at_status(config)]
    free = [*sockets.look_at_socket(config), *sockets.look_at_status(config)]

    assert [f.state for f in found] == [FAILS, FAILS]
    assert [f.state for f in free] == [WORKS, WORKS]


def test_a_sidecar_at_work_is_found_and_a_frozen_one_is_no_danger(tmp_path):
    """Frozen, the kernel still takes the connection; the command ends all the same."""
    with SidecarProcess(tmp_path / "data") as sidecar:
        config = config_of(tmp_path / "data")
        found = list(sockets.look_at_socket(config))
        service = sidecar.service
        service.suspend()
        done = run_doctor(f"--data-dir={tmp_path}/data", "--http=off", "--json")
        service.resume()

    assert states(found, "socket") == [WORKS]
    assert f"pid {sidecar.process.pid}" in found[0].text
    assert json.loads(done.stdout)["findings"]


def test_a_socket_that_nobody_serves_fails(tmp_path):
    """The lock is held, but nothing listens where its holder said that it does."""
    with SidecarProcess(tmp_path / "data") as sidecar:
        (tmp_path / "data/telemetry.sock").rename(tmp_path / "gone")
        found = list(sockets.look_at_socket(config_of(tmp_path / "data")))
        assert sidecar.process.poll() is None

    assert states(found, "socket") == [FAILS] and "start the sidecar again" in found[0].advice


class FakeNvml:
    """Two GPUs of a driver; no driver where `uuids` is None."""

    class NVMLError(Exception):
        pass

    def __init__(self, uuids: list[str] | None) -> None:
        self._uuids = uuids

    def nvmlInit(self) -> None:
        if self._uuids is None:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return len(self._uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, gpu: int) -> bytes:
        return self._uuids[gpu].encode()

    def nvmlDeviceGetName(self, gpu: int) -> str:
        return "NVIDIA H100"

    def nvmlSystemGetDriverVersion(self) -> str:
        return "550.1"


UUIDS = ["GPU-aaaa1111", "GPU-bbbb2222"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [WORKS]),
        ("0,1", [WORKS, WORKS]),
        ("GPU-bbbb", [WORKS, WORKS]),
        ("MIG-1", [WORKS, WORKS]),
        ("0,2", [WORKS, FAILS]),
        ("GPU-cccc", [WORKS, FAILS]),
        ("GPU-", [WORKS, FAILS]),
        ("\u0661", [WORKS, FAILS]),
        ("", [WORKS, DOUBTFUL]),
        ("-1", [WORKS, DOUBTFUL]),
    ],
)
def test_visible_devices_are_compared_with_the_gpus_there_are(visible, expected):
    """CUDA stops at the first entry that is no GPU."""
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}

    found = list(machine.look_at_gpus(environ, FakeNvml(UUIDS)))

    assert [f.state for f in found] == expected
    assert "2 x NVIDIA H100" in found[0].text


def test_without_a_driver_a_gpu_that_was_asked_for_fails():
    """One that nobody asked for does not."""
    asked = list(machine.look_at_gpus({"CUDA_VISIBLE_DEVICES": "0"}, FakeNvml(None)))
    plain = list(machine.look_at_gpus({}, FakeNvml(None)))

    assert [f.state for f in asked] == [FAILS] and [f.state for f in plain] == [ABSENT]


def wandb_environ(tmp_path: Path, url: str, key: str) -> dict[str, str]:
    return {
        "WANDB_BASE_URL": url, "WANDB_API_KEY": key, "NETRC": str(tmp_path / "none"),
        "WANDB_CONFIG_DIR": str(tmp_path / "wandb-config"),
    }  # fmt: skip


def wandb_findings(done: Done) -> list[dict[str, str]]:
    return [f for f in json.loads(done.stdout)["findings"] if f["part"] == "W&B"]


def test_a_server_that_knows_the_key_works_and_the_key_is_not_shown(tmp_path):
    """Its user is named."""
    with FakeWandb() as server:
        key = server.key
        env = wandb_environ(tmp_path, server.url, key)
        done = run_doctor(f"--data-dir={tmp_path}/data", "--http=off", "--json", **env)

    (found,) = wandb_findings(done)
    assert found["state"] == WORKS, found
    assert done.returncode == 0
    assert key.encode() not in done.stdout + done.stderr


def test_a_server_that_refuses_the_key_ends_with_1(tmp_path):
    """With the words that help, and without the key."""
    key = "b" * 40
    with FakeWandb() as server:
        env = wandb_environ(tmp_path, server.url, key)
        done = run_doctor(f"--data-dir={tmp_path}/data", "--http=off", "--json", **env)

    (found,) = wandb_findings(done)
    assert found["state"] == FAILS and done.returncode == 1 and "wandb login" in found["advice"]
    assert key.encode() not in done.stdout + done.stderr


def test_a_server_that_never_answers_is_given_up(tmp_path):
    """It takes the connection and says nothing: the whole page appears within its bound."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = wandb_environ(tmp_path, url, "c" * 40)
        began_s = time.monotonic()
        done = run_doctor(f"--data-dir={tmp_path}/data", "--http=off", "--json", **env)
        took_s = time.monotonic() - began_s

    (found,) = wandb_findings(done)
    assert found["state"] == FAILS and done.returncode == 1
    assert took_s < doctor.TIMEOUT_S + 10


def test_online_without_a_key_fails_and_otherwise_it_is_only_absent(tmp_path):
    """The mode is what asks for it."""
    env = {"NETRC": str(tmp_path / "none"), "WANDB_CONFIG_DIR": str(tmp_path / "c")}
    flags = f"--data-dir={tmp_path}/data", "--http=off", "--json"

    plain = run_doctor(*flags, HOME=str(tmp_path), **env)
    online = run_doctor(*flags, HOME=str(tmp_path), WANDB_MODE="online", **env)

    assert (plain.returncode, online.returncode) == (0, 1)
    assert [f["state"] for f in wandb_findings(plain)] == [ABSENT]


def recorded(data_dir: Path, rows: int, apart_s: float, names: int = 3) -> None:
    values = {f"train/{number}": 1.0 for number in range(names)}
    with JournalWriter(data_dir / "runs/r/journal") as writer:
        for at in range(rows):
            event = MetricsLogged(kind="train", step=at, values=values)
            packed = encode_event(event, 10**18 + int(at * apart_s * 1e9), 1)
            writer.append(StreamId("r", "s1", "rank0"), at, 1, join_events([packed]))
        writer.sync()


def test_the_rate_of_a_run_is_measured_from_its_rows(tmp_path):
    """600 rows in one minute are fine; 20 a second are above W&B's 1,000 a minute."""
    recorded(tmp_path / "slow", 600, 0.1)
    recorded(tmp_path / "fast", 2000, 0.05)

    slow = list(wandb.look_at_rate(tmp_path / "slow"))
    fast = list(wandb.look_at_rate(tmp_path / "fast"))

    assert [f.state for f in slow] == [WORKS] and "601 rows" in slow[0].text
    assert [f.state for f in fast] == [DOUBTFUL] and "1,201 rows" in fast[0].text


def test_too_many_metrics_are_named():
    """And too many rows."""
    rate = wandb.Rate(10, 10, 1, 60 * 10**9, {str(n) for n in range(10_001)})

    found = list(wandb.judged("r", rate, 600_000))

    assert [f.state for f in found] == [WORKS, DOUBTFUL, DOUBTFUL]


def test_a_hostile_text_can_neither_control_the_terminal_nor_show_a_password():
    """Texts come from servers and paths."""
    shown = doctor._shown(Finding("W&B", FAILS, "http://u:pw@h \x1b[2J", "a\nb"))

    assert shown.text == "http://(secret)@h \\x1b[2J" and shown.advice == "a\\x0ab"


def test_a_spool_without_a_sidecar_is_pointed_out(tmp_path):
    """Its size, and the command that takes it in."""
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool/x.spool").write_bytes(bytes(2_000_000))

    found = list(disk.look_at_spools((), tmp_path))

    assert [f.state for f in found] == [WORKS] and "2.0 MB" in found[0].text
    assert "serve" in found[0].advice


def test_a_time_that_is_far_from_the_servers_is_pointed_out(monkeypatch):
    """The sign says which of the two is ahead."""
    far = list(wandb._skew(-3600.0))
    near = list(wandb._skew(0.4))

    assert [f.state for f in far] == [DOUBTFUL] and "3600 s behind" in far[0].text
    assert [f.state for f in near] == [WORKS]


def test_a_clock_before_our_time_fails(monkeypatch):
    """A machine without a battery begins in 1970."""
    monkeypatch.setattr(machine.time, "gmtime", lambda: time.struct_time((1970, 1, 1) + (0,) * 6))

    assert [f.state for f in machine.look_at_clock()] == [FAILS]
