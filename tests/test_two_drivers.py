"""Two drivers of one run directory, as processes and by a real clock: one runs, and the other says so."""

import os
import signal
import time

import pytest

from prunefuse_ray.run.lease import PATIENCE
from prunefuse_ray.run.processes import descendants
from tests.support.disturbed import DIGITS, finish, phase, selected, start
from tests.support.s3 import s3_server

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(params=["folder", "s3"])
def runs(request, tmp_path):
    """Where the runs go, on the command line."""
    if request.param == "folder":
        yield str(tmp_path / "runs")
        return
    with s3_server() as server:
        yield f"s3://samples/runs{server.query}"


def driver_of(process) -> int:
    (pid,) = [p.pid for p in descendants(process.pid) if p.parent == process.pid]
    return pid


def test_a_driver_that_slept_while_another_took_over_records_nothing_more(tmp_path):
    """A laptop's lid, or SIGSTOP: the first wakes up when the second has finished its run."""
    alone = finish(start(DIGITS, tmp_path / "alone"), tmp_path / "alone", time.monotonic())
    assert alone.code == 0, alone.errors
    runs = tmp_path / "runs"
    first = start(DIGITS, tmp_path / "first", str(runs))
    until = time.monotonic() + 120
    while phase(runs) not in ("train", "score", "select") and time.monotonic() < until:
        time.sleep(0.05)
    stopped = driver_of(first)
    os.kill(stopped, signal.SIGSTOP)
    try:
        began = time.monotonic()
        second = finish(start(DIGITS, tmp_path / "second", str(runs)), tmp_path / "second", began)
        assert second.code == 0, second.errors
        assert second.seconds > PATIENCE, "the lease of a process that lives is not taken at once"
        whole = {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()}
    finally:
        os.kill(stopped, signal.SIGCONT)
    woken = finish(first, tmp_path / "first", time.monotonic(), timeout=120)
    assert woken.code == 2, woken.errors
    assert "Traceback" not in woken.errors
    assert "another process is driving this run" in woken.errors
    assert {p: p.read_bytes() for p in runs.rglob("*") if p.is_file() and p in whole} == whole
    assert selected(runs) == selected(tmp_path / "alone")


def test_of_two_that_start_at_the_same_instant_one_runs(runs, tmp_path):
    processes = [start(DIGITS, tmp_path / name, runs) for name in ("one", "two")]
    ended = [
        finish(p, tmp_path / n, time.monotonic()) for p, n in zip(processes, ("one", "two"), strict=True)
    ]  # fmt: skip
    assert sorted(e.code for e in ended) == [0, 2], [e.errors for e in ended]
    (refused,) = [e for e in ended if e.code == 2]
    assert "since" in refused.errors
    assert "Traceback" not in refused.errors
