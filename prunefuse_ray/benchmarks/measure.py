"""What the benchmarks share: things timed side by side, memory, a table, and one line of JSON at the end."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from prunefuse_ray.distributed.machine import cores, cpu

assert ray  # its import puts psutil, which comes with it, on the path
import psutil  # noqa: E402

MIB = 2**20
SAMPLING_SECONDS = 0.02


def side_by_side(things: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each thing, `repeats` times in turn, so that what else the machine does meets all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(repeats):
        for name, thing in things.items():
            started = time.perf_counter()
            thing()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def process_apart() -> ProcessPoolExecutor:
    """One process, started afresh, for what uses torch's DataLoader with workers. In this one the handler of SIGCHLD
    that it installs would stay; processes that had it ended by a segmentation fault now and then, while they waited for
    another process (Intel CPU with AMX, torch 2.14)."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def ratio(seconds: Mapping[str, Sequence[float]], over: str, under: str) -> float:
    """Median time of `over` divided by that of `under`."""
    return statistics.median(seconds[over]) / statistics.median(seconds[under])


class Peak:
    """The largest resident memory of this process while measured, beyond that at the start."""

    mb = 0.0


@contextmanager
def memory_growth() -> Iterator[Peak]:
    """Measures how far this process's resident memory rises above what it is now, in MiB, by sampling it."""
    process, peak, over = psutil.Process(), Peak(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not over.wait(SAMPLING_SECONDS):
            peak.mb = max(peak.mb, (process.memory_info().rss - before) / MIB)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def machine() -> str:
    """The machine in words."""
    return f"{cores()} cores of {cpu()[0]}, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def report(title: str, lines: Sequence[tuple[str, str, str]], figures: Mapping[str, Any]) -> None:
    """Print a table of (what, figure, bar), then the figures as one line of JSON."""
    table = Table(title=title, title_justify="left")
    for heading in ("", "measured", "bar"):
        table.add_column(heading, justify="left" if not heading else "right")
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    print(json.dumps({"machine": machine(), **figures}, sort_keys=True), flush=True)


def spread_of(seconds: Sequence[float]) -> str:
    """Median (smallest - largest) of seconds."""
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} - {max(seconds):.2f})"
