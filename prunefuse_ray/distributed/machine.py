"""What the machine of this process is, as far as it says so itself."""

from __future__ import annotations

import os
import platform
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
