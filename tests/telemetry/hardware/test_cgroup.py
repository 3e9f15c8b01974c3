"""Control groups: limits and usage, on trees as kernels lay them out."""

from __future__ import annotations

import pytest

from telemetry.hardware.cgroup import CgroupProbe, parse_membership

V1_UNLIMITED = "9223372036854771712\n"


@pytest.fixture
def probe(clock, tmp_path):
    return CgroupProbe(clock, tmp_path / "cgroup", tmp_path / "membership")


@pytest.fixture
def write(tmp_path):
    """Write files of a tree: a path under the tree's root -> its text."""

    def write_files(files, membership=None):
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        if membership is not None:
            (tmp_path / "membership").write_text(membership)

    return write_files


def v2_group(path, *, memory_max="max", cpu_max="max 100000", usage_usec=0, throttled_usec=0):
    prefix = f"{path}/" if path else ""
    return {
        f"{prefix}memory.max": f"{memory_max}\n",
        f"{prefix}memory.current": "1000000\n",
        f"{prefix}memory.stat": "anon 600000\ninactive_file 300000\nfile 400000\n",
        f"{prefix}cpu.max": f"{cpu_max}\n",
        f"{prefix}cpu.stat": f"usage_usec {usage_usec}\nthrottled_usec {throttled_usec}\n",
    }


V2_CONTAINER = {"cgroup.controllers": "cpu memory\n"}


def test_a_container_of_version_2_tells_its_limits_and_what_is_used(write, probe, clock):
    """Used memory leaves out cache that can go at once, as docker stats does."""
    write(
        {**V2_CONTAINER, **v2_group("", memory_max="2000000", cpu_max="250000 100000")},
        membership="0::/\n",
    )

    assert probe.read() == {
        "cgroup/memory_limit_bytes": 2000000,
        "cgroup/memory_used_bytes": 700000,
        "cgroup/cpu_limit_cores": 2.5,
    }

    clock.advance(2)
    write(
        v2_group(
            "",
            memory_max="2000000",
            cpu_max="250000 100000",
            usage_usec=3_000_000,
            throttled_usec=500_000,
        )
    )
    values = probe.read()
    assert values["cgroup/cpu_used_cores"] == pytest.approx(1.5)
    assert values["cgroup/cpu_throttled_seconds_per_second"] == pytest.approx(0.25)


USAGE = {"cgroup/memory_used_bytes": 700000}


def test_without_limits_usage_is_that_of_the_innermost_group_that_counts_it(write, probe):
    """A group whose controllers are not enabled counts nothing itself."""
    write({**V2_CONTAINER, **v2_group("a"), "a/b/cgroup.events": "populated 1\n"})
    write({}, membership="0::/a/b\n")

    assert probe.read() == USAGE


def test_one_limit_does_not_bring_the_other(write, probe):
    """Usage is there for both."""
    write({**V2_CONTAINER, **v2_group("a", memory_max="4096")}, membership="0::/a\n")

    assert probe.read() == USAGE | {"cgroup/memory_limit_bytes": 4096}


def test_the_tightest_limit_on_the_way_up_is_the_one_that_counts(write, probe):
    """A pod may be held tighter than the container in it, and its usage is what matters."""
    write(
        {
            **V2_CONTAINER,
            **v2_group("pod", memory_max="5000000"),
            **v2_group("pod/box", memory_max="9000000"),
            "pod/memory.current": "4300000\n",
        },
        membership="0::/pod/box\n",
    )

    assert probe.read() == {
        "cgroup/memory_limit_bytes": 5000000,
        "cgroup/memory_used_bytes": 4000000,
    }


@pytest.mark.parametrize("path", ["/docker/0123abcd", "/../other"])
def test_a_path_of_the_host_that_is_not_here_means_the_mount_itself(write, probe, path):
    """A container may see the host's path of its group, but nothing outside its mount is ours."""
    write({"../other/memory.max": "16\n"})
    write({**V2_CONTAINER, **v2_group("", memory_max="4096")}, membership=f"0::{path}\n")

    assert probe.read()["cgroup/memory_limit_bytes"] == 4096


def test_version_1_tells_the_same(write, probe, clock):
    """Its controllers have trees of their own, and its times are nanoseconds."""

    def tree(used_ns, throttled_ns):
        return {
            "memory/box/memory.limit_in_bytes": "2000000\n",
            "memory/box/memory.usage_in_bytes": "1000000\n",
            "memory/box/memory.stat": "cache 5\ntotal_inactive_file 300000\n",
            "memory/memory.limit_in_bytes": V1_UNLIMITED,
            "cpu/box/cpu.cfs_quota_us": "150000\n",
            "cpu/box/cpu.cfs_period_us": "100000\n",
            "cpu/box/cpu.stat": f"nr_periods 3\nthrottled_time {throttled_ns}\n",
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpuacct/box/cpuacct.usage": f"{used_ns}\n",
        }

    membership = "3:memory:/box\n2:cpuacct:/box\n1:cpu:/box\n0::/\n"
    write(tree(0, 0), membership)
    assert probe.read() == {
        "cgroup/memory_limit_bytes": 2000000,
        "cgroup/memory_used_bytes": 700000,
        "cgroup/cpu_limit_cores": 1.5,
    }

    clock.advance(2)
    write(tree(2_000_000_000, 1_000_000_000))
    values = probe.read()
    assert values["cgroup/cpu_used_cores"] == pytest.approx(1.0)
    assert values["cgroup/cpu_throttled_seconds_per_second"] == pytest.approx(0.5)


def test_version_1_with_both_cpu_controllers_in_one_mount_is_found(write, probe, clock):
    """Most distributions mounted them together as cpu,cpuacct."""
    files = {
        "cpu,cpuacct/box/cpu.cfs_quota_us": "200000\n",
        "cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/box/cpu.stat": "throttled_time 0\n",
        "cpu,cpuacct/box/cpuacct.usage": "0\n",
    }
    write(files, membership="2:cpu,cpuacct:/box\n")
    probe.read()
    clock.advance(1)
    write({"cpu,cpuacct/box/cpuacct.usage": "500000000\n"})

    values = probe.read()

    assert values["cgroup/cpu_limit_cores"] == 2.0
    assert values["cgroup/cpu_used_cores"] == pytest.approx(0.5)


def test_version_1_without_limits_says_nothing(write, probe):
    """It writes `no limit` as a very large number, or as -1."""
    write(
        {
            "memory/memory.limit_in_bytes": V1_UNLIMITED,
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
        },
        membership="3:memory:/\n1:cpu:/\n",
    )

    assert probe.read() == {}


def test_controllers_that_moved_to_version_2_are_found_under_unified(write, probe):
    """A hybrid machine mounts version 2 beside the trees of version 1."""
    write(
        {**v2_group("unified/box", cpu_max="100000 100000"), "memory/x": ""},
        membership="3:memory:/box\n0::/box\n",
    )

    assert probe.read()["cgroup/cpu_limit_cores"] == 1.0


def test_a_limit_that_moves_to_another_group_starts_its_rates_anew(write, probe, clock):
    """Counters of two groups have nothing to do with each other."""
    box = v2_group("pod/box", cpu_max="200000 100000", usage_usec=10)
    write({**V2_CONTAINER, **v2_group("pod", usage_usec=10**9), **box}, membership="0::/pod/box\n")
    probe.read()
    clock.advance(1)
    write({"pod/cpu.max": "100000 100000\n"})

    assert probe.read() == USAGE | {"cgroup/cpu_limit_cores": 1.0}


def test_usage_that_cannot_be_read_is_left_out(write, probe, tmp_path):
    """The limit is still known."""
    write({**V2_CONTAINER, **v2_group("a", memory_max="4096")}, membership="0::/a\n")
    (tmp_path / "cgroup/a/memory.current").unlink()

    assert probe.read() == {"cgroup/memory_limit_bytes": 4096}


@pytest.mark.parametrize("text", ["", "garbage", "max", "100000", "1 0", "max 100000", "-1 5"])
def test_a_cpu_limit_that_makes_no_sense_is_none(write, probe, text):
    """Whatever the file holds, it is a limit or nothing."""
    write({**V2_CONTAINER, **v2_group("a"), "a/cpu.max": text}, membership="0::/a\n")

    assert probe.read() == USAGE


def test_a_system_without_control_groups_says_nothing(probe):
    """No /proc/self/cgroup, no tree."""
    assert probe.read() == {}


def test_membership_keeps_colons_of_a_path():
    """Only the first two colons of a line separate."""
    assert parse_membership("4:cpu,cpuacct:/a:b\n0::/c\njunk\n") == {
        "cpu": "/a:b",
        "cpuacct": "/a:b",
        "": "/c",
    }
