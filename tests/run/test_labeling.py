"""Runs whose labels come from people: they wait, go on, and neither lose a label nor ask for one twice."""

import dataclasses
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from prunefuse_ray.annotation import Answers, Take, annotations_schema
from prunefuse_ray.annotation.label_studio import Client
from prunefuse_ray.config.files import config_from_tree, to_tree
from prunefuse_ray.config.schema import Annotation
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.reading import tables
from prunefuse_ray.errors import LabelError, LabelsWaiting
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run import labeling, loop
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.phases import score
from prunefuse_ray.scoring.score_pass import ScorePass
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS
from tests.run.test_view import INFO
from tests.support.annotators import CLASSES, answer, asked, truth
from tests.support.driver import arm
from tests.support.nets import OWN
from tests.support.pools import random_images, write_pool
from tests.support.runs import carried_out, driven, tiny


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory):
    """A Parquet pool without a label column."""
    where = tmp_path_factory.mktemp("unlabeled")
    write_pool(where / "pool", random_images(60), files=3)
    for file in (where / "pool").iterdir():
        pq.write_table(pq.read_table(file).drop_columns(["label"]), file)
    write_pool(where / "test", random_images(20, seed=1), first_id=900)
    return where


def config_for(where, directory, *, budgets=(10, 16), **annotation):
    change = {"annotation": {"kind": "files", **annotation}, "pool": {"classes": CLASSES}}
    return tiny(where, directory, **change, selection={"budgets": list(budgets)})


def labels_of(root: Path, round_: int) -> list[dict]:
    return pq.read_table(root / f"rounds/{round_:03d}/labels.parquet").to_pylist()


def test_a_run_waits_for_files_and_goes_on(local_ray, unlabeled, tmp_path, caplog):
    config, root = config_for(unlabeled, tmp_path), tmp_path / "tiny"
    with pytest.raises(LabelsWaiting, match=r"10 samples of round 0 wait for labels in .*samples\.csv") as waiting:
        loop.run(config)
    assert waiting.value.exit_code == 3
    first = root / "rounds/000/to_label"
    assert {row["guess"] for row in asked(first)} == {""}, "no proxy has been trained yet"
    ids = answer(first, leave=2)

    # Two labels are missing, then one is wrong: nothing is taken.
    with pytest.raises(LabelsWaiting, match=r"2 of 10 samples .* --accept-partial"):
        loop.run(config)
    (first / "labels-eve.csv").write_text("id,label\nnobody,light\n")
    with pytest.raises(LabelError, match=r"labels-eve\.csv line 2: id 'nobody'.*\n.*2 of 10 samples lack labels"):
        loop.run(config_for(unlabeled, tmp_path, accept_partial=True))
    assert not (root / "rounds/000/labels.parquet").exists()
    (first / "labels-eve.csv").unlink()

    # On request the round goes on without them, and the next one makes them up.
    seen = []
    with pytest.raises(LabelsWaiting, match="8 samples of round 1"):
        loop.run(config_for(unlabeled, tmp_path, accept_partial=True), lambda *e: seen.append(e))
    assert sorted(r["id"] for r in labels_of(root, 0)) == sorted(ids)
    assert all(CLASSES[r["label"]] == truth(r["id"]) and r["source"] == "files" for r in labels_of(root, 0))
    second = root / "rounds/001/to_label"
    assert all(row["guess"] in CLASSES and float(row["probability"]) >= 0.5 for row in asked(second))
    assert not {row["id"] for row in asked(second)} & set(ids), "a label that is there is not asked for again"

    # What was taken stays taken, whatever becomes of the file; a change is said.
    with open(first / "labels.csv", "a") as file:
        file.write("\n")
    answer(second)
    caplog.clear()
    ledger = loop.run(config)
    assert "000/to_label/labels.csv has changed since its labels were taken: the run goes on with" in caplog.text
    result = (ledger.root / "result.json").read_json()
    assert [r["labels"] for r in result["rounds"]] == [8, 16]
    commit = ledger.committed(Step(0, "label"))
    assert commit is not None
    assert (commit.metrics["labels"], commit.metrics["missing"], commit.metrics["annotators"]) == (8, 2, 1)
    page = (root / "report.html").read_text()
    assert "16 of 60 pool samples" in page.replace("<b>", "").replace("</b>", "")


def test_samples_left_without_a_label_are_no_centers(local_ray, unlabeled, tmp_path):
    """They are in the pool again: k-centers must not take them for covered."""
    config, root = config_for(unlabeled, tmp_path, accept_partial=True), tmp_path / "tiny"
    config = config.model_copy(update={"selection": config.selection.model_copy(update={"strategy": "k_centers"})})
    with pytest.raises(LabelsWaiting):
        loop.run(config)
    ids = answer(root / "rounds/000/to_label", leave=3)
    with pytest.raises(LabelsWaiting, match="of round 1"):
        loop.run(config)
    centers = pq.read_table(root / "rounds/000/labeled")["id"].to_pylist()
    assert sorted(centers) == sorted(ids)
    assert len(pq.read_table(root / "rounds/000/scores")) == 60 - len(ids)


def test_what_nobody_could_tell_is_covered(local_ray, unlabeled, tmp_path):
    """Else k-centers asks about its like in every round."""
    config, root = config_for(unlabeled, tmp_path), tmp_path / "tiny"
    config = config.model_copy(update={"selection": config.selection.model_copy(update={"strategy": "k_centers"})})
    with pytest.raises(LabelsWaiting):
        loop.run(config)
    first = root / "rounds/000/to_label"
    everything = {row["id"] for row in asked(first)}
    (unknown,) = everything - set(answer(first, leave=1))
    (first / "labels-eve.csv").write_text(f"id,label,unsure\n{unknown},,yes\n")
    with pytest.raises(LabelsWaiting, match="of round 1"):
        loop.run(config)
    centers = pq.read_table(root / "rounds/000/labeled")["id"].to_pylist()
    assert sorted(centers) == sorted(everything)


@pytest.mark.parametrize("strategy", ["margin", "random"])
def test_a_sample_that_nobody_could_tell_is_not_asked_about_again(local_ray, unlabeled, tmp_path, caplog, strategy):
    """Else the next round has it again, as it has all that is left here."""
    config, root = config_for(unlabeled, tmp_path, budgets=(10, 59)), tmp_path / "tiny"
    config = config.model_copy(update={"selection": config.selection.model_copy(update={"strategy": strategy})})
    with pytest.raises(LabelsWaiting):
        loop.run(config)
    first = root / "rounds/000/to_label"
    (unknown,) = {row["id"] for row in asked(first)} - set(answer(first, leave=1))
    (first / "labels-eve.csv").write_text(f"id,label,unsure\n{unknown},,yes\n")
    with pytest.raises(LabelsWaiting, match="50 samples of round 1"):
        loop.run(config)
    assert f"nobody could tell the class of 1 sample ({unknown}); it is not asked about again" in caplog.text
    assert pq.read_table(root / "rounds/000/unknown.parquet").to_pylist() == [{"id": unknown}]
    assert unknown not in pq.read_table(root / "rounds/001/selected.parquet")["id"].to_pylist()
    if strategy == "margin":
        assert unknown not in pq.read_table(root / "rounds/000/scores")["id"].to_pylist()
    answer(root / "rounds/001/to_label")
    carried_out(config, Step(1, "label"))
    assert len(labels_of(root, 0)) + len(labels_of(root, 1)) == 59
    assert not (root / "rounds/001/unknown.parquet").exists()


def test_the_guess_is_that_of_the_saved_proxy(local_ray, unlabeled, tmp_path):
    import torch

    from prunefuse_ray import networks

    config, root = config_for(unlabeled, tmp_path), tmp_path / "tiny"
    with pytest.raises(LabelsWaiting):
        loop.run(config)
    answer(root / "rounds/000/to_label")
    with pytest.raises(LabelsWaiting):
        loop.run(config)
    directory = root / "rounds/000/proxies/0"
    proxy = networks.from_files({f.name: f.read_bytes() for f in directory.iterdir()}, OWN).network.eval()
    pixels = random_images(60)
    for row in asked(root / "rounds/001/to_label"):
        x = (torch.tensor(pixels[int(row["id"][1:])]).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        p = torch.softmax(proxy(x), 1)[0]
        assert row["guess"] == CLASSES[int(p.argmax())]
        assert float(row["probability"]) == pytest.approx(p.max().item(), abs=1e-4)
        assert float(row["score"]) == pytest.approx(1 - p.max().item(), abs=2e-4)


def test_several_annotators_and_wrong_labels(local_ray, unlabeled, tmp_path):
    """Three people, one of whom always says `dark`; the majority is trained, everything is kept."""
    config, root = config_for(unlabeled, tmp_path, labels_per_sample=3, budgets=(12,)), tmp_path / "tiny"
    with pytest.raises(LabelsWaiting):
        loop.run(config)
    folder = root / "rounds/000/to_label"
    ids = answer(folder, name="labels-ann.csv")
    answer(folder, name="labels-bob.csv", wrong=1)
    with pytest.raises(LabelsWaiting, match="12 samples of round 0 wait"):
        loop.run(config)
    (folder / "labels-cyd.csv").write_text("id,label\n" + "".join(f"{i},dark\n" for i in ids))
    carried_out(config, Step(0, "label"))
    votes = {r["id"]: r for r in pq.read_table(root / "rounds/000/agreement.parquet").to_pylist()}
    kept = pq.read_table(root / "rounds/000/annotations.parquet")
    assert kept.num_rows == 36
    assert set(kept["annotator"].to_pylist()) == {"ann", "bob", "cyd"}
    light = [i for i in ids[1:] if truth(i) == "light"]
    assert all(votes[i]["label"] == 1 and votes[i]["agreement"] == pytest.approx(2 / 3) for i in light)
    assert votes[ids[0]]["label"] == 0, "two of three said dark, or all of them"
    assert {r["id"]: r["label"] for r in labels_of(root, 0)} == {i: v["label"] for i, v in votes.items()}


# --- waiting, without a run ---


class Slow:
    """Someone who answers at the third look."""

    looks = 0

    def ask(self, request):
        pass

    def collect(self, request):
        self.looks += 1
        rows = [{"id": "a", "label": 1, "annotator": "", "source": "x", "time": None}] if self.looks > 2 else []
        return Answers(annotations=pa.Table.from_pylist(rows, annotations_schema(pa.string())))

    def remedy(self, request):
        return "somewhere"


class Asks:
    ids = ("a",)
    round = 4


def test_waiting_ends_when_the_labels_are_there_or_the_time_is_over(monkeypatch):
    monkeypatch.setattr(labeling, "POLL", 0.01)
    taken = labeling.wait_for_labels(Slow(), Asks(), Annotation(kind="files", wait=60))
    assert taken.annotations.num_rows == 1
    slow = Slow()
    with pytest.raises(LabelsWaiting, match="1 samples of round 4 wait for labels somewhere"):
        labeling.wait_for_labels(slow, Asks(), Annotation(kind="files"))
    assert slow.looks == 1


def test_labels_that_are_being_written_while_the_run_waits_are_not_taken(monkeypatch):
    """A copy over a network, say: it ends in the middle of a label, which may be another label or none."""
    schema = annotations_schema(pa.string())

    def given(label, digest, *faults):
        rows = [{"id": "a", "label": label, "annotator": "", "source": "files", "time": None}]
        return Answers(annotations=pa.Table.from_pylist(rows, schema), files={"labels.csv": digest}, faults=faults)

    looks = [
        Answers(annotations=schema.empty_table()),
        given(1, "half"),
        given(1, "more", "no class"),
        given(12, "all"),
    ]

    class Writing(Slow):
        def collect(self, request):
            self.looks += 1
            return looks[min(self.looks, len(looks)) - 1]

    for name in ("POLL", "AT_REST"):
        monkeypatch.setattr(labeling, name, 0.01)
    taken = labeling.wait_for_labels(Writing(), Asks(), Annotation(kind="files", wait=60))
    assert taken.annotations["label"].to_pylist() == [12]


# --- kills ---


def drive(config, tmp_path, *kill) -> int:
    done = driven(config, tmp_path, *kill)
    if done.returncode != -signal.SIGKILL and "LabelsWaiting" not in done.stderr:
        pytest.fail(done.stdout + done.stderr)
    return done.returncode


def killed_and_resumed(unlabeled, tmp_path, moment, phase, drive=drive):
    config, root = config_for(unlabeled, tmp_path, budgets=(10,)), tmp_path / "tiny"
    if phase == "label" and moment in ("commit", "done"):
        with pytest.raises(LabelsWaiting):
            loop.run(config)
        answer(root / "rounds/000/to_label")
    assert drive(config, tmp_path, moment, 0, phase) == -signal.SIGKILL
    ledger = Ledger(loop.run_place(config))
    if moment == "done" and phase == "label":
        (root / "rounds/000/to_label/labels.csv").unlink()  # recorded: never asked for again
    elif not (root / "rounds/000/to_label/labels.csv").exists():
        with pytest.raises(LabelsWaiting, match="10 samples of round 0"):
            loop.run(config)
        assert len(asked(root / "rounds/000/to_label")) == 10
        answer(root / "rounds/000/to_label")
    loop.run(config)
    assert [CLASSES[r["label"]] for r in labels_of(root, 0)] == [truth(r["id"]) for r in labels_of(root, 0)]
    assert len(labels_of(root, 0)) == 10
    assert (ledger.root / "result.json").exists()


def test_an_end_while_the_samples_are_written_out_loses_nothing(local_ray, unlabeled, tmp_path, monkeypatch):
    """In this process, by an exception that nothing expects."""

    def end():
        raise KeyboardInterrupt

    def drive_here(config, _, *moment):
        with monkeypatch.context() as patch:
            arm(*moment, loop.run_place(config).path, end=end, patch=patch.setattr)
            with pytest.raises(KeyboardInterrupt):
                loop.run(config)
        return -signal.SIGKILL

    killed_and_resumed(unlabeled, tmp_path, "inside", "label", drive_here)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("moment", "phase"),
    [
        pytest.param("start", "request", marks=pytest.mark.slow),
        ("commit", "request"),
        pytest.param("done", "request", marks=pytest.mark.slow),
        ("inside", "label"),
        ("commit", "label"),
        ("done", "label"),
    ],
)
def test_a_kill_at_any_moment_loses_nothing(local_ray, unlabeled, tmp_path, moment, phase):
    killed_and_resumed(unlabeled, tmp_path, moment, phase)


def test_a_labeled_sample_that_was_asked_about_twice_is_scored_once(tmp_path, monkeypatch):
    for name, ids in (("a", ["s1", "s2", "s3"]), ("b", ["s2", "s4"])):  # s2: labeled only when asked again; s3: never
        pq.write_table(pa.table({"id": ids, "sample": ids}), tmp_path / f"{name}.parquet")
    source = Source(
        fs=pafs.LocalFileSystem(),
        sample_column="sample",
        sizes=(1, 1),
        files=tuple(str(tmp_path / f"{name}.parquet") for name in "ab"),
    )
    monkeypatch.setattr(score, "write_scores", lambda what, *_: what)
    context = SimpleNamespace(samples=lambda _: source, scoring=None, ledger=SimpleNamespace(place=lambda *_: None))
    what = ScorePass(
        root=None, record=None, source=None, rows=0, exclude=None, network=None, macs=0, classes=2,
        members=1, out=None, checkpoint=None,
    )  # fmt: skip
    found = score._score_labeled(context, Step(2, "score"), what, None, pa.array(["s1", "s2", "s4"]))
    read = [id_ for table in tables(found.source, ["id"]) for id_ in table["id"].to_pylist()]
    assert sorted(read) == ["s1", "s2", "s4"]
    assert len(found.exclude) == 0
    none = score._score_labeled(context, Step(2, "score"), what, None, pa.array([], pa.string()))
    assert [table.num_rows for table in tables(none.source, ["id"])] == [0, 0]


def test_a_run_that_was_moved_or_has_grown_keeps_its_project(tmp_path):
    """In another one people would be asked again, and what they gave in the first would stay there."""
    config = config_from_tree({"annotation": {"kind": "label_studio", "url": "http://localhost"}})
    ledger = Ledger(Place.at(str(tmp_path)))
    ledger.create(to_tree(config), INFO.to_json())
    ledger.commit(Step(-1, "init"), {}, {})
    chosen = pa.table({"id": ["a"], "score": pa.array([None], pa.float32()), "rank": [0]})
    table = labeling.request_table(chosen, None, "string", TASKS["classification"])
    ledger.commit(Step(0, "request"), {labeling.TABLE: table}, {})
    moved = config.model_copy(update={"run": config.run.model_copy(update={"name": "moved"})})
    grown = dataclasses.replace(INFO, id_digest="more")
    markers = {labeling.request_of(c, ledger, i, 0).marker for c in (config, moved) for i in (INFO, grown)}
    assert len(markers) == 1


def test_a_server_that_is_away_for_a_while_does_not_end_the_wait(monkeypatch, caplog):
    """It is said once, however often the run looks, and again when the server goes away another time."""
    monkeypatch.setattr(labeling, "POLL", 0.01)
    monkeypatch.setattr("urllib3.util.Retry.sleep", lambda *_: None)

    class Restarting(Slow):
        tries = 0

        def collect(self, request):
            self.tries += 1
            if self.tries in (2, 3, 4, 6):
                Client("http://127.0.0.1:9", "token").call("GET", "/users")
            return super().collect(request)

    taken = labeling.wait_for_labels(Restarting(), Asks(), Annotation(kind="files", wait=60))
    assert taken.annotations.num_rows == 1
    assert caplog.text.count("The run goes on waiting") == 2


def test_votes_that_tie_are_told(caplog):
    """A second file with corrections is a second person: the class that comes first would win in silence."""
    rows = [
        {"id": "a", "label": label, "annotator": who, "source": "files", "time": None}
        for label, who in ((0, ""), (1, "v2"))
    ]
    given = pa.Table.from_pylist(rows, annotations_schema(pa.string()))
    found = labeling.labeled(Take(annotations=given, missing=0), "string", "files", TASKS["classification"])
    assert "1 of 1 samples have as many votes for another label (a)" in caplog.text
    assert found.metrics["ties"] == 1


def test_partial_labels_are_taken_at_the_end_of_the_wait(monkeypatch):
    """Else the first label that somebody gives would be the only one of the round."""
    monkeypatch.setattr(labeling, "POLL", 0.01)
    began, asks = time.monotonic(), SimpleNamespace(ids=("a", "b"), round=4)
    taken = labeling.wait_for_labels(Slow(), asks, Annotation(kind="files", wait=0.5, accept_partial=True))
    assert (taken.annotations["id"].to_pylist(), taken.missing) == (["a"], 1)
    assert time.monotonic() - began >= 0.5


def test_the_remedy_after_a_wait_does_not_wait_again(monkeypatch):
    monkeypatch.setattr(labeling, "POLL", 0.01)
    asks = SimpleNamespace(ids=("a", "b"), round=4)
    with pytest.raises(LabelsWaiting, match=r"--accept-partial --annotation\.wait 0"):
        labeling.wait_for_labels(Slow(), asks, Annotation(kind="files", wait=0.1))
