"""The claims of drivers on a run directory, where links decide between them and where nothing does."""

import logging
import subprocess
import sys
import threading
import time

import pytest
from pyarrow._fs import _MockFileSystem

from prunefuse_ray.conditional import Changed
from prunefuse_ray.config.scoring import Scoring
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.distributed.resources import ScoringPlan
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.run import lease
from prunefuse_ray.run.lease import Lease
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.scoring.backend_choice import FILE, choose
from prunefuse_ray.scoring.scorer import ScoringJob
from prunefuse_ray.storage import Place


@pytest.fixture(params=["links", "nothing"])
def root(request, monkeypatch, tmp_path):
    monkeypatch.setattr(lease, "RENEWED_EVERY", 0.1)
    monkeypatch.setattr(lease, "PATIENCE", 1.0)
    monkeypatch.setattr(lease, "SETTLES_IN", 0.3)
    acquire, taken = Lease.acquire, []
    monkeypatch.setattr(Lease, "acquire", lambda mine: (taken.append(mine), acquire(mine))[1])
    yield Place.at(str(tmp_path / "run")) if request.param == "links" else Place(_MockFileSystem(), "bucket/run")
    for mine in taken:
        mine._end.set()  # else it would be renewed for as long as other tests run


def held(root):
    mine = Lease(root)
    mine.acquire()
    return mine


def killed(root):
    mine = held(root)
    mine._end.set()  # what a SIGKILL does to the thread that renews
    mine._thread.join()
    return mine


def test_a_second_driver_is_refused_while_the_first_lives_and_told_who_it_is(root, monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE", 5.0)
    first = held(root)
    with pytest.raises(LedgerError, match=r"another process is driving this run \(process \d+ on .*, since 20"):
        Lease(root).acquire()
    first.check()
    first.release()
    started = time.monotonic()
    held(root)
    assert time.monotonic() - started < 4.0, "a released lease costs nothing"


def test_the_lease_of_a_killed_driver_runs_out_and_the_wait_is_said(root, caplog):
    first = killed(root)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        heir = held(root)
    assert 1.0 <= time.monotonic() - started < 10
    assert any("takes over in" in r.message for r in caplog.records)
    heir.check()
    with pytest.raises(LedgerError):
        first.check()
    first.release()  # must not take away what is no longer its own
    heir.check()
    assert [f.base_name for f in (root / ".drivers").files()] == ["000002.json"]


def test_a_dead_process_of_this_machine_is_not_waited_for(root, monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE", 5.0)
    claim = "import sys; from prunefuse_ray.run.lease import Lease; from prunefuse_ray.storage import Place; "
    claim += "mine = Lease(Place.at(sys.argv[1])); mine.number = 1; sys.stdout.buffer.write(mine._content())"
    dead = subprocess.run([sys.executable, "-c", claim, "x"], capture_output=True, check=True).stdout
    (root / ".drivers/000001.json").write_bytes(dead)
    started = time.monotonic()
    assert held(root).number == 2
    assert time.monotonic() - started < 4.0


def test_a_driver_that_was_taken_over_writes_nothing_more(root):
    first = killed(root)
    first.put(root / "commit.json", b"before")
    heir = held(root)
    with pytest.raises(LedgerError):
        first.put(root / "commit.json", b"after")
    assert (root / "commit.json").read_bytes() == b"before"
    heir.put(root / "commit.json", b"heir")


def test_a_driver_that_was_taken_over_does_not_choose_how_its_heir_scores(root):
    """It began to measure before it was suspended, and ends when the heir has scored a round."""
    first, mine = killed(root), Ledger(root)
    mine._lease = first
    held(root).put(root / FILE, b"heir's")
    here = ScoringPlan(min_actors=1, max_actors=1, cpus=1, gpus=0.0, here=True, alone=True)
    form = ImageForm(height=8, width=8, channels=1)
    job = ScoringJob(strategy="margin", form=form, batch_size=4, features=False, threads=1, gpu=False)
    with pytest.raises(LedgerError, match="another process"):
        choose(root / "not-looked-at", Scoring(), root, job, here, 100, 1.0, mine.write_file)
    assert (root / FILE).read_bytes() == b"heir's"


def test_a_write_that_was_under_way_when_the_lease_was_lost_is_refused(tmp_path, monkeypatch):
    """Stopped between its last look at the claims and the write itself."""
    monkeypatch.setattr(lease, "PATIENCE", 1.0)
    root = Place.at(str(tmp_path))
    first = killed(root)

    def stop_here(check=first.check):
        check()
        held(root).put(root / "commit.json", b"heir")

    monkeypatch.setattr(first, "check", stop_here)
    with pytest.raises(LedgerError, match="another process"):
        first.put(root / "commit.json", b"late")
    assert (root / "commit.json").read_bytes() == b"heir"


def test_of_many_at_once_one_gets_it(root, monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE", 5.0)
    monkeypatch.setattr(lease, "SETTLES_IN", 2.0)
    got, refused = [], []

    def try_it():
        mine = Lease(root)
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


def test_a_damaged_claim_is_taken_over(root):
    (root / ".drivers/000004.json").write_bytes(b"not json")
    mine = held(root)
    assert mine.number == 5
    mine.check()


def test_a_missing_guarantee_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        held(Place(_MockFileSystem(), "bucket/run")).release()
    (said,) = [r.message for r in caplog.records]
    assert said.startswith("run.directory: 'bucket/run' has no conditional writes (mock storage): two drivers")


def test_a_renewal_that_comes_late_brings_no_lease_back(root):
    first = killed(root)
    held(root).release()
    third = held(root)
    first._write()  # was under way when it was stopped
    with pytest.raises(LedgerError):
        first.check()
    third.check()


def test_a_driver_that_ends_while_the_next_one_waits_makes_room(root):
    first = killed(root)
    threading.Timer(0.4, first._write, kwargs={"released": True}).start()
    assert held(root).number == 2


def test_a_renewal_under_way_is_no_loss(root, monkeypatch):
    """Azure's files are empty while they are replaced."""
    mine, write, emptied = held(root), Place.write_bytes, threading.Event()

    def slowly(place, data, **more):
        write(place, b"", **more)
        emptied.set()
        time.sleep(0.3)
        write(place, data, **more)

    monkeypatch.setattr(Place, "write_bytes", slowly)
    assert emptied.wait(5)
    mine.check()


def test_a_start_costs_the_same_however_many_came_before(root, monkeypatch):
    (root / ".drivers" / "005000.json").write_bytes(b'{"released": true}')
    deleted, delete = [], Place.delete
    monkeypatch.setattr(Place, "delete", lambda place: (deleted.append(place.name), delete(place)))
    assert held(root).number == 5001
    assert deleted == ["005000.json"]


class Obeys:
    """A store that knows some of the conditions: that a file is new, or that it is as it was."""

    def __init__(self, *known):
        self.known, self.files, self.writes = known, {}, 0

    def version(self, place):
        return self.files.get(place.path)

    def put(self, place, data, expected):
        condition = "new" if expected is None else "same"
        if condition in self.known and self.version(place) != expected:
            raise Changed(place.path)
        self.writes += 1
        self.files[place.path] = str(self.writes)
        place.write_bytes(data)


@pytest.mark.parametrize("known", [(), ("new",), ("same",), ("new", "same")], ids=str)
def test_a_store_that_ignores_a_condition_is_noticed(root, known, monkeypatch, caplog):
    monkeypatch.setattr(lease, "conditional", lambda place: Obeys(*known))
    mine = held(root)
    mine.check()
    assert ("the store ignores the condition" in caplog.text) == (len(known) < 2)


def test_a_claim_that_an_heir_has_removed_is_no_claim(root, monkeypatch):
    """This process slept between its two writes."""
    store = Obeys("new", "same")
    monkeypatch.setattr(store, "version", lambda place: None)
    monkeypatch.setattr(lease, "conditional", lambda place: store)
    with pytest.raises(LedgerError, match="another process is driving this run"):
        Lease(root).acquire()


def test_a_lease_that_was_not_taken_after_all_is_renewed_by_nobody(root, monkeypatch):
    def away(_):
        raise OSError("object store: away")

    (root / ".drivers/000001.json").write_bytes(b'{"released": true}')
    monkeypatch.setattr(Place, "delete", away)
    mine = Lease(root)
    with pytest.raises(OSError, match="away"):
        mine.acquire()
    assert mine._thread is None
