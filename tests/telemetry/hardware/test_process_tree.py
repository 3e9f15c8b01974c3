"""Trees of processes, on a recorded /proc: by pid and start, in and out of containers."""

from __future__ import annotations

import os
from pathlib import Path

import pynvml
import pytest

from telemetry.hardware.gpu_processes import LEFT_OUT, GpuProcesses
from telemetry.hardware.metric_list import PROCESSES
from telemetry.hardware.proc import HOST_PID_NAMESPACE, TICKS_PER_SECOND, is_host_namespace
from telemetry.hardware.process_tree import ProcessTreeProbe
from telemetry.hardware.watched import Watched, WatchList, order_of

RECORDED = Path(__file__).parents[2] / "data/proc"
BOOT_S = 1_700_000_000
STAT = (RECORDED / "trainer.stat").read_text()


class Proc:
    """A /proc in which processes begin, work and end."""

    def __init__(self, root):
        self.root = root
        (root / "stat").write_text(f"cpu 1 2 3\nbtime {BOOT_S}\nprocesses 9\n")

    def put(self, pid, parent=1, start_s=100, cpu_s=0, rss_pages=256, own_pid=None, read=0):
        """Write a process as the recorded trainer was, with these differences."""
        directory = self.root / str(pid)
        (directory / "fd").mkdir(parents=True, exist_ok=True)
        for number in range(3):
            (directory / f"fd/{number}").touch()
        head, _, rest = STAT.rpartition(")")
        fields = rest.split()
        fields[1], fields[11], fields[12] = str(parent), str(cpu_s * TICKS_PER_SECOND), "0"
        fields[17], fields[19] = "4", str(start_s * TICKS_PER_SECOND)
        fields[21] = str(rss_pages)
        (directory / "stat").write_text(f"{head}) {' '.join(fields)}\n")
        (directory / "io").write_text(f"rchar: 1\nread_bytes: {read}\nwrite_bytes: 0\n")
        numbers = f"{pid}\t{own_pid}" if own_pid else str(pid)
        (directory / "status").write_text(f"Name:\tpython\nNSpid:\t{numbers}\n")

    def end(self, pid):
        (self.root / str(pid)).rename(self.root / f"ended-{pid}")


@pytest.fixture
def proc(tmp_path):
    return Proc(tmp_path)


@pytest.fixture
def watch_list():
    return WatchList()


@pytest.fixture
def probe(clock, watch_list, reports, tmp_path):
    return ProcessTreeProbe(clock, watch_list, lambda level, text: reports.append(text), tmp_path)


def watch(watch_list, pid=10, start_s=100):
    found = Watched("r1", "rank0", pid, (BOOT_S + start_s) * 10**9)
    watch_list.feed(order_of([found]))
    return found


def of_rank0(values):
    prefix = "process/r1/rank0/"
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def test_a_tree_is_the_sum_of_a_process_and_its_descendants(proc, watch_list, probe, clock):
    """The loader's workers are the trainer's; a stranger is nobody's."""
    proc.put(10)
    proc.put(11, parent=10, start_s=101)
    proc.put(12, parent=11, start_s=102)
    proc.put(99)
    watch(watch_list)
    probe.read()
    clock.advance(2)
    proc.put(10, cpu_s=1)
    proc.put(12, parent=11, start_s=102, cpu_s=3, read=4000)

    values = probe.read()

    assert {PROCESSES.described(name)[0] for name in values} == set(PROCESSES.metrics)
    assert of_rank0(values) == {
        "processes": 3,
        "threads": 12,
        "rss_bytes": 3 * 256 * os.sysconf("SC_PAGE_SIZE"),
        "open_files": 9,
        "cpu_cores": 2.0,
        "read_bytes_per_second": 2000.0,
        "write_bytes_per_second": 0.0,
    }


def test_a_pid_that_belongs_to_another_process_is_not_ours(proc, watch_list, probe, reports):
    """Another container's, or a later one with the same number; it is said once."""
    proc.put(10, start_s=500)
    watch(watch_list)

    assert [probe.read(), probe.read()] == [{}, {}]
    assert len(reports) == 1
    assert "process 10 of rank0 of run r1 can't be seen" in reports[0]


def test_a_process_in_a_container_is_found_by_the_number_it_has_there(proc, watch_list, probe):
    """Where the whole machine is seen, the kernel tells both numbers."""
    proc.put(10, start_s=100, own_pid=None)
    proc.put(4321, start_s=200, own_pid=10)
    watched = watch(watch_list, pid=10, start_s=200)

    assert of_rank0(probe.read())["processes"] == 1
    assert probe.owner_of == {4321: watched}


def test_a_worker_that_begins_later_joins_and_one_that_ended_leaves(proc, watch_list, probe, clock):
    """New ones are looked for every ten seconds."""
    proc.put(10)
    proc.put(11, parent=10)
    watch(watch_list)
    probe.read()
    proc.end(11)
    proc.put(12, parent=10, start_s=105)
    clock.advance(1)
    assert of_rank0(probe.read())["processes"] == 1
    clock.advance(10)

    assert of_rank0(probe.read())["processes"] == 2


def test_a_trainer_that_ended_has_no_values(proc, watch_list, probe, clock):
    """Nor have its last ones any longer."""
    proc.put(10)
    watch(watch_list)
    probe.read()
    proc.end(10)
    clock.advance(1)

    assert probe.read() == {}


def test_with_nothing_to_watch_no_process_is_looked_at(proc, probe):
    """A machine without training costs nothing."""
    proc.put(10)

    assert probe.read() == {}
    assert probe.owner_of == {}


@pytest.mark.parametrize(
    ("line", "kept"),
    [(b"nonsense\n", 1), (b'{"watch": [{"pid": "x"}]}\n', 1), (b'{"watch": []}\n', 0)],
)
def test_an_order_that_is_not_understood_changes_nothing(watch_list, line, kept, caplog):
    """It is said in one line, and the former order goes on."""
    watch(watch_list)

    watch_list.feed(line * 3)

    assert len(watch_list.newest) == kept
    assert len(caplog.records) == kept


def test_the_namespace_of_the_machine_is_told_by_its_number(tmp_path):
    """The kernel gives the first PID namespace a fixed one."""
    (tmp_path / "self/ns").mkdir(parents=True)
    link = tmp_path / "self/ns/pid"
    assert not is_host_namespace(tmp_path)
    link.symlink_to("pid:[4026532001]")
    assert not is_host_namespace(tmp_path)
    link.unlink()
    link.symlink_to(HOST_PID_NAMESPACE)

    assert is_host_namespace(tmp_path)


class Driver:
    """A driver that names the processes on a GPU."""

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [
            pynvml.nvmlFriendlyObject({"pid": pid, "usedGpuMemory": size})
            for pid, size in ((10, 1000), (11, 200), (12, None), (99, 5))
        ]


OWNER = Watched("r1", "rank0", 10, 1)
OWNERS = {10: OWNER, 11: OWNER, 12: OWNER}


def test_gpu_memory_goes_to_the_run_whose_process_holds_it(reports):
    """Children too; a stranger's memory is counted to nobody."""
    processes = GpuProcesses(lambda: OWNERS, lambda: True, lambda level, text: reports.append(text))

    assert processes.read(Driver(), 0, None) == {
        "compute_processes": 4,
        "process/r1/rank0/memory_used_bytes": 1200,
    }
    assert reports == []


def test_pids_of_another_namespace_are_left_out_and_the_reason_said_once(reports):
    """Equal numbers would be other processes."""
    processes = GpuProcesses(
        lambda: OWNERS, lambda: False, lambda level, text: reports.append(text)
    )

    assert [processes.read(Driver(), gpu, None) for gpu in (0, 1)] == [
        {"compute_processes": 4},
        {"compute_processes": 4},
    ]
    assert reports == [LEFT_OUT]
