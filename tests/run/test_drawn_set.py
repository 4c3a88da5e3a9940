"""A test set that is drawn from the pool: nothing of it is selected, scored or learned from, and no label is lost."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefuse_ray.cli import main
from prunefuse_ray.commands import plan
from prunefuse_ray.config.files import config_from_tree, merge
from prunefuse_ray.data import draw, inventory
from prunefuse_ray.data.survey import survey
from prunefuse_ray.errors import ConfigError, LabelError, LabelsWaiting, PoolError
from prunefuse_ray.method.steps import Step
from prunefuse_ray.report.page import render
from prunefuse_ray.run import loop
from prunefuse_ray.run.estimate import Costs
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.phases import label
from prunefuse_ray.run.view import view_run
from prunefuse_ray.storage import Place
from tests.report.test_page import Page
from tests.support.annotators import CLASSES, answer, asked, truth
from tests.support.pools import random_images, write_pool
from tests.support.runs import TINY, carried_out

TESTED = 20


@pytest.fixture(scope="module")
def pool(local_ray, tmp_path_factory):
    """80 samples in Parquet; the last two have the very bytes of the first ones that are drawn."""
    where = tmp_path_factory.mktemp("drawn") / "pool"
    pixels = random_images(80)
    write_pool(where, pixels, files=3)
    first = drawn(where)
    twins = [int(i[1:]) for i in first.to_pylist()[:2]]
    for number in range(900, 990, 2):  # until neither is drawn itself
        write_pool(where / "more", pixels[twins], first_id=number, label=[i % 2 for i in twins])
        if drawn(where).equals(first):
            return where
    raise AssertionError


def config_of(where, **more):
    tree = merge(TINY, {"pool": {"path": str(where), "test_samples": TESTED, "max_rejected": 0.1}})
    return config_from_tree(merge(tree, more))


def drawn(where, **more):
    return survey(config_of(where, **more).pool).drawn


def ids_of(files) -> set:
    return {i for file in files for i in pq.read_table(file, columns=["id"])["id"].to_pylist()}


def rows(file) -> list[dict]:
    with open(file, encoding="utf-8-sig") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def finished(local_ray, pool, tmp_path_factory):
    """A run with an oracle."""
    directory = tmp_path_factory.mktemp("run")
    config = config_of(pool, run={"directory": str(directory), "name": "drawn"})
    said = []
    return config, loop.run(config, tell=said.extend), directory / "drawn", said


def test_the_draw_hangs_on_ids_alone(local_ray, pool, tmp_path):
    before = drawn(pool)
    assert len(before) == TESTED == len(set(before.to_pylist()))
    assert drawn(pool, run={"seed": 5}).equals(before)
    # With a quarter more samples most of it stays, and in the same order.
    write_pool(tmp_path / "larger", random_images(100), files=2)
    after = drawn(tmp_path / "larger").to_pylist()
    assert [i for i in before.to_pylist() if i in after] == [i for i in after if i in set(before.to_pylist())]
    assert len(set(after) & set(before.to_pylist())) > TESTED / 2


def test_nothing_of_the_test_set_is_selected_or_scored(finished, pool):
    _, ledger, root, said = finished
    tested = ids_of((root / "rounds/000/test").glob("*.parquet"))
    assert tested == set(drawn(pool).to_pylist())
    aside = tested | ids_of([root / draw.TWINS_FILE])
    assert len(aside) == TESTED + 2, "what has the content of a test sample is left out, too"
    selected = ids_of([root / "selected.parquet"])
    scored = ids_of(root.glob("rounds/*/scores/*.parquet"))
    assert len(selected) == 30
    assert not aside & (selected | scored)
    assert selected | scored | aside == ids_of(pool.rglob("*.parquet"))
    assert any("20 of these samples, drawn by a hash of their ids; never selected; 2 more" in line for line in said)
    assert ledger.read_pool()["rows"] == 60


def test_what_has_its_content_in_a_large_pool_is_counted_and_refused(local_ray, pool, tmp_path, monkeypatch):
    """A pool that is not looked at whole: what would be left out of a smaller one is found when it is scored."""
    monkeypatch.setattr(inventory, "ALL_ROWS", 30)
    more = {"run": {"directory": str(tmp_path), "name": "large"}}
    with pytest.raises(PoolError, match=r"the very bytes of 2 of the 20 samples of pool\.test_samples \(s"):
        loop.run(config_of(pool, **more))
    ledger = carried_out(config_of(pool, **merge(more, {"pool": {"max_overlap": 0.1}})), Step(0, "score"))
    assert ledger.read_pool()["rows"] == 62
    told = ledger.require(Step(0, "score")).metrics["overlaps"]["test_samples"]
    assert (told["samples"], told["held_out"]) == (2, 2)


def test_the_networks_are_tested_on_it(finished):
    _, _, root, _ = finished
    table = pq.read_table(root / "rounds/000/test")
    assert table["label"].to_pylist() == [CLASSES.index(truth(i)) for i in table["id"].to_pylist()]
    # Bright or dark: the networks cannot fail, if labels and samples belong together.
    assert json.loads((root / "result.json").read_text())["rounds"][-1]["fused_accuracy"] == 1.0


def test_the_report_and_the_plan_say_what_it_is(finished, pool, capsys, monkeypatch):
    _, _, root, _ = finished
    words = Page((root / "report.html").read_text()).words("pool")
    assert "Test set Drawn 20 samples of the pool's 82, by a hash of their ids; never scored, selected" in words
    assert "2 more samples with the content of one of them: left out of the pool, too." in words
    assert "Labeled 20 of 20 By class" in words
    assert "20 more for the test set" in Page((root / "report.html").read_text()).words()
    costs = Costs(proxy_macs=1, dense_macs=2, parameters=(1, 2), scored_per_second=1.0, proxy_trained_per_second=1.0,
                  dense_trained_per_second=1.0, actor_bytes=1)  # fmt: skip
    monkeypatch.setattr(plan, "_costs", lambda *_: costs)
    given = ["--config", str(root / "config.yaml"), "--pool.known_labels", str(root / "labels.csv")]
    assert main(["plan", *given, "--annotation.kind", "files", "--selection.budgets", "[30,45]"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "labels: 15 by people (15 selected in 2 rounds); 50 more are known already" in said
    assert main(["plan", "--config", str(root / "config.yaml"), "--json"]) == 0
    labels = json.loads(capsys.readouterr().out)["labels"]
    assert (labels["samples"], labels["test"], labels["rounds"], labels["answers"]) == (50, 20, [10, 8, 12], 0)
    assert main(["plan", "--config", str(root / "config.yaml"), "--json", "--workers.count", "[8,8]"]) == 0
    notes = " ".join(json.loads(capsys.readouterr().out)["notes"])
    assert "Here the run would be refused: workers.count: 8 workers of 1 CPUs do not fit" in notes


def test_its_labels_serve_the_next_run(finished, local_ray, pool, tmp_path):
    _, _, root, _ = finished
    labels = rows(root / "labels.csv")
    assert len(labels) == 30 + TESTED
    more = {
        "run": {"directory": str(tmp_path), "name": "next"},
        "annotation": {"kind": "files"},
        "pool": {"known_labels": str(root / "labels.csv")},
        "selection": {"budgets": [30]},
    }
    config = config_of(pool, **more)
    carried_out(config, Step(0, "label"))  # nobody is asked anything
    assert ids_of((tmp_path / "next/rounds/000/test").glob("*.parquet")) == set(drawn(pool).to_pylist())


def known_file(file, rows_, twins=()):
    with open(file, "w") as lines:
        lines.write("id,label\n" + "".join(f"{row['id']},{row['label']}\n" for row in rows_))
        lines.write("".join(f"{i},0\n" for i in twins))
    return {"pool": {"known_labels": str(file)}}


def test_known_labels_that_fill_the_first_round_leave_the_test_set_to_it(finished, local_ray, pool, tmp_path):
    _, _, root, _ = finished
    tested = set(drawn(pool).to_pylist())
    known = [row for row in rows(root / "labels.csv") if row["id"] not in tested]
    more = {"run": {"directory": str(tmp_path), "name": "filled"}, "selection": {"budgets": [30]}}
    carried_out(config_of(pool, **merge(more, known_file(tmp_path / "known.csv", known))), Step(0, "label"))
    filled = tmp_path / "filled"
    assert ids_of([filled / "rounds/000/labels.parquet"]) == set()
    assert ids_of((filled / "rounds/000/test").glob("*.parquet")) == tested


def test_a_known_label_of_what_has_the_test_sets_content_is_left_out_with_it(
    finished, local_ray, pool, tmp_path, caplog
):
    _, _, root, _ = finished
    tested, twins = set(drawn(pool).to_pylist()), ids_of([root / draw.TWINS_FILE])
    known = [row for row in rows(root / "labels.csv") if row["id"] not in tested][:5]
    more = {"run": {"directory": str(tmp_path), "name": "twins"}, "selection": {"budgets": [10]}}
    carried_out(config_of(pool, **merge(more, known_file(tmp_path / "known.csv", known, twins))), Step(0, "label"))
    assert "2 labels are left out, of samples that have the content of one of the test set" in caplog.text
    assert ids_of([tmp_path / "twins/known/labels.parquet"]) == {row["id"] for row in known}


def test_people_label_it_with_the_initial_set(local_ray, pool, tmp_path, caplog):
    more = {"run": {"directory": str(tmp_path), "name": "people"}, "annotation": {"kind": "files"},
            "selection": {"budgets": [10, 14]}, "pool": {"classes": CLASSES}}  # fmt: skip
    config, root = config_of(pool, **more), tmp_path / "people"
    with pytest.raises(LabelsWaiting, match=r"30 samples of round 0 wait"):
        loop.run(config)
    first, tested = root / "rounds/000/to_label", set(drawn(pool).to_pylist())
    places = np.array([row["id"] in tested for row in asked(first)])
    assert places.sum() == TESTED
    assert not places[:TESTED].all(), "they stand among the others"
    # Only samples of the initial set have labels: nothing could be measured.
    given = [row["id"] for row in asked(first)]
    with open(first / "labels.csv", "w") as file:
        file.write("id,label\n" + "".join(f"{i},{truth(i)}\n" for i in given if i not in tested))
    with pytest.raises(LabelError, match=r"none of the 20 samples of the test set .* has a label"):
        loop.run(config_of(pool, **merge(more, {"annotation": {"accept_partial": True}})))
    with open(first / "labels.csv", "w") as file:
        left_out = sorted(tested)[0]
        file.write("id,label,unsure\n" + "".join(f"{i},{truth(i)},\n" for i in given if i != left_out))
        file.write(f"{left_out},,yes\n")  # nobody can tell it
    with pytest.raises(LabelsWaiting, match=r"4 samples of round 1 wait"):
        loop.run(config)
    assert not (root / "rounds/000/unknown.parquet").exists(), "it is none of the pool's samples"
    assert ids_of((root / "rounds/000/test").glob("*.parquet")) == tested - {left_out}
    assert len(pq.read_table(root / "rounds/000/labels.parquet")) == 10
    assert "the test set has 19 of the 20 samples that were drawn: 0 cannot be read, 1 have no label" in caplog.text
    page = render(view_run(Ledger(Place.at(str(root)))))
    assert "Labeled 19 of 20; 1 without a label" in Page(page).words("pool")
    answer(root / "rounds/001/to_label")
    carried_out(config, Step(1, "label"))
    assert {row["id"] for row in rows(root / "labels.csv")} == set(given) - {left_out} | {
        row["id"] for row in asked(root / "rounds/001/to_label")
    }


def test_what_cannot_be_is_refused_before_anything_is_written(local_ray, pool, tmp_path):
    with pytest.raises(ConfigError, match="test_path and test_samples are both set"):
        config_of(pool, pool={"test_path": str(pool)})
    with pytest.raises(ConfigError, match=r"test_path, or pool\.test_samples"):
        config_of(pool, pool={"test_samples": 0})
    with pytest.raises(ConfigError, match="source 'digits' has one: set it to 0"):
        config_from_tree({"pool": {"test_samples": 5}})
    with pytest.raises(ConfigError, match=r"pool\.test_samples: 82 of a pool of 82 samples leave none"):
        survey(config_of(pool, pool={"test_samples": 82}).pool)


def test_a_budget_that_needs_what_has_the_test_sets_content_is_refused(local_ray, pool, tmp_path):
    """Before the run begins, not when its second command finds fewer samples."""
    more = {"run": {"directory": str(tmp_path), "name": "many"}, "selection": {"budgets": [10, 62]}}
    with pytest.raises(ConfigError, match=r"62 labels, but the pool has 60 samples"):
        loop.run(config_of(pool, **more))
    assert not (tmp_path / "many/config.yaml").exists()


def test_labels_of_the_test_set_alone_are_not_taken(monkeypatch):
    """There would be nothing to learn from, and the round would stand."""
    none = pa.table({"id": pa.array([], pa.string())})
    given = SimpleNamespace(labels=pa.table({"id": ["a"], "label": [0]}), unknown=none, outputs={}, metrics={})
    stand_ins = {"annotator_of": object(), "request_of": None, "wait_for_labels": None, "labeled": given}
    for name, value in stand_ins.items():
        monkeypatch.setattr(label, name, lambda *_, value=value: value)
    context = SimpleNamespace(
        config=SimpleNamespace(annotation=SimpleNamespace(kind="files")),
        ledger=None,
        info=SimpleNamespace(id_type="string"),
        task=None,
    )
    with pytest.raises(LabelError, match="all labels so far are of the test set"):
        label._from_people(context, Step(0, "label"), 0, pa.array(["a"]))
