"""TensorBoard's fast loader, which most people see a run through, shows every point."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import grpc
import pytest
from tensorboard.data.proto import data_provider_pb2 as api
from tensorboard.data.proto import data_provider_pb2_grpc as api_grpc

from shared.events import MessageLogged
from tests.telemetry.sinks.helpers_rows import RowMaker
from tests.telemetry.sinks.helpers_tensorboard import Found, read_all, scalars, write_all

server = pytest.importorskip("tensorboard_data_server")
pytestmark = pytest.mark.skipif(server.server_binary() is None, reason="no fast loader here")
LOAD_TIMEOUT_S = 20


def test_the_fast_loader_shows_every_number(tmp_path: Path) -> None:
    """Faults 33 and 34 through the loader itself: restart, late points, ranks far apart."""
    journal = RowMaker()
    for session, first in (("s1", 0), ("s2", 100)):
        journal.start(session=session, config={"lr": 0.1})
        for step in range(first, first + 150):
            journal.metrics(step, {"train/loss": step / 3}, session=session)
            journal.metrics(step + 1000, {"train/loss": 1.0}, "rank1", session)
            journal.hardware({"cpu_percent": float(step)})
        journal.metrics(first + 5, {"train/loss": 7.0}, session=session)
        journal.append(MessageLogged(level="info", text="late"), session=session)
        journal.metrics(first + 200, {"train/loss": 8.0}, session=session)
    write_all(tmp_path, journal.rows)
    expected = sorted(scalars(read_all(tmp_path)))

    with fast_loader(tmp_path / "tensorboard") as stub:
        deadline = monotonic() + LOAD_TIMEOUT_S
        # The loader says nowhere that it is done; each call waits for the server.
        while (shown := shown_by(stub)) != expected and monotonic() < deadline:
            pass

    assert shown == expected


@contextmanager
def fast_loader(logdir: Path) -> Iterator[api_grpc.TensorBoardDataProviderStub]:
    """The data server that `tensorboard` starts, without sampling."""
    # As a fifo, the file that the server writes its port to also tells when.
    port_file = logdir.parent / "port"
    os.mkfifo(port_file)
    command = [
        server.server_binary(),
        f"--logdir={logdir}",
        "--reload=once",
        "--samples-per-plugin=scalars=all",
        "--port=0",
        f"--port-file={port_file}",
        "--die-after-stdin",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{int(port_file.read_text())}") as channel:
                yield api_grpc.TensorBoardDataProviderStub(channel)
        finally:
            process.kill()


def shown_by(stub: api_grpc.TensorBoardDataProviderStub) -> list[Found]:
    request = api.ReadScalarsRequest(experiment_id="")
    request.plugin_filter.plugin_name = "scalars"
    request.downsample.num_points = 1_000_000
    response = stub.ReadScalars(request, timeout=LOAD_TIMEOUT_S, wait_for_ready=True)
    return sorted(
        Found(run.run_name, tag.tag_name, step, wall_s, value)
        for run in response.runs
        for tag in run.tags
        for step, wall_s, value in zip(
            tag.data.step, tag.data.wall_time, tag.data.value, strict=True
        )
    )
