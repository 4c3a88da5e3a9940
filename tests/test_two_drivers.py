"""Two drivers of one run directory, as processes and by a real clock: one runs, and the other says so."""

import os
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prunefuse_ray.run.lease import PATIENCE
from prunefuse_ray.run.processes import descendants
from prunefuse_ray.storage import Place
from tests.support.disturbed import DIGITS, at, finish, selected, start
from tests.support.s3 import runs_in

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(params=["folder", "s3"])
def runs(request, tmp_path):
    with runs_in(request.param, tmp_path) as where:
        yield where


def driver_of(process) -> int:
    (pid,) = [p.pid for p in descendants(process.pid) if p.parent == process.pid]
    return pid


def asleep(runs: str, said):
    """A driver that was stopped in mid-round, and how to wake it up."""
    first, root = start(DIGITS, said, runs), Place.at(runs) / "digits"
    until = time.monotonic() + 180
    while at(root) not in ("train", "score", "select") and time.monotonic() < until:
        time.sleep(0.05)
    assert at(root) in ("train", "score", "select"), (Path(said) / "errors").read_text()
    pid = driver_of(first)
    os.kill(pid, signal.SIGSTOP)
    return first, root, lambda: os.kill(pid, signal.SIGCONT)


def test_a_driver_that_slept_while_another_took_over_records_nothing_more(tmp_path):
    """A machine of a cluster that was suspended beyond its lease, and wakes up when another has finished its run."""
    alone = finish(start(DIGITS, tmp_path / "alone"), tmp_path / "alone", time.monotonic())
    assert alone.code == 0, alone.errors
    with runs_in("s3", tmp_path) as runs:
        first, root, wake = asleep(runs, tmp_path / "first")
        try:
            began = time.monotonic()
            second = finish(start(DIGITS, tmp_path / "second", runs), tmp_path / "second", began)
            assert second.code == 0, second.errors
            assert second.seconds > PATIENCE, "the lease of a process that may live is not taken at once"
            whole = {f.path: Place(root.fs, f.path).read_bytes() for f in root.files(recursive=True)}
        finally:
            wake()
        woken = finish(first, tmp_path / "first", time.monotonic(), timeout=180)
        assert woken.code == 2, woken.errors
        assert "Traceback" not in woken.errors
        assert "another process is driving this run" in woken.errors
        after = {f.path: Place(root.fs, f.path).read_bytes() for f in root.files(recursive=True)}
        assert after == whole, "it also leaves nothing of its own"
        chosen = pq.read_table((root / "selected.parquet").path, filesystem=root.fs).to_pylist()
    assert chosen == selected(tmp_path / "alone")


def test_a_driver_that_sleeps_on_this_machine_keeps_its_run(tmp_path):
    """A process that is stopped holds its lock: the second is refused and says who it is, and the first goes on."""
    runs = str(tmp_path / "runs")
    first, _, wake = asleep(runs, tmp_path / "first")
    try:
        second = finish(start(DIGITS, tmp_path / "second", runs), tmp_path / "second", time.monotonic())
    finally:
        wake()
    assert second.code == 2, second.errors
    assert "another process is driving this run (process" in second.errors
    woken = finish(first, tmp_path / "first", time.monotonic())
    assert woken.code == 0, woken.errors


def test_of_two_that_start_at_the_same_instant_one_runs(runs, tmp_path):
    processes = [start(DIGITS, tmp_path / name, runs) for name in ("one", "two")]
    ended = [
        finish(p, tmp_path / n, time.monotonic()) for p, n in zip(processes, ("one", "two"), strict=True)
    ]  # fmt: skip
    assert sorted(e.code for e in ended) == [0, 2], [e.errors for e in ended]
    (refused,) = [e for e in ended if e.code == 2]
    assert "since" in refused.errors
    assert "Traceback" not in refused.errors
