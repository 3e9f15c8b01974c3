"""The sidecar as a process, with real emitters: killed, stopped, full, and started twice."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shared.emitter import Emitter
from shared.events import MessageLogged, MetricsLogged
from telemetry.config import ServeConfig
from telemetry.errors import EXIT_BACKLOG, EXIT_FAULT, EXIT_OK, EXIT_RUNNING, CommandError
from telemetry.ingest.gateway import Gateway
from telemetry.ingest.ingest import Ingest
from telemetry.json_files import read_json
from telemetry.service import Service
from telemetry.starter import exit_code_in
from tests.telemetry.sidecar_process import SidecarProcess, clean_env, http_get
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import finished, metric, read_rows, started


def emitter(endpoint: str, **options: object) -> Emitter:
    return Emitter(endpoint, **{"run_id": "r", "source": "rank0", "close_timeout_s": 20} | options)


def steps(data_dir: Path, run_id: str = "r") -> list[int | None]:
    events = [row.envelope.event() for row in read_rows(data_dir / "runs" / run_id)]
    return [event.step for event in events if isinstance(event, MetricsLogged)]


def info(data_dir: Path, run_id: str = "r") -> dict[str, object]:
    return read_json(data_dir / "runs" / run_id / "run.json") or {}


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_events_of_an_emitter_are_in_the_journal_when_it_is_acknowledged(place):
    """The whole way, and its end."""
    with SidecarProcess(place / "data") as sidecar:
        with emitter(sidecar.endpoint) as producer:
            producer.emit(started())
            for step in range(1000):
                producer.emit(metric(step))
            producer.emit(finished())
            is_all = producer.close()
        while_running = steps(sidecar.data_dir)
        wait_until(lambda: info(sidecar.data_dir)["state"] == "ended")

        code = sidecar.terminate()

    assert is_all and while_running == list(range(1000)) and code == EXIT_OK
    assert info(sidecar.data_dir)["status"] == "finished"
    assert "inspect" in sidecar.log


def test_after_kills_under_load_every_event_is_in_the_journal_once_and_in_order(place):
    """With unacknowledged events at each of them. Row 1."""
    data, step = place / "data", 0
    sidecar = SidecarProcess(data)
    with emitter(sidecar.endpoint) as producer:
        for _ in range(4):
            with sidecar:
                before = producer.stats().acknowledged
                for _ in range(1000):
                    producer.emit(metric(step))
                    step += 1
                wait_until(lambda n=before: producer.stats().acknowledged > n)
                for _ in range(1000):
                    producer.emit(metric(step))
                    step += 1
                sidecar.kill()
            # Nobody is there to acknowledge any more.
            stats = producer.stats()
            assert stats.queued > 0, "a kill with nothing in flight proves nothing"
            assert len(steps(data)) >= stats.acknowledged > before
        with sidecar:
            is_all = producer.close()

    assert is_all and steps(data) == list(range(step))


def test_sigterm_takes_in_what_is_on_its_way_and_ends_with_0(place):
    """The trainer is told to stop at the same moment, and has its last words. Row 20."""
    with SidecarProcess(place / "data", "--drain-grace-s=10") as sidecar:
        producer = emitter(sidecar.endpoint)
        producer.emit(started())
        wait_until(lambda: producer.stats().acknowledged == 1)
        for step in range(3000):
            producer.emit(metric(step))
        sidecar.process.terminate()
        producer.emit(finished())
        is_all = producer.close()

        code = sidecar.wait()

    assert is_all and code == EXIT_OK
    assert steps(sidecar.data_dir) == list(range(3000))
    assert info(sidecar.data_dir)["status"] == "finished"


def test_a_second_sigterm_changes_nothing(place):
    """An impatient supervisor does not cut the journal. Row 20."""
    with SidecarProcess(place / "data") as sidecar:
        with emitter(sidecar.endpoint) as producer:
            producer.emit(metric(0))
        sidecar.process.terminate()
        sidecar.process.terminate()

        code = sidecar.wait()

    assert code == EXIT_OK and steps(sidecar.data_dir) == [0]


def test_a_kill_in_the_drain_costs_nothing_that_the_next_start_does_not_make_up_for(place):
    """A supervisor's patience ends before the grace time does. Row 20."""
    flags = ("--sinks=tensorboard", "--drain-grace-s=60")
    cursor = place / "data/runs/r/cursors/tensorboard.json"
    with SidecarProcess(place / "data", *flags) as sidecar:
        with emitter(sidecar.endpoint) as producer:
            producer.emit(started())
            for step in range(2000):
                producer.emit(metric(step))
            producer.emit(finished())
        (sink,) = wait_until(sidecar.service.children)
        sink.suspend()
        sidecar.process.terminate()
        wait_until(lambda: info(place / "data").get("state") == "ended")
        is_draining = sidecar.process.poll() is None
        sidecar.kill()
        sink.kill()
        behind = 2002 - int((read_json(cursor) or {}).get("row", 0))
        sidecar.start()
        wait_until(lambda: (read_json(cursor) or {}).get("done"), 60)
        code = sidecar.terminate()

    assert is_draining and behind > 0 and code == EXIT_OK
    assert steps(place / "data") == list(range(2000))


def test_a_sink_that_is_behind_at_the_end_is_a_backlog_with_the_command_to_go_on(place):
    """Its terminal is full. Row 20."""
    flags = ("--sinks=console", "--drain-grace-s=1")
    with SidecarProcess(place / "data", *flags) as sidecar:
        with emitter(sidecar.endpoint) as producer:
            producer.emit(started())
            producer.emit(finished())

        code = sidecar.terminate()
    command = f"-m telemetry sink console {place}/data/runs/r"
    assert code == EXIT_BACKLOG and command in sidecar.log

    done = subprocess.run(
        [sys.executable, *command.split()], capture_output=True, text=True, env=clean_env()
    )

    assert done.returncode == 0 and "rank0" in done.stdout


def test_the_end_of_stdin_ends_it_and_an_unfinished_run_is_lost(place):
    """Whoever started it is gone, and its command with it. Row 2."""
    with SidecarProcess(place / "data", "--exit-with-stdin") as sidecar:
        with emitter(sidecar.endpoint) as producer:
            producer.emit(started())
            producer.emit(metric(0))
        sidecar.process.stdin.close()

        code = sidecar.process.wait(20)

    assert code == EXIT_OK and steps(sidecar.data_dir) == [0]
    assert (info(sidecar.data_dir)["state"], info(sidecar.data_dir)["status"]) == ("ended", "lost")


@pytest.mark.parametrize(
    ("code", "status"), [(0, "finished"), (3, "failed"), (137, "failed"), (-9, "failed")]
)
def test_a_run_that_did_not_say_how_it_ended_ends_with_its_commands_exit_code(place, code, status):
    """Whoever started both knows it, and says so before it closes the pipe."""
    with SidecarProcess(place / "data", "--exit-with-stdin") as sidecar:
        with emitter(sidecar.endpoint) as producer:
            producer.emit(started())
        with emitter(sidecar.endpoint, run_id="said") as producer:
            producer.emit(started())
            producer.emit(finished("preempted"))
        sidecar.process.stdin.write(b'{"exit_code": %d}\n' % code)
        sidecar.process.stdin.close()
        sidecar.process.wait(20)

    told, said = info(sidecar.data_dir), info(sidecar.data_dir, "said")
    assert (told["state"], told["status"], told["exit_code"]) == ("ended", status, code)
    assert (said["state"], said["status"]) == ("ended", "preempted")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b'{"exit_code": 3}\n', 3),
        (b'{"exit_code": 3}', 3),
        (b'{"exit_code": 1}\n{"exit_code": -15}\n', -15),
        (b"", None),
        (b"\n", None),
        (b"hello\n", None),
        (b'{"exit_code": "3"}\n', None),
        (b'{"exit_code": 1}\nhello\n', None),
        (b"[" * 5000, None),
        (b"\xff\xfe\n", None),
    ],
)
def test_only_a_last_line_that_says_an_exit_code_is_taken_for_one(said, code):
    """Anything else means that nobody knows."""
    assert exit_code_in(said) == code


def test_two_live_sessions_of_one_id_are_recorded_and_said_once_on_both_sides(place, caplog):
    """Two jobs with one id, or a notebook cell again. Row 40."""
    with (
        SidecarProcess(place / "data") as sidecar,
        emitter(sidecar.endpoint) as first,
        emitter(sidecar.endpoint) as second,
    ):
        count = 0

        def is_told_to_both() -> bool:
            nonlocal count
            first.emit(metric(count))
            second.emit(metric(count))
            count += 1
            told = [r for r in caplog.records if "two live sessions" in r.message]
            return len(told) >= 2

        wait_until(is_told_to_both)
        is_all = [first.close(), second.close()]
    rows = read_rows(place / "data" / "runs" / "r")

    assert is_all == [True, True] and sidecar.log.count("two live sessions") == 1
    assert len([r for r in caplog.records if "two live sessions" in r.message]) == 2
    messages = [row for row in rows if isinstance(row.envelope.event(), MessageLogged)]
    assert [row.source for row in messages] == ["sidecar"]
    assert len([row for row in rows if row.source == "rank0"]) == 2 * count


def test_what_a_killed_trainer_left_comes_in_beside_the_restarted_one(place):
    """Same run, same directory; the new session lives for days. Rows 22 and 33."""
    spool = {"spool_dir": place / "spool"}
    former = emitter(f"ipc://{place}/data/telemetry.sock", **spool)
    former.emit(started())
    former.emit(metric(0))
    is_sent = former.close(0.5)

    with (
        SidecarProcess(place / "data") as sidecar,
        emitter(sidecar.endpoint, **spool) as producer,
    ):
        producer.emit(started())
        producer.emit(metric(1))
        wait_until(lambda: producer.stats().acknowledged == 2)
        wait_until(lambda: sorted(steps(sidecar.data_dir)) == [0, 1])
        wait_until(lambda: not list((place / "spool").glob(f"*{former.session}*")))
        state = info(sidecar.data_dir)["state"]

    assert not is_sent and state == "running"


def test_a_second_sidecar_on_a_directory_ends_with_5_and_names_the_first(place):
    """Row 14."""
    with SidecarProcess(place / "data") as first:
        second = SidecarProcess(place / "data").start(is_ready=False)

        code = second.wait()

    assert code == EXIT_RUNNING
    assert f"pid {first.process.pid}" in second.log


def test_a_second_sidecar_on_a_socket_ends_with_5_and_names_the_first(place):
    """With a directory of its own: the socket would be stolen without a word. Row 14."""
    with SidecarProcess(place / "data") as first:
        flag = f"--bind={first.endpoint}"
        second = SidecarProcess(place / "other", flag).start(is_ready=False)

        code = second.wait()
        with emitter(first.endpoint) as producer:
            producer.emit(metric(0))
            is_undisturbed = producer.close()

    assert code == EXIT_RUNNING and is_undisturbed
    assert f"pid {first.process.pid}" in second.log


@pytest.mark.parametrize("data_dir", ["file/below", "/proc/telemetry"])
def test_a_directory_that_can_not_be_had_ends_it_with_one_sentence(place, data_dir):
    """No traceback, and the path in it. Row 13."""
    (place / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "telemetry", "serve", "--data-dir", str(place / data_dir)],
        capture_output=True, text=True, env=clean_env(),
    )  # fmt: skip

    assert done.returncode == 2
    assert data_dir in done.stderr and len(done.stderr.splitlines()) == 1


def test_it_says_over_http_that_it_lives_is_ready_and_what_it_counts(place):
    """For a container's probes, and for Prometheus."""
    address = free_address()
    with SidecarProcess(place / "data", f"--http={address}") as sidecar:
        with emitter(sidecar.endpoint) as producer:
            producer.emit(started())
            producer.emit(metric(0))
            producer.emit(MetricsLogged(kind="train", step=1, values={"x": object()}))
        wait_until(lambda: 'journal_rows{run_id="r"} 3.0' in http_get(address, "/metrics")[1])
        answers = {path: http_get(address, path) for path in ("/livez", "/readyz", "/metrics", "/")}

    assert answers["/livez"] == answers["/readyz"] == (200, "ok\n")
    status, metrics = answers["/metrics"]
    assert status == 200 and "telemetry_events_total 3.0" in metrics
    gap = 'telemetry_gap_events_total{kind="train",reason="refused: not a scalar"} 1.0'
    assert gap in metrics
    assert "telemetry_active_runs 1.0" in metrics and "telemetry_journal_writable 1.0" in metrics
    assert answers["/"][0] == 404


def test_below_the_free_space_limit_it_lives_but_is_not_ready_and_acknowledges_nothing(place):
    """It goes on when there is room. Row 11."""
    address = free_address()
    flags = (f"--http={address}", f"--min-free-bytes={2**62}")
    with SidecarProcess(place / "data", *flags) as sidecar:
        producer = emitter(sidecar.endpoint, spool_dir=place / "spool")
        producer.emit(metric(0))
        wait_until(lambda: http_get(address, "/readyz")[0] == 503)
        is_acknowledged = producer.close(1)
        live, ready = http_get(address, "/livez"), http_get(address, "/readyz")

    assert live == (200, "ok\n") and ready == (503, "no room on disk\n")
    assert not is_acknowledged and sidecar.log.count("pausing") == 1


def test_secrets_in_the_environment_are_found_nowhere(place):
    """Not in a file, not in a log line, not in a metric. Row 31."""
    secrets = {
        "WANDB_API_KEY": "hunter2hunter2hunter2hunter2hunter2hunter",
        "TELEMETRY_CURVE_SECRET_KEY": "swordfish-swordfish-swordfish-swordfish",
    }
    address = free_address()
    flags = ("--sinks=tensorboard,console", f"--http={address}", "--sample-hz=20")
    with SidecarProcess(place / "data", *flags, env=clean_env(**secrets)) as sidecar:
        with emitter(sidecar.endpoint) as producer:
            producer.emit(started())
            producer.emit(metric(0))
        producer = emitter(sidecar.endpoint, run_id="q")
        producer.emit(started())
        wait_until(lambda: (place / "data/runs/r/cursors/tensorboard.json").exists())
        metrics = http_get(address, "/metrics")[1]
        producer.close()
        sidecar.terminate()

    written = [path.read_bytes() for path in place.rglob("*") if path.is_file()]
    assert len(written) > 8
    for secret in secrets.values():
        assert secret not in metrics
        assert not any(secret.encode() in content for content in written)


# --- in this process: what a process can not be made to do from outside


def served(service: Service) -> tuple[threading.Thread, list[int]]:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(service.run()))
    thread.start()
    return thread, codes


def config(place: Path, **changes: object) -> ServeConfig:
    settings = {"data_dir": place / "data", "sinks": (), "sample_hz": 0.0}
    settings |= {"http": "off", "page": "off"}
    return ServeConfig(**settings | {"drain_grace_s": 1.0} | changes)


def test_a_disk_that_fails_to_sync_ends_it_with_4_and_nothing_is_acknowledged(place, monkeypatch):
    """At the next start the journal is verified, and the event is sent again. Row 12."""

    def failing(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Service(config(place)) as service, emitter(service.config.address) as producer:
        thread, codes = served(service)
        producer.emit(metric(0))
        wait_until(lambda: producer.stats().acknowledged == 1)
        monkeypatch.setattr(os, "fdatasync", failing)
        producer.emit(metric(1))
        thread.join(20)
        acknowledged = producer.stats().acknowledged
        monkeypatch.undo()
        service.close()
        with SidecarProcess(place / "data"):
            is_all = producer.close()

    assert codes == [EXIT_FAULT] and acknowledged == 1
    assert is_all and steps(place / "data") == [0, 1]


def test_a_turn_that_fails_is_counted_and_the_next_one_is_as_ever(place, monkeypatch):
    """Whatever a bug of ours does to one message, others arrive."""
    handle, left = Ingest.handle, [3]

    def failing(self, peer, message):
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("a bug")
        return handle(self, peer, message)

    monkeypatch.setattr(Ingest, "handle", failing)
    with Service(config(place)) as service, emitter(service.config.address) as producer:
        thread, codes = served(service)
        producer.emit(metric(0))
        is_all = producer.close()
        wait_until(lambda: service.health().counts.get("failed_turns_total") == 3)
        service.stop.set()
        thread.join(20)

    assert is_all and codes == [EXIT_OK] and steps(place / "data") == [0]


def test_what_both_threads_count_is_shown_as_one_sum(place):
    """A peer is told to wait by either."""
    with Service(config(place)) as service:
        service._ingest.counts["streams_told_to_wait_total"] = 2
        service._reading.reception.counts["streams_told_to_wait_total"] = 3
        service._tick()

        assert service.health().counts["streams_told_to_wait_total"] == 5


def test_a_start_that_fails_lets_go_of_all_it_had(place):
    """The next try is not in its own way."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(CommandError, match="choose another address"):
            Service(config(place, http=taken))

    Gateway(f"ipc://{place}/data/telemetry.sock").close()
    Service(config(place)).close()
