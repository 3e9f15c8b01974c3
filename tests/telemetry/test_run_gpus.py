"""The GPUs of a run, and what they use: by any name that a run may have for them."""

from __future__ import annotations

import msgspec
import pytest

from shared.emitter.gpus import visible_gpus
from shared.emitter.packing import pack_event
from shared.events import Envelope, MetricsLogged, RunStarted, decode_envelope, encode_event
from telemetry.journal.gpus import gpu_indices
from telemetry.journal.rows import Row, RunContext, point_of

HOST = {
    "gpu/0/uuid": "GPU-aaaa1111-0000",
    "gpu/1/uuid": "GPU-aaaa2222-0000",
    "gpu/2/uuid": "GPU-bbbb0000-0000",
    "gpu/2/mig/0/uuid": "MIG-cccc0000-0000",
    "gpu/2/mig/1/uuid": "MIG-dddd0000-0000",
}


@pytest.mark.parametrize(
    ("named", "found"),
    [
        (["GPU-bbbb0000-0000", "GPU-aaaa1111-0000"], ["2", "0"]),
        (["GPU-aaaa2"], ["1"]),
        (["GPU-aaaa"], []),  # two of them
        (["1", "0"], ["1", "0"]),
        (["3"], []),
        (["MIG-dddd0000-0000"], ["2"]),
        (["MIG-cccc0000-0000", "MIG-dddd0000-0000"], ["2"]),
        (["GPU-dddd0000-0000"], ["2"]),  # as torch tells a MIG instance
        (["none"], []),
        (["GPU-", ""], []),
        ([], []),
    ],
)
def test_a_gpu_is_found_by_number_uuid_beginning_or_mig_id(named, found):
    """Never one of several that fit."""
    assert gpu_indices(HOST, named) == found


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        (None, []),
        ("", ["none"]),
        ("-1", ["none"]),
        ("NoDevFiles", ["none"]),
        ("0", ["0"]),
        (" 2, 3", ["2", "3"]),
        ("0,-1,1", ["0"]),
        ("GPU-8932f937,MIG-1a2b", ["GPU-8932f937", "MIG-1a2b"]),
    ],
)
def test_the_environment_is_read_as_cuda_reads_it(text, gpus):
    """All that is hidden is not the run's."""
    environ = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}

    assert visible_gpus(environ) == gpus


def test_a_run_that_names_no_gpus_has_those_that_its_process_can_see(monkeypatch):
    """What a script names goes before."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")

    told = [
        decode_envelope(pack_event(event, 1, 1).pieces[0]).event().gpu_uuids
        for event in (RunStarted(), RunStarted(gpu_uuids=["GPU-a"]))
    ]

    assert told == [["2", "3"], ["GPU-a"]]


class Run:
    """A journal in the making, and the points that sinks make of it."""

    def __init__(self):
        self.context = RunContext()
        self.rows = 0
        self.joules = [5000.0, 9000.0, 100.0]

    def _add(self, event, second, source, session="s1"):
        packed = encode_event(event, round(second * 1e9), round((second + 100) * 1e9))
        envelope: Envelope = decode_envelope(packed)
        row = Row(self.rows, source, session, self.rows, envelope)
        self.rows += 1
        typed = envelope.event()
        self.context = self.context.after(row, typed)
        return point_of(row, typed, self.context)

    def start(self, *gpus, host="node1", rank=0):
        self._add(RunStarted(host=host, rank=rank, gpu_uuids=list(gpus)), 0, f"rank{rank}")

    def use(self, second, *joules, host="node1"):
        self.joules = [a + b for a, b in zip(self.joules, joules, strict=True)]
        values = dict(HOST)
        for index, counter in enumerate(self.joules):
            values[f"gpu/{index}/energy_joules"] = counter
        self._add(MetricsLogged(kind="hardware", values=values), second, f"hardware:{host}")

    def train(self, second, step, session="s1", **values):
        values = {f"train/{name}": value for name, value in values.items()}
        event = MetricsLogged(kind="train", step=step, values=values)
        point = self._add(event, second, "rank0", session)
        return {k: v for k, v in point.values.items() if "joules" in k}


def test_energy_is_that_of_the_run_s_gpus_for_each_step_and_token():
    """The third GPU works for somebody else."""
    run = Run()
    run.start("GPU-aaaa1111-0000", "GPU-aaaa2222-0000")
    run.use(0, 0, 0, 0)
    run.train(0, 100, tokens_per_second=1000.0)
    run.use(10, 3000, 2000, 99999)
    run.train(5, 110, tokens_per_second=2000.0)

    assert run.train(10, 120, tokens_per_second=1000.0) == {
        "train/energy_joules": 5000.0,
        "train/joules_per_step": 250.0,
        "train/joules_per_1000_tokens": pytest.approx(5000 / 15),
    }


def test_there_is_no_ratio_over_a_short_time():
    """A counter that is read once a second would mostly show when."""
    run = Run()
    run.start("0")
    run.use(0, 0, 0, 0)
    run.train(0, 1)
    run.use(9, 900, 0, 0)

    assert run.train(9, 10) == {"train/energy_joules": 900.0}


def test_ranks_on_other_hosts_bring_their_own_gpus():
    """Number 1 of node2 is not number 1 of node1."""
    run = Run()
    run.start("0")
    run.start("1", host="node2", rank=1)
    run.use(0, 0, 0, 0)
    run.train(0, 1)
    run.use(10, 100, 50, 0)

    assert run.train(10, 11)["train/energy_joules"] == 100.0


def test_a_driver_that_counts_anew_takes_nothing_away():
    """What it shows was used since then."""
    run = Run()
    run.start("0")
    run.use(0, 0, 0, 0)
    run.use(1, 500, 0, 0)
    run.use(2, -5000, 0, 0)

    assert run.train(3, 1) == {"train/energy_joules": 1000.0}


def test_after_a_restart_ratios_begin_anew():
    """Steps are done twice then."""
    run = Run()
    run.start("0")
    run.use(0, 0, 0, 0)
    run.train(0, 100)
    run.use(20, 2000, 0, 0)

    assert run.train(20, 50, session="s2") == {"train/energy_joules": 2000.0}
    run.use(40, 1000, 0, 0)
    assert run.train(40, 60, session="s2")["train/joules_per_step"] == 100.0


def test_a_run_that_names_no_gpu_has_no_energy():
    """The machine's is not the run's."""
    run = Run()
    run.start()
    run.use(0, 0, 0, 0)
    run.use(20, 100, 0, 0)

    assert run.train(20, 10) == {}


def test_a_context_goes_through_json_in_the_middle_of_a_run():
    """A sink that is started again goes on with the same ratios."""
    run = Run()
    run.start("0")
    run.use(0, 0, 0, 0)
    run.train(0, 100, tokens_per_second=10.0)
    run.use(10, 1000, 0, 0)

    text = msgspec.json.encode(run.context.to_json())
    run.context = msgspec.json.decode(text, type=RunContext)

    assert run.train(10, 110)["train/joules_per_step"] == 100.0
