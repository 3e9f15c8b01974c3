"""Where an emitter sends to and spools: said, from the environment, or unusual."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from shared.emitter import Emitter
from shared.emitter.connection import Connection, check_address, check_endpoint
from shared.emitter.spool import Spool, SpoolUnavailable
from shared.emitter.whereabouts import endpoint_of, spool_dir_of
from shared.events import MetricsLogged
from tests.fakes import FakeSidecar
from tests.telemetry.waiting import wait_until

FAR_S = 20.0


def metric(step: int) -> MetricsLogged:
    return MetricsLogged(kind="train", step=step, values={"x": 1.0})


def delivered(sidecar: FakeSidecar, count: int) -> bool:
    sidecar.wait_for_events("r", count)
    return True


BAD = ["http://x", "nonsense", "tcp://host:0", "tcp://host:99999", "ipc://", "ipc://a/" + "x" * 90,
       "tcp://h:٣", "\udcff\x1b[31m"]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=ascii)
def test_a_bad_address_of_the_environment_does_not_reach_the_script(
    bad, place, monkeypatch, caplog
):
    """It is said once, in one harmless line; events are spooled. An argument still raises."""
    with pytest.raises(ValueError, match="endpoint"):
        Emitter(bad, run_id="r", source="rank0")
    monkeypatch.setenv("TELEMETRY_ENDPOINT", bad)
    caplog.clear()

    for given in (None, os.environ["TELEMETRY_ENDPOINT"]):
        emitter = Emitter(given, run_id="r", source="rank0", spool_dir=str(place / "spool"))
        emitter.emit(metric(1))
        assert not emitter.close(5) and emitter.stats().spooled == 1

    lines = [r.getMessage() for r in caplog.records if "TELEMETRY_ENDPOINT" in r.getMessage()]
    assert len(lines) == 2 and all(line.isprintable() for line in lines)


@pytest.mark.parametrize("bad", [None, "", 7, b"ipc://x", Path("x")], ids=repr)
def test_an_address_that_is_no_text_is_refused_in_words(bad, monkeypatch):
    """But None, or an empty text, means that the environment says it."""
    monkeypatch.setenv("TELEMETRY_ENDPOINT", "")
    if not bad:
        assert endpoint_of(bad) is None
    else:
        with pytest.raises(ValueError, match="endpoint"):
            endpoint_of(bad)


def test_the_environment_says_where_to_send_and_to_spool(place, monkeypatch):
    """Where the script says neither."""
    monkeypatch.setenv("TELEMETRY_ENDPOINT", f"ipc://{place}/s")
    monkeypatch.setenv("TELEMETRY_SPOOL_DIR", str(place / "spool"))
    with FakeSidecar(f"ipc://{place}/s") as sidecar, Emitter(run_id="r") as emitter:
        emitter.emit(metric(1))
        assert delivered(sidecar, 1)
    assert emitter.spool_dir == place / "spool" and emitter.source == "rank0"


@pytest.mark.parametrize("said", ["spool", Path("spool"), b"spool"])
def test_a_spool_directory_may_be_a_text(said, place, monkeypatch):
    """As os.environ has it; relative to where the script was then."""
    monkeypatch.chdir(place)

    assert spool_dir_of(said) == place / "spool"
    assert spool_dir_of(None, {}) is spool_dir_of(None, {"TELEMETRY_SPOOL_DIR": ""}) is None


def test_a_later_chdir_moves_neither_the_address_nor_the_spool(place, monkeypatch):
    """As of a script that changes into its output directory."""
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place)
    emitter = Emitter("ipc://s", run_id="r", source="rank0", spool_dir="spool")
    monkeypatch.chdir(place / "elsewhere")
    emitter.emit(metric(1))

    with FakeSidecar(f"ipc://{place}/s") as sidecar:
        assert delivered(sidecar, 1) and emitter.close(FAR_S)
    assert list((place / "elsewhere").iterdir()) == []


def test_a_working_directory_that_is_gone_raises_nothing(place, monkeypatch):
    """A path that can't be made absolute stays as it is."""
    (place / "gone").mkdir()
    monkeypatch.chdir(place / "gone")
    (place / "gone").rmdir()

    assert endpoint_of("ipc://s") == "ipc://s" and spool_dir_of("x") == Path("x")
    monkeypatch.chdir(place)


@pytest.mark.parametrize("comes_first", ["sidecar", "emitter"])
def test_a_socket_far_down_is_reached_by_a_short_path(place, comes_first, caplog):
    """A path of more than 107 bytes, whose directory may come later."""
    deep = place / ("d" * 100) / ("e" * 100)
    address = f"ipc://{deep}/telemetry.sock"
    with pytest.raises(ValueError, match="107"):
        check_endpoint(address)
    emitter = None
    if comes_first == "emitter":
        emitter = Emitter(address, run_id="r", source="rank0")
        emitter.emit(metric(0))
    deep.mkdir(parents=True)
    fd = os.open(deep, os.O_RDONLY)
    try:
        with FakeSidecar(f"ipc:///proc/self/fd/{fd}/telemetry.sock") as sidecar:
            emitter = emitter or Emitter(address, run_id="r", source="rank0")
            emitter.emit(metric(1))
            assert delivered(sidecar, 1 + (comes_first == "emitter")) and emitter.close(FAR_S)
    finally:
        os.close(fd)
    assert caplog.records == []


def test_a_connection_lets_go_of_the_directory_of_its_socket(place):
    """As often as its socket is made anew."""
    deep = place / ("d" * 120)
    deep.mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Connection(f"ipc://{deep}/s") as connection:
        for _ in range(5):
            connection.wait(0)
            connection.rebuild()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_an_address_of_ipv6_is_reached(place):
    """In brackets, as in a URL."""
    assert check_address("tcp://[::1]:5555") == "tcp://[::1]:5555"
    context = zmq.Context()
    probe = context.socket(zmq.ROUTER)
    probe.setsockopt(zmq.IPV6, 1)
    try:
        port = probe.bind_to_random_port("tcp://[::1]")
    except zmq.ZMQError:
        pytest.skip("no IPv6 here")
    finally:
        probe.close(0)
        context.term()

    real = zmq.Context.socket

    def with_ipv6(self: zmq.Context, kind: int) -> zmq.Socket:
        socket = real(self, kind)
        if kind == zmq.ROUTER:
            socket.setsockopt(zmq.IPV6, 1)
        return socket

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zmq.Context, "socket", with_ipv6)
        with FakeSidecar(f"tcp://[::1]:{port}") as sidecar:
            emitter = Emitter(f"tcp://[::1]:{port}", run_id="r", source="rank0")
            emitter.emit(metric(1))
            assert delivered(sidecar, 1) and emitter.close(FAR_S)


def test_a_spool_where_a_file_is_leaves_events_in_memory(place, caplog):
    """Said once; they are sent when a sidecar comes."""
    (place / "spool").write_text("a file")
    emitter = Emitter(f"ipc://{place}/s", run_id="r", source="rank0", spool_dir=place / "spool")
    emitter.emit(metric(1))
    wait_until(lambda: bool(caplog.records))

    with FakeSidecar(f"ipc://{place}/s") as sidecar:
        assert delivered(sidecar, 1) and emitter.close(FAR_S)
    assert ["stay in memory" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_as_that(place, monkeypatch, error):
    """It is in use by nobody."""

    def no_locks(fd: int, how: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", no_locks)

    with pytest.raises(SpoolUnavailable, match="can't lock files"):
        Spool.create(place / "spool", "r", "s", "rank0")


def test_no_temporary_directory_is_needed(place):
    """A container may have none that can be written."""
    code = (
        "import tempfile, sys\n"
        "def none(*a, **k): raise FileNotFoundError('no usable temporary directory')\n"
        "tempfile.mkdtemp = tempfile.mkstemp = tempfile.gettempdir = none\n"
        "from shared.emitter import Emitter\n"
        "from shared.events import MetricsLogged\n"
        "e = Emitter(sys.argv[1], run_id='r', source='rank0', spool_dir=sys.argv[2])\n"
        "e.emit(MetricsLogged(kind='train', step=1, values={'x': 1.0}))\n"
        "sys.exit(0 if not e.close(2) and e.stats().spooled == 1 else 1)\n"
    )
    address = f"ipc://{place}/{'d' * 110}/s"
    done = subprocess.run([sys.executable, "-c", code, address, place / "spool"])

    assert done.returncode == 0
