"""The sampler as a process: what starts it, and what ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from telemetry.hardware.sampler import (
    BadConfig,
    SamplerConfig,
    StopSignal,
    main,
    parse_config,
)

FAR_S = 60.0


@pytest.fixture
def pipe():
    read_fd, write_fd = os.pipe()
    ends = {"read": read_fd, "write": write_fd}
    yield ends
    for fd in ends.values():
        os.close(fd)


def test_waiting_ends_without_a_stop_when_the_time_is_over(pipe):
    """Nothing happened: the next sample is due."""
    with closing(StopSignal(pipe["read"])) as stop:
        assert stop.wait(0.001) is False


def test_the_end_of_stdin_stops_at_once(pipe):
    """The parent is dead: its end of the pipe was closed by the kernel."""
    with closing(StopSignal(pipe["read"])) as stop:
        os.close(pipe.pop("write"))

        assert stop.wait(FAR_S) is True


def test_what_the_parent_writes_does_not_stop(pipe):
    """Only the end does."""
    os.write(pipe["write"], b"hello")
    with closing(StopSignal(pipe["read"])) as stop:
        assert stop.wait(0.001) is False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_once_even_between_two_waits(pipe, number):
    """A signal that comes while a sample is taken is not forgotten."""
    with closing(StopSignal(pipe["read"])) as stop:
        os.kill(os.getpid(), number)

        assert stop.wait(FAR_S) is True
        assert stop.wait(FAR_S) is True


def test_signals_are_as_before_after_closing(pipe):
    """Closing twice does no harm."""
    before = signal.getsignal(signal.SIGTERM)
    stop = StopSignal(pipe["read"])

    stop.close()
    stop.close()

    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stdin_that_is_no_pipe_is_not_watched(tmp_path):
    """Started by hand with /dev/null, it must not end at once."""
    with Path(os.devnull).open() as null, closing(StopSignal(null.fileno())) as stop:
        assert stop.wait(0.001) is False


def test_a_stdin_that_is_closed_is_not_watched(pipe):
    """Nobody holds the other end of it."""
    fd = os.dup(pipe["read"])
    os.close(fd)
    with closing(StopSignal(fd)) as stop:
        assert stop.wait(0.001) is False


@pytest.mark.parametrize("hz", ["0.05", "1", "20"])
def test_rates_within_the_bounds_are_taken(hz):
    """Both bounds are allowed."""
    assert parse_config(["--endpoint", "ipc:///x", "--hz", hz]).hz == float(hz)


@pytest.mark.parametrize("hz", ["0", "-1", "0.049", "20.1", "nan", "inf", "fast", ""])
def test_a_bad_rate_ends_with_one_sentence_and_2(hz, capsys):
    """It names the field, the value and what is allowed."""
    assert main(["--endpoint", "ipc:///x", f"--hz={hz}"]) == 2

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("sampler: hz is ")
    assert "must be" in lines[0]


@pytest.mark.parametrize(
    "argv",
    [
        ["--endpoint", ""],
        ["--endpoint", "carrier pigeon"],
        ["--endpoint", "ipc:///x", "--close-timeout-s=-1"],
        ["--endpoint", "ipc:///x", "--close-timeout-s=inf"],
    ],
)
def test_other_bad_values_end_the_same_way(argv, capsys):
    """One sentence, exit code 2, nothing started."""
    assert main(argv) == 2

    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_configuration_is_checked_however_it_is_made():
    """Not only the command line makes one."""
    with pytest.raises(BadConfig, match="hang_restart_s"):
        SamplerConfig(endpoint="ipc:///x", hang_restart_s=0)


def test_the_host_can_be_named_and_is_made_fit_for_a_source():
    """Without a name it is the machine's own."""
    assert SamplerConfig(endpoint="ipc:///x", host="node 1/a").host_name == "node-1-a"
    assert SamplerConfig(endpoint="ipc:///x").host_name != ""


@pytest.fixture
def sampler(tmp_path):
    """A sampler process that has begun to sample, with a pipe on its stdin."""
    command = [
        *(sys.executable, "-m", "telemetry.hardware.sampler", "--close-timeout-s", "0"),
        *("--endpoint", f"ipc://{tmp_path}/nobody.sock", "--host", "node1", "--hz", "20"),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stderr=pipe, text=True) as process:
        assert process.stderr is not None
        while "sampler started: host node1" not in (line := process.stderr.readline()):
            assert line, "the sampler ended before it began"
        yield process
        process.kill()


def test_the_process_ends_when_its_parent_does(sampler):
    """Its stdin ends; a sidecar that was never there does not hold it up."""
    sampler.stdin.close()

    assert sampler.wait(timeout=30) == 0


def test_the_process_ends_on_sigterm(sampler):
    """Orderly, with exit code 0."""
    sampler.send_signal(signal.SIGTERM)

    assert sampler.wait(timeout=30) == 0
