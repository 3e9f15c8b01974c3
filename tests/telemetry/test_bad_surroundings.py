"""A whole sidecar in bad surroundings: each costs one clear line, and the rest goes on."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from shared.events import AlertChanged, MetricsLogged
from telemetry.hardware.metric_list import ALL
from tests.telemetry.hardware.conftest import machine, nvml_library, old_nvml_library  # noqa: F401
from tests.telemetry.hardware.fake_nvml import Machine
from tests.telemetry.monitor.runs import training, write_rows, write_run_file
from tests.telemetry.sidecar_process import SidecarProcess, clean_env, http_get
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import read_rows

FLAGS = "--http=127.0.0.1:0", "--sample-hz=5", "--host-run", "--host=node1", "--sinks="
HOST_RUN = "runs/host-node1"
SECRET = "xxSECRETxx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a run that was recorded before."""
    run_dir = tmp_path / "data/runs/old"
    run_dir.mkdir(parents=True)
    write_rows(run_dir, training(20))
    write_run_file(run_dir, state="ended", status="finished", as_of_row=21)
    return tmp_path / "data"


def contents(run_dir: Path) -> dict[str, bytes]:
    files = (path for path in run_dir.rglob("*") if path.is_file())
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files}


def of_library(machine: Machine) -> dict[str, str]:  # noqa: F811
    names = "LD_LIBRARY_PATH", "FAKE_NVML_SCENARIO", "FAKE_NVML_CALLS"
    return {name: machine.environ()[name] for name in names}


def samples(data: Path) -> list[dict]:
    """The readings that were recorded so far."""
    if not (data / HOST_RUN / "run.json").exists():
        return []
    events = [row.envelope.event() for row in read_rows(data / HOST_RUN)]
    return [e.values for e in events if isinstance(e, MetricsLogged) and e.kind == "hardware"]


def newest(data: Path) -> dict:
    return (samples(data) or [{}])[-1]


def test_a_typo_a_deaf_webhook_and_a_driver_that_hangs_cost_a_line_each(data, machine):  # noqa: F811
    """The hardware is recorded all the same, and what was recorded before is untouched."""
    before = contents(data / "runs/old")
    machine.play(gpus=2)
    rules = '--alerts={"step_tiem": {}, "disk_nearly_full": {"free_bytes": 1e18}}'
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/{SECRET}"
        env = clean_env(TELEMETRY_ALERT_WEBHOOK=url) | {
            name: value
            for name, value in machine.environ().items()
            if "NVML" in name or "LD" in name
        }
        with SidecarProcess(data, *FLAGS, rules, env=env) as sidecar:
            wait_until(lambda: "gpu/1/power_watts" in newest(data), 60)
            machine.play(hang__nvmlDeviceGetPowerUsage=1)
            (address,) = re.findall(r"http://([\d.]+:\d+)", sidecar.log)
            hangs = r'telemetry_alert_active\{.*name="probe_hangs".*\} 1.0'
            wait_until(lambda: re.search(hangs, http_get(address, "/metrics")[1]), 60)
            count = len(samples(data))
            wait_until(lambda: len(samples(data)) > count + 5)
            last = newest(data)
            # Long enough after the onset that the webhook has been given up once.
            wait_until(lambda: "webhook at 127.0.0.1 does not take alerts" in sidecar.log, 60)
            code, log = sidecar.terminate(), sidecar.log

    lines = log.splitlines()
    assert code == 0
    assert "cpu_percent" in last and "gpu/0/uuid" not in last
    assert len([line for line in lines if "alerts.step_tiem: no such rule" in line]) == 1
    assert len([line for line in lines if "does not take alerts" in line]) == 1
    assert len([line for line in lines if "probe nvml does not answer" in line]) == 2  # the sampler
    assert "Traceback" not in log and SECRET not in log
    assert contents(data / "runs/old") == before


def test_an_old_driver_and_a_machine_without_one_are_recorded_with_what_they_have(
    data,
    tmp_path,
    old_nvml_library,  # noqa: F811
):
    """One after the other; a machine that never had a GPU is no trouble."""
    before = contents(data / "runs/old")
    old = Machine(old_nvml_library, tmp_path)
    old.play(gpus=2)
    env = clean_env() | of_library(old)
    with SidecarProcess(data, *FLAGS, env=env) as sidecar:
        wait_until(lambda: "gpu/1/power_watts" in newest(data), 60)
        with_old = newest(data)
        assert sidecar.terminate() == 0
        log_old = sidecar.log
    count = len(samples(data))
    with SidecarProcess(data, *FLAGS) as sidecar:
        wait_until(lambda: len(samples(data)) > count + 15, 60)
        without = newest(data)
        assert sidecar.terminate() == 0

    log = sidecar.log.removeprefix(log_old)
    assert "gpu/0/memory_used_bytes" in with_old and "Traceback" not in log_old + log
    assert [name for name in with_old if len(ALL.described(name)) != 1] == []
    assert "cpu_percent" in without and not any(name.startswith("gpu/") for name in without)
    assert log.count("nvml unavailable") == 1 and "0 GPUs" in log
    said = [row.envelope.event() for row in read_rows(data / HOST_RUN)]
    assert [e for e in said if isinstance(e, AlertChanged) and e.name == "gpu_lost"] == []
    assert contents(data / "runs/old") == before
