"""What this process may use of the machine it runs on: processors, memory, and what they are called."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def processors() -> int:
    """Processors that this process may keep busy: those it may run on, or fewer where a container has a share of the
    time only. A share of 1.5 processors is 2."""
    here = len(processor_numbers())
    quota = cpu_quota()
    return here if quota is None else max(1, min(here, math.ceil(quota)))


def processor_numbers() -> set[int]:
    """Those that this process may run on; all, where the system does not tell."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cpu_quota() -> float | None:
    """The processor time per second that Linux's control groups leave this process; None: they set no limit."""
    shares = []
    for folder in _folders("cpu"):
        with suppress(OSError, ValueError):  # version 2: "max 100000" or "150000 100000"
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                shares.append(int(quota) / int(period))
        with suppress(OSError, ValueError):  # version 1: a quota of -1 is none
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:
                shares.append(quota_us / int((folder / "cpu.cfs_period_us").read_text()))
    return min((share for share in shares if share > 0), default=None)


def memory() -> tuple[int | None, int | None]:
    """(all, free): the bytes of memory that this process could ever have, and those that it could have now, by the
    machine and its control groups; None where the system does not tell."""
    total, free = _meminfo("MemTotal"), _meminfo("MemAvailable")
    totals, frees = [total] if total else [], [free] if free else []
    for folder in _folders("memory"):
        for limit_name, used_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is not None and used is not None and (total is None or limit < total):
                totals.append(limit)
                frees.append(max(limit - used + _field(folder / "memory.stat", cache_name), 0))
    return min(totals, default=None), min(frees, default=None)


def resident() -> int | None:
    """Bytes of memory that this process holds now."""
    with suppress(OSError, ValueError, IndexError):
        return int((_PROC / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def peak_resident() -> int | None:
    """The most bytes of memory that this process has held so far."""
    with suppress(OSError, ValueError, IndexError):
        for line in (_PROC / "self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):  # the system's other figure includes the program that started this one
                return int(line.split()[1]) * 1024
    with suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None


def addresses_are_free() -> bool:
    """Whether a process may have far more addresses than memory: no limit is set, and the system lends without counting."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        limits = [resource.getrlimit(which)[0] for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
        counting = (_PROC / "sys/vm/overcommit_memory").read_text().strip() == "2"
        return not counting and all(limit == resource.RLIM_INFINITY for limit in limits)
    return False


def processor_name() -> str:
    """The processor as its maker calls it, as far as the system tells."""
    with suppress(OSError):
        for line in (_PROC / "cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def blas() -> str:
    """The linear algebra libraries that are loaded, with version and the processor they are written for."""
    from threadpoolctl import threadpool_info

    return ", ".join(
        sorted({f"{p['internal_api']} {p['version']} {p.get('architecture', '')}".strip()
                for p in threadpool_info() if p["user_api"] == "blas"})
    )  # fmt: skip


def _folders(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups for a controller, of both versions, from its own up to the root.

    In a container the path may be the host's and not exist here; then the root is the container's own group.
    """
    try:
        lines = (_PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        roots = [_GROUPS / names, _GROUPS / controller] if names else [_GROUPS, _GROUPS / "unified"]
        for root in dict.fromkeys(roots):
            folder = root / path.strip("/")
            yield folder
            while folder != root and folder != folder.parent:
                folder = folder.parent
                yield folder


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):  # "max" is no number and no limit
        return int(path.read_text())
    return None


def _field(path: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            if line.split()[:1] == [name]:
                return int(line.split()[1])
    return 0


def _meminfo(name: str) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in (_PROC / "meminfo").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return None
