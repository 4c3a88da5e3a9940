"""The lease of a run directory on an object store; here on Arrow's filesystem in memory."""

import threading
import time

import pytest
from pyarrow._fs import _MockFileSystem

from prunefuse_ray.errors import LedgerError
from prunefuse_ray.run import lease
from prunefuse_ray.run.lease import Lease
from prunefuse_ray.storage import Place


@pytest.fixture
def place(monkeypatch):
    monkeypatch.setattr(lease, "RENEWED_EVERY", 0.1)
    monkeypatch.setattr(lease, "PATIENCE", 1.0)
    monkeypatch.setattr(lease, "SETTLES_IN", 0.3)
    acquire, taken = Lease.acquire, []
    monkeypatch.setattr(Lease, "acquire", lambda mine: (taken.append(mine), acquire(mine))[1])
    yield Place(_MockFileSystem(), "bucket/run") / ".lease"
    for mine in taken:
        mine._end.set()  # else it would be renewed for as long as other tests run


def test_a_second_driver_is_refused_while_the_first_lives(place):
    first = Lease(place)
    first.acquire()
    with pytest.raises(LedgerError, match="another process is driving this run"):
        Lease(place).acquire()
    first.check()
    first.release()
    assert not place.exists()
    Lease(place).acquire()


def test_the_lease_of_a_killed_driver_runs_out(place):
    killed = Lease(place)
    killed.acquire()
    killed._end.set()  # what a SIGKILL does to the thread that renews
    killed._thread.join()
    started = time.monotonic()
    heir = Lease(place)
    heir.acquire()
    assert 1.0 <= time.monotonic() - started < 10
    heir.check()
    with pytest.raises(LedgerError):
        killed.check()
    killed.release()  # must not take away what is no longer its own
    heir.check()


def test_a_driver_that_lost_its_lease_stops_before_it_records_anything(place):
    first = Lease(place)
    first.acquire()
    Lease(place)._write()  # another that began at the same moment, and wrote later
    with pytest.raises(LedgerError):
        first.check()
    time.sleep(0.5)
    with pytest.raises(LedgerError):
        first.check()  # nor does the thread take it back


def test_of_many_at_once_one_gets_it(place):
    got, refused = [], []

    def try_it():
        mine = Lease(place)
        try:
            mine.acquire()
            got.append(mine)
        except LedgerError:
            refused.append(mine)

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert len(refused) == 7


def test_a_damaged_lease_is_taken_over(place):
    place.write_bytes(b"not json")
    mine = Lease(place)
    mine.acquire()
    mine.check()
