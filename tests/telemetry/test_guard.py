"""The guard: a service that a library ends is started again, and never outlives its guard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shared.emitter import Emitter
from telemetry.datadir import holder_of
from tests.telemetry.sidecar_process import SidecarProcess
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import finished, metric, read_rows, started


def emitter(endpoint: str) -> Emitter:
    return Emitter(endpoint, run_id="r", source="rank0", close_timeout_s=30)


def is_gone(process: psutil.Process) -> bool:
    """True if a process has ended, also where nobody has collected its exit code yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS])
def test_a_service_that_a_library_ends_is_started_again_and_nothing_is_lost(place, number):
    """An assertion in libzmq, say. One line tells why."""
    with SidecarProcess(place / "data") as sidecar, emitter(sidecar.endpoint) as producer:
        producer.emit(started())
        producer.emit(metric(0))
        wait_until(lambda: producer.stats().acknowledged == 2)
        former = sidecar.service
        former.send_signal(number)
        producer.emit(metric(1))
        producer.emit(finished())

        is_all = producer.close()
        code = sidecar.terminate()

    assert is_all and code == 0 and is_gone(former)
    assert len(read_rows(place / "data" / "runs" / "r")) == 4
    (said,) = [line for line in sidecar.log.splitlines() if "was ended by" in line]
    assert signal.Signals(number).name in said and "retry_s=" in said


def test_a_service_that_dies_again_and_again_is_started_less_and_less_often(place):
    """Its data directory may hold what kills it."""
    script = "import os, sys, signal; print(1, flush=True); os.kill(os.getpid(), signal.SIGABRT)"
    program = (
        "import sys; from telemetry import guard; guard.FIRST_RETRY_S = 0.05;"
        "from telemetry.logs import configure_logs; configure_logs();"
        f"sys.exit(guard.Guard([sys.executable, '-c', {script!r}], {{}}).run())"
    )
    guard = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(5):
        assert guard.stdout is not None and guard.stdout.readline() == "1\n"
    guard.terminate()
    _, said = guard.communicate(timeout=30)

    waits = [float(line.rpartition("=")[2]) for line in said.splitlines() if "retry_s" in line]
    assert waits[:4] == [0.1, 0.1, 0.2, 0.4]  # 0.05 is shown with one digit
    # Stopped while it waited; or the service was, if it had just been started once more.
    assert guard.returncode in (4, 128 + signal.SIGTERM)


@pytest.mark.parametrize("how", ["kill", "abort"])
def test_a_service_ends_with_its_guard_however_that_ends(place, how):
    """kill -9 of the pid that a user sees leaves nobody serving, and the next start gets in."""
    with SidecarProcess(place / "data") as sidecar:
        service = sidecar.service
        sidecar.process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGABRT)
        sidecar.wait()
        sidecar.start()
        has_ended = is_gone(service)
        code = sidecar.terminate()

    assert has_ended and code == 0


def test_a_frozen_service_ends_with_its_guard_too(place):
    """A debugger holds it, or a container's pause."""
    with SidecarProcess(place / "data") as sidecar:
        service = sidecar.service
        service.suspend()
        sidecar.kill()
        sidecar.start()
        code = sidecar.terminate()

    assert code == 0 and is_gone(service)


def test_the_exit_code_is_the_services_own_and_is_no_reason_to_start_again(place):
    """Another sidecar has the directory: a second try would end the same way."""
    with SidecarProcess(place / "data"):
        second = SidecarProcess(place / "data").start(is_ready=False)
        code = second.wait()

    assert code == 5 and second.log.count("in use") == 1


def test_the_pid_in_the_lock_is_the_one_that_was_started(place):
    """Whoever reads it may send it a signal."""
    with SidecarProcess(place / "data") as sidecar:
        assert holder_of(place / "data")[0] == str(sidecar.process.pid)
        assert sidecar.service.pid != sidecar.process.pid


def test_the_guard_is_small(place):
    """It imports nothing of what serves."""
    with SidecarProcess(place / "data") as sidecar:
        mapped = {Path(m.path).name for m in psutil.Process(sidecar.process.pid).memory_maps()}
        guard = psutil.Process(sidecar.process.pid).memory_info().rss
        service = sidecar.service.memory_info().rss

    assert not any(name.startswith(("libzmq", "_zmq")) for name in mapped)
    assert guard < service / 2 and guard < 25_000_000


def test_signals_that_a_service_does_not_handle_still_reach_it(place):
    """SIGHUP ends it, as it would without a guard, and that is no reason to start again."""
    with SidecarProcess(place / "data") as sidecar:
        service = sidecar.service
        os.kill(sidecar.process.pid, signal.SIGHUP)
        code = sidecar.wait()

    assert code == 128 + signal.SIGHUP and is_gone(service)
