"""What killed drivers leave behind, and what is no leftover."""

import logging

from prunefuse_ray.method.steps import Step
from prunefuse_ray.run.ledger import Commit, Ledger
from prunefuse_ray.run.leftovers import leftovers, remove_leftovers
from prunefuse_ray.storage import Place
from tests.support.runs import tiny


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
