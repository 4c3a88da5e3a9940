"""What killed drivers leave behind, and what is no leftover."""

import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefuse_ray.data import draw
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run.ledger import Commit, Ledger
from prunefuse_ray.run.leftovers import leftovers, remove_leftovers
from prunefuse_ray.run.opening import open_run
from prunefuse_ray.storage import Place
from tests.support.pools import random_images
from tests.support.runs import carried_out, tiny
from tests.support.sources import write_images


@pytest.fixture(scope="module")
def tiny_images(tmp_path_factory):
    """Image files, so that the run writes an index of them."""
    where = tmp_path_factory.mktemp("images")
    write_images(where / "pool", random_images(60))
    write_images(where / "test", random_images(20, seed=1), first=900)
    return where


def config_of(where, directory):
    return tiny(where, directory, pool={"source": "images"}, selection={"budgets": [10, 18]})


def commit(step, *files):
    return Commit(step=step, files={f: {"size": 1} for f in files}, metrics={}, finished="")


FILES = {
    "config.yaml": False,
    ".config.yaml.4711.tmp": True,
    "rounds/000/.selected.parquet.12.tmp": True,
    "rounds/000/scores/a.parquet": False,
    "rounds/000/scores/b.parquet": True,
    "rounds/000/scores-checkpoint/x": True,
    "rounds/000/training/epoch-0001/state.safetensors": True,
    "rounds/000/notes.txt": False,
    "rounds/000/to_label/labels.csv": False,
    "rounds/001/scores/half.parquet": False,  # its phase goes on with it
    "rounds/001/training/epoch-0001/state.safetensors": False,
    ".mine.tmp": False,
}


def test_what_no_commit_names_and_no_phase_goes_on_with():
    commits = [commit(Step(0, "score"), "rounds/000/scores/a.parquet"), commit(Step(0, "train"))]
    assert leftovers(FILES, commits) == [f for f, left in FILES.items() if left]


def test_a_run_without_commits_has_only_what_was_half_written():
    assert leftovers(FILES, []) == [f for f in FILES if f.endswith(("4711.tmp", "12.tmp"))]


def test_they_are_removed_and_named(tmp_path, caplog):
    ledger = Ledger(Place.at(str(tmp_path)))
    ledger.commit(Step(0, "score"), {"scores/a.parquet": b"1"}, {})
    for name in ("scores/b.parquet", ".x.1.tmp"):
        ledger.place(Step(0, "score"), name).write_bytes(b"2")
    with caplog.at_level(logging.WARNING):
        remove_leftovers(tiny(tmp_path, tmp_path), ledger)
    left = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"a.parquet", "score.json"}
    assert (
        "removed 2 files that a driver left when it was killed: rounds/000/.x.1.tmp, rounds/000/scores/b" in caplog.text
    )


def test_what_a_driver_left_that_was_killed_before_there_was_a_run_is_not_read(local_ray, tiny_images, tmp_path):
    """A half-written part of the index, and parts of a pool that had more files then."""
    config = config_of(tiny_images, tmp_path)
    undisturbed = carried_out(config_of(tiny_images, tmp_path / "undisturbed"), Step(1, "select"))
    index = Place.at(str(tmp_path)) / "tiny" / "pool" / "index"
    stale = (undisturbed.root / "pool" / "index").files()[0]
    (index / ".index-00000-00000.parquet.4711.tmp").write_bytes(b"")
    (index / "index-00009-00000.parquet").write_bytes(Place(undisturbed.root.fs, stale.path).read_bytes())
    ledger = carried_out(config, Step(1, "select"))
    assert ledger.read_pool()["rows"] == 60
    assert [f.base_name for f in index.files()] == [f.base_name for f in (undisturbed.root / "pool" / "index").files()]
    for r in (0, 1):
        roots = (ledger.root.path, undisturbed.root.path)
        chosen = [pq.read_table(f"{root}/rounds/{r:03d}/selected.parquet") for root in roots]
        assert chosen[0].equals(chosen[1])


def test_a_test_set_that_an_attempt_before_the_run_had_drawn_is_not_its_own(local_ray, tiny_pool, tmp_path):
    root = Place.at(str(tmp_path)) / "tiny"
    for name in (draw.IDS_FILE, draw.TWINS_FILE):
        draw.write_ids(pa.array(["s0001"]), root, name)
    context = open_run(tiny(tiny_pool, tmp_path), Ledger(root), 1)
    context.ledger.unlock()
    assert len(context.drawn_test) == 0
    assert context.pool.without is None


def test_phases_without_their_configuration_are_nobodys(local_ray, tiny_pool, tmp_path):
    root = Place.at(str(tmp_path)) / "tiny"
    Ledger(root).commit(Step(-1, "init"), {}, {})
    with pytest.raises(LedgerError, match=r"its config\.yaml is gone"):
        open_run(tiny(tiny_pool, tmp_path, run={"seed": 5}), Ledger(root), 1)


def test_scores_that_a_selection_kept_for_itself_are_removed():
    """A kill between its commit and what comes after it."""
    file = "rounds/001/kept-scores/a.parquet"
    assert leftovers([file], [commit(Step(1, "select"))]) == [file]
    assert leftovers([file], []) == []
