"""Pools between two rounds: what may change, what may not, and that a round sees exactly what it saw."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefuse_ray import config as cfg
from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.survey import materialize, sources, survey
from prunefuse_ray.errors import LabelsWaiting, LedgerError, PoolError, ScoreError
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run import growth, loop
from prunefuse_ray.run.growth import check, compare
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.phases import grow as grow_phase
from prunefuse_ray.schemas import POOL_FILES
from prunefuse_ray.storage import Place
from tests.support.annotators import CLASSES, answer, asked
from tests.support.pools import image_folder, parquet_pool, random_images, write_pool
from tests.support.runs import carried_out, tiny


def listing(**files: int) -> pa.Table:
    return pa.table({"file": list(files), "bytes": list(files.values())}, schema=POOL_FILES)


def test_a_listing_is_compared_by_name_and_size():
    change = compare(listing(a=1, b=2, c=3), listing(c=4, a=1, d=5))
    assert change.added.to_pylist() == [{"file": "d", "bytes": 5}]
    assert (change.removed, change.changed) == (("b",), ("c",))


@pytest.mark.parametrize("growth_allowed", [False, True])
def test_removed_and_changed_files_are_named_whatever_is_allowed(growth_allowed):
    change = compare(listing(a=1, b=2, c=3), listing(c=4, a=1))
    with pytest.raises(LedgerError, match=r"pool\.path: 'x' has changed .*removed: b; changed: c\)"):
        check(change, "pool.path", "x", growth=growth_allowed)


def test_new_files_are_named_unless_they_are_allowed():
    change = compare(listing(a=1), listing(a=1, **{f"n{i:02d}": i for i in range(12)}))
    check(change, "pool.path", "x", growth=True)
    with pytest.raises(LedgerError, match=r"new: n00, .*n09 and 2 more\).*pool\.allow_growth"):
        check(change, "pool.path", "x", growth=False)


def begun(pool: cfg.Pool, root, **more) -> tuple[cfg.Config, Ledger]:
    """A run directory as it is when a run has begun."""
    config = config_from_tree({"pool": pool.model_dump(), "selection": {"budgets": [2, 4]}, **more})
    labeled = config.annotation.kind == "oracle"
    found = survey(config.pool, labeled=labeled)
    ledger = Ledger(Place.at(str(root)))
    materialize(found, ledger.root)
    growth.record(config.pool, found.info, ledger.root)
    ledger.create({}, found.info.to_json())
    return config, ledger


def check_now(config, ledger):
    growth.check_unchanged(config, ledger)


def test_every_change_of_a_parquet_pool_is_named(made, tmp_path):
    pool, pixels, _ = made
    config, ledger = begun(pool, tmp_path / "run")
    check_now(config, ledger)
    write_pool(tmp_path / "pool" / "more", pixels[:3], first_id=50)
    with pytest.raises(LedgerError, match=r"new: more/part-0\.parquet"):
        check_now(config, ledger)
    (tmp_path / "pool/more/part-0.parquet").unlink()
    check_now(config, ledger)
    write_pool(tmp_path / "test", pixels[:2], first_id=980)
    with pytest.raises(LedgerError, match=r"pool\.test_path: .*changed: part-0\.parquet\): restore"):
        check_now(config, ledger)


def test_a_test_set_may_not_grow(made, tmp_path):
    pool, pixels, _ = made
    config, ledger = begun(pool.model_copy(update={"allow_growth": True}), tmp_path / "run")
    write_pool(tmp_path / "test" / "more", pixels[:2], first_id=980)
    with pytest.raises(LedgerError, match=r"pool\.test_path: .*new: more/part-0\.parquet"):
        check_now(config, ledger)


def grow(config, ledger, round_=0):
    outputs, metrics = growth.grow(config, ledger, growth.seen_info(config, ledger))
    ledger.commit(Step(round_, "grow"), outputs, metrics)
    return metrics


def test_a_parquet_pool_grows_and_a_round_sees_what_it_saw(made, tmp_path):
    pool, pixels, ids = made
    config, ledger = begun(pool.model_copy(update={"allow_growth": True}), tmp_path / "run")
    more = write_pool(tmp_path / "pool" / "more", pixels[:5], first_id=50)
    check_now(config, ledger)

    def seen():
        source = growth.seen_source(config, ledger, sources(config.pool, ledger.root)[0])
        return sorted(i for f in source.files for i in pq.read_table(f)["id"].to_pylist())

    assert seen() == ids, "a file that no round has taken in is not there"
    assert grow(config, ledger) == {"files": 1, "samples": 5, "left_out": {}}
    write_pool(tmp_path / "pool" / "late", pixels[:5], first_id=70)
    assert seen() == sorted(ids + more)
    info = growth.seen_info(config, ledger)
    assert (info.rows, info.files) == (45, 4)
    assert info.id_digest == survey(parquet_pool_of(tmp_path, ("late",))).info.id_digest
    (tmp_path / "pool/more/part-0.parquet").unlink()
    with pytest.raises(LedgerError, match=r"removed: more/part-0\.parquet"):
        check_now(config, ledger)


def parquet_pool_of(tmp_path, without) -> cfg.Pool:
    """A copy of the pool without some folders, surveyed afresh."""
    for file in sorted((tmp_path / "pool").rglob("*.parquet")):
        if file.parent.name not in without:
            copy = tmp_path / "copy" / "pool" / file.relative_to(tmp_path / "pool")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return parquet_pool(tmp_path).model_copy(update={"path": str(tmp_path / "copy" / "pool")})


def test_what_does_not_fit_the_pool_is_not_taken_in(made, tmp_path):
    pool, pixels, _ = made
    config, ledger = begun(pool.model_copy(update={"allow_growth": True}), tmp_path / "run")
    new = tmp_path / "pool" / "new"
    write_pool(new, pixels[:3], first_id=39)
    with pytest.raises(PoolError, match=r"duplicate ids, e\.g\. 's0039'"):
        grow(config, ledger)
    write_pool(new, pixels[:3], id=pa.array([1, 2, 3]))
    with pytest.raises(PoolError, match=r"new/part-0\.parquet': column 'id' is integers, before strings; fix it"):
        grow(config, ledger)
    write_pool(new, pixels[:3], first_id=50, label=[0, 1, 2])
    with pytest.raises(PoolError, match=r"labels that are none of the 2 classes"):
        grow(config, ledger)
    (new / "part-0.parquet").write_bytes(b"PAR1 half a file")
    with pytest.raises(PoolError, match=r"new/part-0\.parquet' is no Parquet file .*still being written"):
        grow(config, ledger)
    assert not growth.grown(config, ledger)


def test_an_image_folder_grows(tmp_path, local_ray):
    image_folder(tmp_path / "train")
    image_folder(tmp_path / "val", each=2)
    folders = {"path": str(tmp_path / "train"), "test_path": str(tmp_path / "val")}
    pool = cfg.Pool(source="images", channels=1, allow_growth=True, **folders)
    config, ledger = begun(pool, tmp_path / "run")
    (tmp_path / "train/dog/9.png").write_bytes(encode_png(random_images(1)[0]))
    assert grow(config, ledger) == {"files": 1, "samples": 1, "left_out": {}}
    source = growth.seen_source(config, ledger, sources(config.pool, ledger.root)[0])
    rows = [r for f in source.files for r in pq.read_table(f).to_pylist()]
    assert {r["id"]: r["label"] for r in rows}["dog/9.png"] == 1
    assert len(rows) == 7
    assert growth.seen_info(config, ledger).id_digest == survey(pool).info.id_digest


def test_a_run_takes_in_what_came_while_it_waited(local_ray, tmp_path):
    """A flat folder of unlabeled images; the second round chooses among old and new ones."""
    pool, test = tmp_path / "pool", tmp_path / "test"
    pool.mkdir()
    for i, pixels in enumerate(random_images(30)):
        (pool / f"s{i:04d}.png").write_bytes(encode_png(pixels))
    for i, pixels in enumerate(random_images(12, seed=1)):
        (test / CLASSES[i % 2]).mkdir(parents=True, exist_ok=True)
        (test / CLASSES[i % 2] / f"{i}.png").write_bytes(encode_png(pixels))
    change = {
        "pool": {"source": "images", "classes": CLASSES, "allow_growth": True}, "annotation": {"kind": "files"},
        "selection": {"budgets": [10, 45]},
    }  # fmt: skip
    config, root = tiny(tmp_path, tmp_path / "runs", **change), tmp_path / "runs/tiny"
    with pytest.raises(LabelsWaiting):
        loop.run(config)
    for i, pixels in enumerate(random_images(16, seed=7), 30):
        (pool / f"s{i:04d}.png").write_bytes(encode_png(pixels))
    answer(root / "rounds/000/to_label")
    with pytest.raises(LabelsWaiting, match="35 samples of round 1"):
        loop.run(config)
    (pool / "s9999.png").write_bytes(encode_png(random_images(1)[0]))  # too late for any round
    answer(root / "rounds/001/to_label")
    ledger = carried_out(config, Step(1, "label"))
    chosen = [i for r in (0, 1) for i in pq.read_table(root / f"rounds/{r:03d}/labels.parquet")["id"].to_pylist()]
    assert len(set(chosen)) == 45
    assert set(chosen) <= {f"s{i:04d}.png" for i in range(46)}
    recorded = pq.read_table(root / "rounds/000/grown/files.parquet")["file"].to_pylist()
    assert sorted(recorded) == [f"s{i:04d}.png" for i in range(30, 46)]
    assert growth.seen_info(config, ledger).rows == 46


@pytest.mark.parametrize(
    "strategy", [*(pytest.param(s, marks=pytest.mark.slow) for s in ("badge", "random")), "margin"]
)
def test_a_pool_with_nothing_left_is_said_while_it_may_still_grow(local_ray, tmp_path, strategy):
    write_pool(tmp_path / "pool", random_images(12))
    write_pool(tmp_path / "test", random_images(12, seed=1), first_id=900)
    change = {"pool": {"allow_growth": True}, "selection": {"strategy": strategy, "budgets": [12, 15]}}
    config = tiny(tmp_path, tmp_path / "runs", **change)
    with pytest.raises(ScoreError, match=r"round 1 wants 3 samples, but only 0 usable .* or enlarge the pool"):
        loop.run(config)
    write_pool(tmp_path / "more", random_images(4, seed=2), first_id=12)
    (tmp_path / "more" / "part-0.parquet").rename(tmp_path / "pool" / "part-1.parquet")
    carried_out(config, Step(1, "label"))
    assert pq.read_table(tmp_path / "runs/tiny/rounds/001/labels.parquet").num_rows == 3


def test_unreadable_samples_of_a_drawn_test_set_are_none_of_the_pools(monkeypatch):
    """100 samples, 10 of them drawn, one of these unreadable: all 90 others may be labeled."""
    monkeypatch.setattr(growth, "grow", lambda *_: ({}, {"samples": 0}))
    rejected = pa.table({"id": ["t0"], "reason": ["damaged"]})
    context = SimpleNamespace(
        config=config_from_tree({"selection": {"budgets": [40, 90]}}),
        ledger=SimpleNamespace(rejected=lambda: rejected),
        info=SimpleNamespace(rows=90),
        labels=lambda _: pa.table({"id": [f"a{n}" for n in range(40)]}),
        unknown=lambda _: [],
        drawn_test=pa.array([f"t{n}" for n in range(10)]),
    )
    assert grow_phase.run(context, Step(0, "grow")).metrics == {"samples": 0}
    context.drawn_test = pa.array([], pa.string())
    with pytest.raises(ScoreError, match="wants 50 samples, but only 49"):
        grow_phase.run(context, Step(0, "grow"))


def test_what_nobody_could_tell_is_not_left_in_a_pool_that_may_grow(local_ray, tmp_path):
    write_pool(tmp_path / "pool", random_images(12))
    write_pool(tmp_path / "test", random_images(12, seed=1), first_id=900)
    people = {"annotation": {"kind": "files"}, "pool": {"allow_growth": True, "classes": CLASSES}}
    config = tiny(tmp_path, tmp_path / "runs", **people, selection={"budgets": [8, 12]})
    with pytest.raises(LabelsWaiting):
        loop.run(config)
    first = tmp_path / "runs/tiny/rounds/000/to_label"
    (unknown,) = {row["id"] for row in asked(first)} - set(answer(first, leave=1))
    (first / "labels-eve.csv").write_text(f"id,label,unsure\n{unknown},,yes\n")
    with pytest.raises(ScoreError, match="round 1 wants 5 samples, but only 4 usable"):
        loop.run(config)
    assert not (tmp_path / "runs/tiny/rounds/000/grown").exists()


def test_a_pool_whose_labels_are_no_classes_grows(tmp_path, local_ray):
    def write(name, first, n):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        ids = [f"s{first + i}" for i in range(n)]
        columns = {"id": ids, "v": [[i + first, 1.5] for i in range(n)], "label": [0.5 * i for i in range(n)]}
        pq.write_table(pa.table(columns), tmp_path / name)

    write("pool/a.parquet", 0, 6)
    write("test/a.parquet", 90, 3)
    pool = {"source": "parquet", "path": str(tmp_path / "pool"), "test_path": str(tmp_path / "test"),
            "vector_column": "v", "allow_growth": True}  # fmt: skip
    config = config_from_tree({"task": "regression", "pool": pool, "selection": {"budgets": [2, 4]}})
    found, ledger = survey(config.pool, task=config.task), Ledger(Place.at(str(tmp_path / "run")))
    materialize(found, ledger.root)
    growth.record(config.pool, found.info, ledger.root)
    ledger.create({}, found.info.to_json())
    write("pool/b.parquet", 10, 4)
    assert growth.grow(config, ledger, found.info)[1]["samples"] == 4


def test_a_validation_set_may_not_change(made, tmp_path):
    pool, pixels, _ = made
    write_pool(tmp_path / "val", pixels[:4], first_id=700)
    pool = pool.model_copy(update={"validation_path": str(tmp_path / "val")})
    config, ledger = begun(pool, tmp_path / "run")
    check_now(config, ledger)
    write_pool(tmp_path / "val" / "more", pixels[:2], first_id=950)
    with pytest.raises(LedgerError, match=r"pool\.validation_path: .*new: more/part-0\.parquet"):
        check_now(config, ledger)


def test_what_an_earlier_version_took_in_is_not_to_be_restored():
    change = compare(listing(**{"a": 1, "_temporary/0/b": 1}), listing(a=1))
    with pytest.raises(LedgerError, match="an earlier version took files"):
        check(change, "pool.path", "x", growth=False)


@pytest.mark.parametrize("strategy", ["margin", "random"])
def test_a_pool_whose_last_samples_cannot_be_read_may_still_grow(local_ray, tmp_path, strategy):
    """They counted when it was looked at, and were found unreadable when it was scored, or drawn."""
    write_pool(tmp_path / "pool", random_images(12))
    write_pool(tmp_path / "test", random_images(12, seed=1), first_id=900)
    more = {
        "pool": {"allow_growth": True, "max_rejected": 0.5},
        "selection": {"strategy": strategy, "budgets": [12, 15]},
    }
    config = tiny(tmp_path, tmp_path / "runs", **more)
    with pytest.raises(ScoreError, match="only 0 usable"):
        loop.run(config)
    pixels = random_images(6, seed=2)
    images = pa.array([b"broken", *(encode_png(p) for p in pixels[1:3])], pa.binary())
    write_pool(tmp_path / "new", pixels[:3], first_id=12, image=images)
    (tmp_path / "new/part-0.parquet").rename(tmp_path / "pool/part-1.parquet")
    with pytest.raises(ScoreError, match="but only 2"):
        loop.run(config)
    write_pool(tmp_path / "new", pixels[3:], first_id=15)
    (tmp_path / "new/part-0.parquet").rename(tmp_path / "pool/part-2.parquet")
    carried_out(config, Step(1, "label"))
    assert pq.read_table(tmp_path / "runs/tiny/rounds/001/labels.parquet").num_rows == 3
