"""The ledger: what has no commit does not exist, and what is read back is what was written."""

import errno
import fcntl
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from prunefuse_ray.config.files import config_from_tree, to_tree
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.method.steps import Step, steps
from prunefuse_ray.run import lease
from prunefuse_ray.run import ledger as module
from prunefuse_ray.run.lease import Lease
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.leftovers import remove_leftovers
from prunefuse_ray.run.opening import check_files
from prunefuse_ray.run.phases import score
from prunefuse_ray.schemas import REJECTED, labels_schema
from prunefuse_ray.storage import Place

STEP = Step(3, "select")


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(Place.at(str(tmp_path / "run")))
    ledger.create(to_tree(config_from_tree({"run": {"seed": 0, "name": "a"}})), {"rows": 5})
    return ledger


def test_config_is_the_last_file_of_a_new_run(tmp_path, monkeypatch):
    ledger = Ledger(Place.at(str(tmp_path / "run")))
    order = []
    write = Place.write_bytes
    monkeypatch.setattr(Place, "write_bytes", lambda place, data: (order.append(place.name), write(place, data))[1])
    ledger.create({}, {})
    assert order[-1] == "config.yaml"


def test_the_commit_is_written_after_everything_it_names(ledger, monkeypatch):
    order = []
    write = Place.write_bytes
    monkeypatch.setattr(Place, "write_bytes", lambda place, data: (order.append(place.name), write(place, data))[1])
    ledger.commit(STEP, {"a.json": {"x": 1}, "b": b"1"}, {})
    assert order == ["a.json", "b", "select.json"]


def test_outputs_without_a_commit_do_not_exist(ledger):
    ledger.place(STEP, "a").write_bytes(b"left over")
    assert ledger.committed(STEP) is None
    with pytest.raises(LedgerError, match="round 3, select has not been committed"):
        ledger.read_bytes(STEP, "a")


def test_a_commit_is_read_back_by_another_process(ledger):
    ledger.commit(STEP, {"a": b"data"}, {"seconds": 1.5})
    again = Ledger(ledger.root)
    commit = again.committed(STEP)
    assert commit is not None
    assert commit.metrics == {"seconds": 1.5}
    assert again.read_bytes(STEP, "a") == b"data"


def test_files_that_no_commit_names_are_not_read(ledger):
    place = ledger.place(STEP, "scores") / "1.parquet"
    place.write_bytes(b"mine")
    ledger.commit(STEP, {}, {}, written=(ledger.place(STEP, "scores")).files())
    (ledger.place(STEP, "scores") / "2.parquet").write_bytes(b"a late writer's")
    paths, sizes = ledger.files(STEP, "scores")
    assert (paths, sizes) == ([place.path], [4])


@pytest.mark.parametrize("damage", [b"dat", b"datA", None])
def test_a_damaged_or_missing_file_is_said(ledger, damage):
    ledger.commit(STEP, {"a": b"data"}, {})
    place = ledger.place(STEP, "a")
    place.delete()
    if damage is not None:
        place.write_bytes(damage)
    with pytest.raises(LedgerError, match=r"'rounds/003/a' (of round 3, select is gone|is not what round 3, select)"):
        Ledger(ledger.root).read_bytes(STEP, "a")


def test_a_damaged_commit_is_said(ledger):
    ledger.commit(STEP, {}, {})
    place = ledger.root / "rounds/003/commits/select.json"
    for content in (b"{", json.dumps({"files": {}}).encode()):
        place.write_bytes(content)
        with pytest.raises(LedgerError, match=r"select\.json"):
            Ledger(ledger.root).committed(STEP)


def test_tables_of_another_schema_are_refused(ledger):
    ledger.commit(STEP, {"labels.parquet": pa.table({"id": ["a"], "label": [1.5], "source": ["x"]})}, {})
    with pytest.raises(LedgerError, match=r"labels\.parquet"):
        ledger.read_table(STEP, "labels.parquet", labels_schema("string"))


def test_labels_gather_over_rounds(ledger):
    for r, ids in enumerate((["a", "b"], ["c"])):
        table = pa.table({"id": ids, "label": [1] * len(ids), "source": ["oracle"] * len(ids)}, labels_schema("string"))
        ledger.commit(Step(r, "label"), {"labels.parquet": table}, {})
    steps = [Step(r, "label") for r in range(3)]
    assert ledger.labels(steps, "string")["id"].to_pylist() == ["a", "b", "c"]
    assert ledger.labels(steps[:1], "string")["id"].to_pylist() == ["a", "b"]


def test_fields_of_execution_may_change_and_others_may_not(ledger):
    ledger.check_config(config_from_tree({"run": {"seed": 0, "name": "moved"}, "workers": {"cpus": 8}}))
    with pytest.raises(LedgerError, match=r"run\.seed: 0 -> 1"):
        ledger.check_config(config_from_tree({"run": {"seed": 1, "name": "a"}}))


def test_budgets_of_rounds_that_have_not_begun_may_change(tmp_path):
    ledger = Ledger(Place.at(str(tmp_path / "run")))

    def margin(budgets):
        return config_from_tree({"selection": {"budgets": budgets, "strategy": "margin"}})

    ledger.create(to_tree(margin([10, 20, 30])), {})
    ledger.commit(Step(0, "select"), {}, {})
    ledger.commit(Step(1, "select"), {}, {})
    lower = margin([10, 20, 27])
    ledger.check_config(lower)
    ledger.take_budgets(lower)
    assert ledger.read_config() == lower
    ledger.commit(Step(-1, "report"), {}, {})
    more = margin([10, 20, 27, 30])
    ledger.check_config(more)
    assert ledger.budgets_change(more)
    ledger.take_budgets(more)
    assert ledger.committed(Step(-1, "report")) is None
    fewer = margin([10, 20])
    ledger.check_config(fewer)
    ledger.take_budgets(fewer)
    assert ledger.read_config() == fewer
    for budgets in ([10, 21, 27, 30], [10], [10, 21]):
        with pytest.raises(LedgerError, match=r"selection\.budgets"):
            ledger.check_config(margin(budgets))


CHANGES = {
    "commit": lambda ledger: ledger.commit(STEP, {"b": b"1"}, {}),
    "uncommit": lambda ledger: ledger.uncommit(Step(0, "score")),
    "committed": lambda ledger: ledger.committed(Step(0, "score")),
    "take_budgets": lambda ledger: ledger.take_budgets(config_from_tree({"selection": {"budgets": [10, 20]}})),
    "remove_leftovers": lambda ledger: remove_leftovers(config_from_tree({}), ledger),
    "clear": lambda ledger: ledger.clear(Step(0, "score"), "scores"),
    "record_rejected": lambda ledger: ledger.record_rejected(pa.table({"id": ["a"], "reason": ["b"]}, REJECTED)),
    "write_json": lambda ledger: ledger.write_json("rounds/000/metrics.json", {"round": 1}),
    "write_text": lambda ledger: ledger.write_text("report.html", "late"),
    "write_file": lambda ledger: ledger.write_file("tensorboard/events", b"late"),
    "append_line": lambda ledger: ledger.append_line("events.jsonl", "late"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_driver_that_lost_its_lease_changes_nothing(change, tmp_path, monkeypatch):
    """Suspended for long, it wakes beside another one, which has committed what it takes for its own leftovers."""
    monkeypatch.setattr(Place, "local", False)
    monkeypatch.setattr(lease, "SETTLES_IN", 0.05)
    first, second = (Ledger(Place.at(str(tmp_path / "run"))) for _ in range(2))
    first.create(to_tree(config_from_tree({})), {})
    first.lock()
    first.append_line("events.jsonl", "began")
    taken = Lease(first.root)
    taken.number = 2
    taken._write()
    second.commit(Step(0, "score"), {"scores/a.parquet": pa.table({"id": ["a"]})}, {})
    second.append_line("events.jsonl", "took over")
    (second.root / "rounds/000/.scores.parquet.4711.tmp").write_bytes(b"half")
    before = {f.path: Place(first.root.fs, f.path).read_bytes() for f in first.root.files(recursive=True)}
    with pytest.raises(LedgerError, match="another process"):
        change(first)
    assert {f.path: Place(first.root.fs, f.path).read_bytes() for f in first.root.files(recursive=True)} == before


def test_rejected_samples_add_up_without_repeats(ledger):
    def rows(*ids):
        return pa.table({"id": list(ids), "reason": ["why"] * len(ids)}, REJECTED)

    assert ledger.record_rejected(rows("b", "a")) == 2
    assert ledger.record_rejected(rows("b", "c")) == 3
    assert Ledger(ledger.root).rejected()["id"].to_pylist() == ["a", "b", "c"]


def test_only_one_driver_at_a_time(ledger):
    ledger.lock()
    other = Ledger(ledger.root)
    with pytest.raises(LedgerError, match="another process"):
        other.lock()
    ledger.unlock()
    other.lock()
    other.unlock()


@pytest.fixture
def synchronized(monkeypatch):
    """The names of files and directories in the order in which the disk was waited for."""
    names, synchronize = [], os.fsync

    def noted(number):
        names.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}")))
        synchronize(number)

    monkeypatch.setattr(os, "fsync", noted)
    return names


def test_the_disk_has_what_others_wrote_before_it_has_the_commit(ledger, synchronized):
    """Else a machine that loses its power keeps the commit, and not what it lists."""
    file = Path((ledger.place(STEP, "samples") / "1.parquet").path)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"theirs")
    ledger.commit(STEP, {}, {}, written=ledger.place(STEP, "samples").files())
    commit = next(n for n, name in enumerate(synchronized) if name.startswith(".select.json."))
    assert {"1.parquet", "samples"} <= set(synchronized[:commit])
    assert "commits" in synchronized[commit:]


def test_what_the_report_wrote_may_have_changed_where_more_labels_follow(tmp_path):
    def config(*budgets):
        return config_from_tree({"selection": {"budgets": [*budgets]}})

    ledger = Ledger(Place.at(str(tmp_path)))
    ledger.create(to_tree(config(10)), {})
    for step in steps(config(10)):
        ledger.commit(step, {"labels.csv": b"id,label\n"} if step.phase == "report" else {}, {})
    (ledger.root / "labels.csv").write_bytes(b"id;label\r\n")  # saved by a spreadsheet
    check_files(config(10, 20), Ledger(ledger.root))


def test_a_file_system_without_locks_is_no_second_driver(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(LedgerError, match=r"takes no locks \(No locks available\)"):
        Ledger(Place.at(str(tmp_path))).lock()
    assert not Ledger(Place.at(str(tmp_path))).driven
    monkeypatch.setattr("prunefuse_ray.run.ledger.network_file_system", lambda _: "lustre")
    mine = Ledger(Place.at(str(tmp_path)))
    mine.lock()
    assert mine._lease is not None
    mine.unlock()


def test_a_commit_that_is_gone_while_later_ones_are_there_is_refused(tmp_path):
    config = config_from_tree({"selection": {"budgets": [10, 20]}})
    ledger = Ledger(Place.at(str(tmp_path)))
    ledger.create(to_tree(config), {})
    for step in steps(config):
        if step != Step(0, "label"):
            ledger.commit(step, {}, {})
    with pytest.raises(LedgerError, match=r"the commit of 'round 0, label' is gone, but '.*' came after"):
        check_files(config, Ledger(ledger.root))


def test_later_rounds_need_what_the_first_was_scored_by(tmp_path):
    ledger = Ledger(Place.at(str(tmp_path)))
    ledger.commit(Step(0, "score"), {}, {})
    context = SimpleNamespace(ledger=ledger)
    with pytest.raises(LedgerError, match=r"'scoring\.json', by which the pool was scored so far, is gone"):
        score._check_choice(context, Step(1, "score"))
    ledger.write_file("scoring.json", b"{}")
    score._check_choice(context, Step(1, "score"))


def test_what_another_run_found_unusable_comes_with_its_step(tmp_path):
    other, mine = (Ledger(Place.at(str(tmp_path / n))) for n in "ab")
    other.commit(Step(0, "score"), {}, {})
    other.record_rejected(pa.table({"id": ["x"], "reason": ["bad"]}, REJECTED))
    mine.adopt(Step(0, "score"), other, "a")
    assert mine.rejected().to_pylist() == [{"id": "x", "reason": "bad"}]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b + b"x"])
def test_files_that_others_wrote_are_compared_with_what_was_recorded(ledger, damage):
    place = ledger.place(STEP, "samples") / "1.parquet"
    place.write_bytes(b"theirs")
    ledger.commit(STEP, {}, {}, written=ledger.place(STEP, "samples").files())
    assert ledger.files(STEP, "samples")[0] == [place.path]
    place.write_bytes(damage(b"theirs"))
    driver = Ledger(ledger.root)
    driver.lock()
    with pytest.raises(LedgerError, match=r"1\.parquet"):
        driver.files(STEP, "samples")
    driver.unlock()


def test_a_directory_is_synchronized_once(ledger, synchronized):
    place = Path(ledger.place(STEP, "samples").path)
    place.mkdir(parents=True)
    for n in range(20):
        (place / f"{n}.parquet").write_bytes(b"x")
    ledger.commit(STEP, {}, {}, written=ledger.place(STEP, "samples").files())
    assert synchronized.count("samples") == 1
    assert sum(name.endswith(".parquet") for name in synchronized) == 20


def test_who_only_looks_whether_a_run_is_driven_keeps_no_driver_out(ledger, monkeypatch):
    ledger.lock()
    ledger.unlock()
    looking = open(ledger.root.path + "/.lock")  # noqa: SIM115 (closed meanwhile)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(module.time, "sleep", lambda _: looking.close())
    ledger.lock()
    ledger.unlock()


def test_a_store_that_is_away_at_the_end_hides_nothing(tmp_path):
    """Giving a lease back is a courtesy: what ended the run is what has to be said."""

    def away():
        raise OSError("object store: away")

    ledger = Ledger(Place.at(str(tmp_path / "r")))
    ledger.lock()
    ledger._lease = SimpleNamespace(release=away)
    ledger.unlock()
    Ledger(ledger.root).lock()


def test_what_was_taken_back_before_the_lock_is_not_committed(ledger):
    ledger.commit(STEP, {}, {})
    mine = Ledger(ledger.root)
    assert mine.committed(STEP) is not None
    ledger.uncommit(STEP)
    mine.lock()
    assert mine.committed(STEP) is None
    mine.unlock()


def test_files_are_looked_at_side_by_side(ledger, monkeypatch):
    ledger.commit(STEP, {str(n): b"x" for n in range(8)}, {})
    together = threading.Barrier(4)
    monkeypatch.setattr(module, "_fault", lambda *_: "" if together.wait(10) >= 0 else "late")
    assert ledger.damages(STEP) == {}
