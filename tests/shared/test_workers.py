"""Emitters in more than one process: each speaks for itself, and none is lost."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import textwrap
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from shared.emitter import Emitter
from shared.emitter.claims import Claim, ClaimTaken
from shared.events import MetricsLogged
from shared.ids import check_source
from shared.wire import WHOLE_STREAM, Hello, Message, Nack
from tests.fakes import FakeSidecar, Key
from tests.telemetry.waiting import wait_until

RUN = "run"
FAR_S = 20.0


@pytest.fixture
def endpoint(place: Path) -> str:
    return f"ipc://{place}/s"


def metric(step: int, kind: str = "train") -> MetricsLogged:
    return MetricsLogged(kind=kind, step=step, values={"x": 1.0})


PRELUDE = """
import concurrent.futures, copy, multiprocessing, os, signal, sys, time
from pathlib import Path
from shared.emitter import Emitter
from shared.events import MetricsLogged

emitter = None

def say(base, count=20, out=None):
    for step in range(base, base + count):
        (out or emitter).emit(MetricsLogged(kind="custom", step=step, values={"x": 1.0}))
    return os.getpid()

def say_and_raise(base):
    say(base)
    raise KeyError(base)

def say_and_exit(base):
    say(base)
    sys.exit(3)

def say_in_nested(base):
    say(base)
    child = multiprocessing.get_context("fork").Process(target=say, args=(base + 100,))
    child.start()
    child.join()

def say_given(out, base):
    say(base, out=out)

def say_by_own(base):
    with Emitter(sys.argv[1], run_id="run", source="rank0", spool_dir=sys.argv[2]) as out:
        say(base, out=out)

def main(context):
    SCRIPT

if __name__ == "__main__":
    emitter = Emitter(sys.argv[1], run_id="run", source="rank0", spool_dir=sys.argv[2],
                      close_timeout_s=10)
    say(0, 10)
    main(multiprocessing.get_context(sys.argv[3]))
    say(10, 10)
    sys.exit(0 if emitter.close(20) else 9)
"""


def run_script(
    script: str, endpoint: str, place: Path, context: str = "fork", wait_s: float = 90
) -> subprocess.CompletedProcess[str]:
    """Run a training script with workers, as a file: spawned children import it."""
    path = place / "train.py"
    path.write_text(PRELUDE.replace("SCRIPT", textwrap.indent(textwrap.dedent(script), " " * 4)))
    environ = dict(os.environ, PYTHONPATH=str(Path.cwd()))
    return subprocess.run(
        [sys.executable, path, endpoint, place / "spool", context],
        capture_output=True, text=True, timeout=wait_s, env=environ,
    )  # fmt: skip


def steps_by_source(sidecar: FakeSidecar) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for key in sidecar.disk.events:
        steps = [e.step for e in sidecar.disk.typed(key) if isinstance(e, MetricsLogged)]
        found.setdefault(key[2], []).extend(step for step in steps if step is not None)
    return found


CODES = {"say": "0", "say_and_raise": "1", "say_and_exit": "3"}


@pytest.mark.parametrize("target", CODES)
def test_a_forked_process_that_returns_raises_or_exits_delivers(endpoint, place, target):
    """Row 40: multiprocessing leaves by os._exit, without atexit. The parent is undisturbed."""
    script = f"""
    child = context.Process(target={target}, args=(100,))
    child.start()
    child.join()
    print(child.exitcode)
    """
    with FakeSidecar(endpoint) as sidecar:
        done = run_script(script, endpoint, place)

        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [
            str({"say": 0, "say_and_raise": 1, "say_and_exit": 3}[target])
        ]
        assert steps_by_source(sidecar) == {
            "rank0": list(range(20)),
            "rank0.worker0": list(range(100, 120)),
        }
        assert len(sidecar.disk.finished) == 2
    assert list((place / "spool").iterdir()) == []


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_an_emitter_given_to_a_process_is_a_worker_there(endpoint, place, context):
    """Row 40: pickled where the process is spawned, inherited where it is forked."""
    script = """
    children = [context.Process(target=say_given, args=(emitter, base)) for base in (100, 200)]
    [child.start() for child in children]
    [child.join() for child in children]
    """
    with FakeSidecar(endpoint) as sidecar:
        done = run_script(script, endpoint, place, context)

        assert (done.returncode, done.stderr) == (0, "")
        found = steps_by_source(sidecar)
    assert found.pop("rank0") == list(range(20))
    assert set(found) <= {"rank0.worker0", "rank0.worker1"}
    assert Counter(chain.from_iterable(found.values())) == Counter(
        [*range(100, 120), *range(200, 220)]
    )


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_an_emitter_that_a_process_makes_itself_is_a_worker_of_its_parents(
    endpoint, place, context
):
    """Row 40: the same run and source as the process that started it."""
    script = """
    while emitter.stats().acknowledged < 10:
        time.sleep(0.01)
    child = context.Process(target=say_by_own, args=(100,))
    child.start()
    child.join()
    """
    with FakeSidecar(endpoint) as sidecar:
        done = run_script(script, endpoint, place, context)

        assert (done.returncode, done.stderr) == (0, "")
        found = steps_by_source(sidecar)
        assert found == {"rank0": list(range(20)), "rank0.worker0": list(range(100, 120))}


def test_workers_of_a_pool_deliver_each_of_their_tasks(endpoint, place):
    """Row 40: they end when the pool does."""
    script = """
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        list(pool.map(say, range(100, 1000, 100)))
    """
    with FakeSidecar(endpoint) as sidecar:
        done = run_script(script, endpoint, place)

        assert (done.returncode, done.stderr) == (0, "")
        found = steps_by_source(sidecar)
    assert found.pop("rank0") == list(range(20))
    assert sorted(chain.from_iterable(found.values())) == [
        b + i for b in range(100, 1000, 100) for i in range(20)
    ]


def test_an_emitter_that_is_sent_to_a_forked_worker_is_a_worker_there(endpoint, place):
    """Row 40: pickled with the task of a pool, into a process that came from this one."""
    script = """
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(say_given, emitter, 100).result()
    """
    with FakeSidecar(endpoint) as sidecar:
        done = run_script(script, endpoint, place)

        assert (done.returncode, done.stderr) == (0, "")
        found = steps_by_source(sidecar)
        assert found == {"rank0": list(range(20)), "rank0.worker0": list(range(100, 120))}


def test_a_worker_of_a_worker_is_a_worker_of_the_same_rank(endpoint, place):
    """Row 40: a name of its own, not one behind the other."""
    script = """
    child = context.Process(target=say_in_nested, args=(100,))
    child.start()
    child.join()
    """
    with FakeSidecar(endpoint) as sidecar:
        done = run_script(script, endpoint, place)

        assert (done.returncode, done.stderr) == (0, "")
        found = steps_by_source(sidecar)
    assert found["rank0.worker0"] == list(range(100, 120))
    assert found["rank0.worker1"] == list(range(200, 220))


def test_a_worker_that_is_killed_leaves_all_but_its_last_moments(endpoint, place):
    """Rows 22 and 40: Pool.terminate() and DataLoader's timeout use SIGTERM."""
    script = """
    child = context.Process(target=lambda: (say(100), time.sleep(60)))
    child.start()
    while not any(path.stat().st_size > 800 for path in Path(sys.argv[2]).glob("*.spool")):
        time.sleep(0.01)
    time.sleep(0.5)
    child.terminate()
    child.join()
    """
    done = run_script(script, endpoint, place)
    assert "9" in str(done.returncode), done.stderr

    with (
        FakeSidecar(endpoint) as sidecar,
        Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=place / "spool"),
    ):
        sidecar.wait_for_events(RUN, 40)
        found = steps_by_source(sidecar)
        assert found == {"rank0": list(range(20)), "rank0.worker0": list(range(100, 120))}


def test_data_loader_workers_that_emit_do_not_disturb_the_parent(endpoint, place):
    """Row 40: as a dataset that logs what it reads."""
    pytest.importorskip("torch")
    script = """
    import torch.utils.data
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 8
        def __getitem__(self, at):
            say(1000 + at, 1)
            return at
    for epoch in range(2):
        for batch in torch.utils.data.DataLoader(Rows(), num_workers=2, batch_size=2):
            say(100 + 10 * epoch, 1)
    """
    with FakeSidecar(endpoint) as sidecar:
        done = run_script(script, endpoint, place, wait_s=150)

        assert done.returncode == 0, done.stderr
        found = steps_by_source(sidecar)
    assert len(found.pop("rank0")) == 28
    assert Counter(chain.from_iterable(found.values())) == Counter(
        {1000 + at: 2 for at in range(8)}
    )


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_a_copy_in_one_process_is_a_second_session_of_the_source(endpoint, place, duplicate):
    """Row 40: as of a model that holds its emitter."""
    with FakeSidecar(endpoint) as sidecar:
        with Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=place / "spool") as first:
            first.emit(metric(0))
            second = duplicate(first)
            second.emit(metric(1))
            first.emit(metric(2))
            assert second.close(FAR_S) and first.close(FAR_S)
        assert first.session != second.session and first.source == second.source == "rank0"
        assert steps_by_source(sidecar)["rank0"] in ([0, 2, 1], [1, 0, 2])


def test_a_copy_that_says_nothing_costs_nothing(endpoint, place):
    """No thread, no file, no stream."""
    with Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=place / "spool") as first:
        second = copy.deepcopy(first)

        assert second.close(0) and second.stats().emitted == 0 and second._sender is None


def test_a_second_process_under_one_name_is_said_once_and_both_are_recorded(
    endpoint, place, caplog
):
    """Row 40: two jobs with one id, or a notebook cell again."""
    with FakeSidecar(endpoint) as sidecar:
        first = Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=place / "spool")
        first.emit(metric(0))
        sidecar.wait_for_events(RUN, 1)
        second = Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=place / "spool")
        for step in range(1, 4):
            second.emit(metric(step))
        sidecar.wait_for_events(RUN, 4)
        assert second.close(FAR_S) and first.close(FAR_S)
    said = [r.getMessage() for r in caplog.records if "already being recorded" in r.getMessage()]
    assert len(said) == 1 and str(os.getpid()) in said[0] and RUN in said[0]
    assert list((place / "spool").iterdir()) == []


def test_a_start_after_a_crash_says_nothing_of_another(endpoint, place, caplog):
    """Row 40: the lock of a process that is gone is free."""
    code = "from shared.emitter.claims import Claim; import os, sys; from pathlib import Path; "
    code += "Claim(Path(sys.argv[1]), 'run.rank0'); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, place / "spool"])

    with FakeSidecar(endpoint):
        emitter = Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=place / "spool")
        emitter.emit(metric(0))
        assert emitter.close(FAR_S)

    assert caplog.records == []


class OlderSidecar(FakeSidecar):
    """A sidecar from before workers had sources of their own."""

    def _on_hello(self, peer: bytes, hello: Hello) -> Message:
        if ".worker" in hello.source:
            reason = f"source {hello.source!r} is not valid: it must be 'rank<n>'"
            return Nack(hello.stream, WHOLE_STREAM, reason)
        return super()._on_hello(peer, hello)


def test_an_older_sidecar_gets_a_worker_as_a_session_of_the_source(endpoint, place):
    """Nothing is lost where the trainer was updated first."""
    script = """
    child = context.Process(target=say, args=(100,))
    child.start()
    child.join()
    """
    with OlderSidecar(endpoint) as sidecar:
        done = run_script(script, endpoint, place)

        assert (done.returncode, done.stderr) == (0, "")
        keys: list[Key] = list(sidecar.disk.events)
        assert [key[2] for key in keys] == ["rank0", "rank0"] and keys[0][1] != keys[1][1]
        # Which of the two came first is not said.
        steps = sorted(steps_by_source(sidecar)["rank0"])
        assert steps[:10] == list(range(10)) and steps[-1] >= 100


def test_without_a_spool_a_worker_is_named_by_its_pid(endpoint):
    """There is no directory whose locks could number it."""
    with FakeSidecar(endpoint) as sidecar:
        emitter = Emitter(endpoint, run_id=RUN, source="rank0")
        emitter.emit(metric(0))
        child = os.fork()
        if not child:
            emitter.emit(metric(1))
            os._exit(0 if emitter.close(FAR_S) else 1)
        assert os.waitpid(child, 0)[1] == 0 and emitter.close(FAR_S)
        assert set(steps_by_source(sidecar)) == {"rank0", f"rank0.worker{child}"}
    assert check_source("rank0.worker4194304")


def test_a_child_keeps_no_lock_of_its_parent(place):
    """Row 21: or nobody could take the name while a worker lives."""
    emitter = Emitter(f"ipc://{place}/s", run_id=RUN, source="rank0", spool_dir=place / "spool",
                      close_timeout_s=0.1)  # fmt: skip
    emitter.emit(metric(0))
    wait_until(lambda: emitter._sender is not None and emitter._sender.claim._claim is not None)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    # As the kernel does when the parent dies, without a word.
    emitter._sender.claim.abandon()
    try:
        # The child lets go of its copy in a moment.
        wait_until(lambda: is_free(place / "spool", f"{RUN}.rank0"))
    finally:
        os.close(write), os.close(read), os.waitpid(child, 0)
        emitter.close()


def is_free(directory: Path, name: str) -> bool:
    try:
        Claim(directory, name).release()
    except ClaimTaken:
        return False
    return True
