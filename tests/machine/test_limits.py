"""Limits of a container, from trees of files as Linux shows them; the machine's own figures against the system's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinydiff.machine import limits, threads


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A function that lays out /sys/fs/cgroup, /proc/self/cgroup and /proc/meminfo as the machine's."""
    monkeypatch.setattr(limits, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def lay_out(groups, **files):
        everything = {"proc/self/cgroup": groups, "proc/meminfo": "MemTotal: 8000 kB\nMemAvailable:    6000 kB\n"}
        for name, text in {**everything, **{f"cgroup/{name}": text for name, text in files.items()}}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return lay_out


PROCESSORS = {
    "no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
    "one and a half": ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
    "two": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
    "a tenth": ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
    "more than there are": ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
    "the parent's is less": ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
    "the path is the host's": ("0::/docker/f00\n", {"cpu.max": "150000 100000\n"}, 2),
    "version 1": (
        "4:cpu,cpuacct:/\n3:memory:/\n",
        {"cpu,cpuacct/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
        3,
    ),
    "version 1 by the controller's name": (
        "4:cpuacct,cpu:/docker/f00\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "50000\n"},
        1,
    ),
    "version 1 without limit": (
        "4:cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        8,
    ),
    "rubbish": ("0::/\n", {"cpu.max": "many\n"}, 8),
    "no control groups": ("", {}, 8),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_threads_follow_a_containers_share_of_the_processors(case, container, monkeypatch):
    groups, files, expected = PROCESSORS[case]
    container(groups, **files)
    assert threads.available() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # a wish is a wish
    assert threads.available() == 5


@pytest.mark.parametrize("wish, expected", [("4,2", 4), (" 3 ", 3), ("0", 8), ("", 8), ("all", 8), ("-2", 8)])
def test_the_wish_in_the_environment(wish, expected, container, monkeypatch):
    container("")
    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    assert threads.available() == expected


MEMORY = {
    "the machine's": ("0::/\n", {"memory.max": "max\n", "memory.current": "1000\n"}, (8000 * 1024, 6000 * 1024)),
    "version 2": (
        "0::/\n",
        {"memory.max": "4096000\n", "memory.current": "1024000\n", "memory.stat": "anon 5\ninactive_file 24000\n"},
        (4096000, 3096000),
    ),
    "version 1": (
        "4:memory:/x\n",
        {"memory/memory.limit_in_bytes": "2048000\n", "memory/memory.usage_in_bytes": "1024000\n"},
        (2048000, 1024000),
    ),
    "version 1 without limit": (
        "4:memory:/\n",
        {"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": "1024000\n"},
        (8000 * 1024, 6000 * 1024),
    ),
}


@pytest.mark.parametrize("case", MEMORY)
def test_memory_within_a_containers_limit(case, container):
    groups, files, expected = MEMORY[case]
    container(groups, **files)
    assert limits.memory() == expected


def test_a_system_that_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "_GROUPS", tmp_path)
    monkeypatch.setattr(limits, "_PROC", tmp_path)
    assert limits.memory() == (None, None) and limits.resident() is None and limits.cpu_quota() is None
    assert limits.processors() >= 1 and limits.processor_name()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, which only Linux has")
def test_resident_memory_grows_with_what_is_held():
    script = """if True:
        from tinydiff.machine import limits
        before = limits.resident()
        held = bytearray(b"x") * (64 << 20)
        after = limits.resident()
        assert 50 << 20 < after - before < 90 << 20, after - before
        assert limits.peak_resident() >= 0.98 * after  # the system counts in batches
    """  # in a process of its own: one that has run a while may have freed as much before
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(limits.__file__).parents[2])
