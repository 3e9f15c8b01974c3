"""TensorBoard's fast loader, which most people see a run through, shows every point."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import grpc
import pytest
from tensorboard.data.proto import data_provider_pb2 as api
from tensorboard.data.proto import data_provider_pb2_grpc as api_grpc

from shared.events import MessageLogged
from telemetry.journal.rows import STEP
from telemetry.sinks.base import START
from tests.telemetry.sinks.helpers_rows import RowMaker
from tests.telemetry.sinks.helpers_tensorboard import (
    Found,
    read_all,
    scalars,
    sink_in,
    through_json,
    write_all,
)

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


def test_the_fast_loader_shows_each_step_with_its_last_value(tmp_path: Path) -> None:
    """Fault 33, and names twice a step: epochs, micro-batches, late validation, odd steps."""
    journal, last = RowMaker(), {}
    steps = [-(2**63), -5, *range(0, 60, 3), 2**53 + 1, 2**63 - 1]
    for number, step in enumerate(steps):
        for part in range(4):
            values = {"train/loss": number + part / 8, "epoch": float(number), "nan": math.nan}
            journal.metrics(step, values)
            last |= {(name, step): value for name, value in values.items()}
        late = steps[max(0, number - 3)]
        journal.metrics(late, {"val/loss": number / 4, "epoch": 0.5}, kind="val")
        last |= {("val/loss", late): number / 4, ("epoch", late): 0.5}
    write_all(tmp_path, journal.rows)

    with fast_loader(tmp_path / "tensorboard") as stub:
        shown = shown_when(stub, lambda found: len(set(map(place, found))) >= len(last))

    points = {(each.tag, each.step, repr(each.value)) for each in shown}
    assert {(each.tag, each.step) for each in shown} - {(STEP, step) for step in steps} == set(last)
    assert {(tag, step, repr(value)) for (tag, step), value in last.items()} <= points
    assert len({each.directory for each in shown}) <= 3


def test_a_loader_that_is_open_sees_what_a_killed_sink_and_its_successor_wrote(
    tmp_path: Path,
) -> None:
    """Fault 48: files that are cut and gone on with while TensorBoard has them open."""
    journal = RowMaker()
    for step in range(60):
        journal.metrics(step, {"train/loss": step / 2})
    sink = sink_in(tmp_path)
    sink.open(START)
    sink.write(journal.rows[:20])
    position = sink.commit()

    with fast_loader(tmp_path / "tensorboard", reload="1") as stub:
        shown_when(stub, lambda found: len(losses(found)) == 20)
        # The kill: rows 20 to 39 are in the files, and no position says so.
        sink.write(journal.rows[20:30])
        sink.flush()
        shown_when(stub, lambda found: len(losses(found)) == 30)
        sink.write(journal.rows[30:40])
        sink.commit()
        shown_when(stub, lambda found: len(losses(found)) == 40)
        sink.close()
        later = sink_in(tmp_path)
        assert later.open(through_json(position)) == 20
        later.write(journal.rows[20:50])
        position = later.commit()
        # And a start anew from row 0, as after damage.
        anew = sink_in(tmp_path)
        anew.open(START)
        anew.write(journal.rows)
        anew.commit()
        shown = shown_when(stub, lambda found: len(losses(found)) == 60)

    assert losses(shown) == [(step, step / 2) for step in range(60)]


def losses(found: list[Found]) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in found if each.tag == "train/loss"]


def place(each: Found) -> tuple[str, int]:
    return each.tag, each.step


def shown_when(
    stub: api_grpc.TensorBoardDataProviderStub, is_whole: Callable[[list[Found]], bool]
) -> list[Found]:
    """All that is shown once it is whole, or all that is shown after a long time."""
    deadline = monotonic() + LOAD_TIMEOUT_S
    # The loader says nowhere that it is done; each call waits for the server.
    while not is_whole(shown := shown_by(stub)) and monotonic() < deadline:
        pass
    return shown


@contextmanager
def fast_loader(
    logdir: Path, reload: str = "once"
) -> Iterator[api_grpc.TensorBoardDataProviderStub]:
    """The data server that `tensorboard` starts, without sampling."""
    # As a fifo, the file that the server writes its port to also tells when.
    port_file = logdir.parent / "port"
    os.mkfifo(port_file)
    command = [
        server.server_binary(),
        f"--logdir={logdir}",
        f"--reload={reload}",
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
