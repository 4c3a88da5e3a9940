"""What the machine of this process is, as far as it says so itself."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prunefuse_ray.storage import Place


def cache() -> Place:
    """Where is kept what was found out about this machine (the XDG base directory specification); not made yet."""
    return Place.at(os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")) / "prunefuse_ray"


def cpu() -> tuple[str, frozenset[str]]:
    """The CPU's name, and its instruction sets as Linux names them; none where it is not Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    return name, frozenset((told.get("flags") or told.get("Features") or "").split())


def cores() -> int:
    """CPU cores that this process may use: those that it may run on, as far as the quota of its container reaches.

    A container that was given `--cpus 2` (Docker) or a limit of CPU (Kubernetes) sees all cores of its machine. As many
    actors and threads would stand in each other's way, each with its own copy of the network in memory.
    """
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([mine, *_quotas()])))


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, as far as the limit of its container reaches."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group, first in _groups("memory"):
        with suppress(OSError, ValueError):  # "max": none
            limits.append(int((group / ("memory.limit_in_bytes" if first else "memory.max")).read_text()))
    return min(limits)


def _quotas() -> Iterator[float]:
    """Cores that each control group around this process may keep busy; none where nothing is limited.

    Version 2 is `cpu.max` ("200000 100000" or "max 100000"), version 1 a file each
    (https://docs.kernel.org/admin-guide/cgroup-v2.html).
    """
    for group, first in _groups("cpu"):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if first else ("cpu.max",)
        with suppress(OSError, ValueError):
            quota, period = " ".join((group / name).read_text() for name in names).split()
            if quota != "max" and int(quota) > 0:
                yield int(quota) / int(period)


def _groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """The folders of the control groups around this process, and whether they are of version 1. In a container the
    group is often the root of what it sees."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = Path(f"/sys/fs/cgroup/{controller}" if controllers else "/sys/fs/cgroup")
            group = root / path.lstrip("/")
            for folder in (group, *(p for p in group.parents if p.is_relative_to(root))):
                yield folder, bool(controllers)
