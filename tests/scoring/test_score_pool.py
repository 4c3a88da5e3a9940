"""Scoring a pool: in the driver or by actors, at once or after a kill, prepared or not, the scores are the same."""

import dataclasses
import math
import shutil
import threading
import time

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import ray
import torch

from prunefuse_ray import networks
from prunefuse_ray.data import prepared
from prunefuse_ray.data.ids import IdSet
from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.data.pool import Prepared, Source
from prunefuse_ray.data.stream import decoded_stream
from prunefuse_ray.data.texts import TextForm
from prunefuse_ray.distributed.resources import ScoringPlan
from prunefuse_ray.errors import LedgerError, PoolError
from prunefuse_ray.scoring import scorer
from prunefuse_ray.scoring.scorer import ScoringJob, score_pool
from prunefuse_ray.storage import Place
from tests.support.pools import random_images

SPEC = networks.NetworkSpec(architecture="resnet8", classes=10, input_shape=(1, 8, 8))
JOB = ScoringJob(
    strategy="entropy", form=ImageForm(height=8, width=8, channels=1), batch_size=16, features=False, threads=1,
    gpu=False,
)  # fmt: skip
HERE = ScoringPlan(min_actors=1, max_actors=2, cpus=1, gpus=0.0, here=True, threads=2, alone=True)
ROWS = 200


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(prepared, "CHUNK_BYTES", 16 * 64)


@pytest.fixture
def network(tmp_path):
    place = Place.at(str(tmp_path / "network"))
    dense = networks.Dense(network=networks.build(SPEC, seed=0), spec=SPEC)
    for name, data in networks.to_files(dense).items():
        (place / name).write_bytes(data)
    return place


@pytest.fixture
def source(tmp_path):
    images = [encode_png(p) for p in random_images(ROWS)]
    images[7] = b"bad"
    return pool(tmp_path / "pool.parquet", images)


def pool(file, samples):
    pq.write_table(pa.table({"id": range(len(samples)), "image": samples}), file)
    return Source(fs=pafs.LocalFileSystem(), files=(str(file),), sizes=(file.stat().st_size,), label_column=None)


def scores(source, network, out, plan=HERE, job=JOB):
    places = [Place.at(str(out)), Place.at(f"{out}-checkpoint")]
    for place in places:
        place.fs.create_dir(place.path)
    excluded = pa.array([3, 4], pa.int64())
    score_pool(source, network, job, plan, exclude=excluded, rows=ROWS, out=places[0], checkpoint=places[1])
    return pa.concat_tables([pq.read_table(f.path) for f in places[0].files()]).sort_by("id")


def test_the_driver_scores_as_actors_do(source, network, tmp_path, local_ray, monkeypatch):
    monkeypatch.setattr(scorer, "cpus_now", lambda: 1.0)  # so many tasks read, each in a process that has to start
    here = scores(source, network, tmp_path / "here")
    assert here["id"].to_pylist() == [i for i in range(ROWS) if i not in (3, 4)]
    assert here["rejected"].null_count == ROWS - 3
    kept = dataclasses.replace(source, prepared=Prepared(place=Place.at(str(tmp_path / "kept"))))
    for _ in range(2):
        assert scores(kept, network, tmp_path / f"kept{_}").equals(here)
    actors = dataclasses.replace(HERE, here=False)
    assert scores(kept, network, tmp_path / "actors", actors).cast(here.schema).equals(here)


def test_a_pass_of_the_driver_goes_on_with_the_parts_that_are_missing(source, network, tmp_path, monkeypatch):
    whole, out = scores(source, network, tmp_path / "out"), tmp_path / "out"
    files = sorted(out.iterdir())
    assert len(files) > 4
    files[1].unlink()
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert scores(source, network, out).equals(whole)
    assert {file: file.stat().st_mtime_ns for file in before} == before

    class Broken(scorer.Scorer):
        def __call__(self, rows):
            raise RuntimeError("broken")

    files[1].unlink()
    monkeypatch.setattr(scorer, "Scorer", Broken)
    with pytest.raises(RuntimeError, match="broken"):
        scores(source, network, out)


@pytest.mark.slow
def test_a_pass_that_was_begun_the_other_way_begins_again(source, network, tmp_path, local_ray):
    here = scores(source, network, tmp_path / "out")
    actors = scores(source, network, tmp_path / "out", dataclasses.replace(HERE, here=False))
    assert actors.cast(here.schema).equals(here)
    assert not list((tmp_path / "out").glob("part-*"))
    assert scores(source, network, tmp_path / "out").equals(here)
    torch.set_num_threads(2)


def test_a_pass_that_was_taken_over_writes_nothing(source, network, tmp_path):
    """By another driver, while this one slept: the digests of its files are recorded already."""

    def lost():
        raise LedgerError("another process is driving this run")

    with pytest.raises(LedgerError, match="another process"):
        scores(source, network, tmp_path / "out", dataclasses.replace(HERE, check=lost))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_cut_of_another_version_is_scored_again_and_nothing_twice(source, network, tmp_path):
    out = tmp_path / "out"
    whole = scores(source, network, out)
    for number, file in enumerate(sorted(out.iterdir())[:5]):  # as they were named: any parts of the pool
        file.rename(out / f"part-{number:03d}.parquet")
    before = sorted(out.iterdir())

    def lost():
        raise LedgerError("another process is driving this run")

    with pytest.raises(LedgerError, match="another process"):
        scores(source, network, out, dataclasses.replace(HERE, check=lost))
    assert sorted(out.iterdir()) == before
    assert scores(source, network, out).equals(whole)
    assert not [file for file in out.iterdir() if len(file.name) == len("part-000.parquet")]


def test_a_small_pool_is_work_for_every_thread(source, network, tmp_path, monkeypatch):
    """All of it is one chunk, which the prepared pool keeps whole."""
    monkeypatch.setattr(prepared, "CHUNK_BYTES", 16 * 2**20)
    whole = scores(source, network, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == math.ceil(ROWS / JOB.batch_size)
    kept = dataclasses.replace(source, prepared=Prepared(place=Place.at(str(tmp_path / "kept"))))
    for _ in range(2):
        assert scores(kept, network, tmp_path / f"kept{_}").equals(whole)
    assert len(list((tmp_path / "kept").rglob("*.chunk"))) == 1


def test_the_driver_fills_its_batches(network, tmp_path, monkeypatch):
    """From chunks of 21 rows: 103 of them are a batch of 64, and what is left."""
    monkeypatch.setattr(prepared, "CHUNK_BYTES", 21 * 64)
    monkeypatch.setattr(scorer, "HERE_PARTS", 1)
    source = pool(tmp_path / "pool.parquet", [encode_png(p) for p in random_images(105)])
    plain = scores(source, network, tmp_path / "plain")
    given, really = [], scorer.Scorer.__call__
    monkeypatch.setattr(scorer.Scorer, "__call__", lambda s, rows: given.append(rows.num_rows) or really(s, rows))
    found = scores(source, network, tmp_path / "out", job=dataclasses.replace(JOB, batch_size=64))
    assert sorted(given) == [39, 64]
    assert found["id"].equals(plain["id"])


def test_actors_fill_their_batches(network, tmp_path, local_ray, monkeypatch):
    """Blocks of 28 photographs made 84 of the 64 that were asked for: a batch, and another one of 20."""
    monkeypatch.setattr(prepared, "CHUNK_BYTES", 16 * 2**20)
    monkeypatch.setattr(ray.data.DataContext.get_current(), "target_max_block_size", 28 * 1_040)
    source = pool(tmp_path / "pool.parquet", [encode_png(p) for p in random_images(ROWS, size=32)])
    log = tmp_path / "given"

    class Watched(scorer.Scorer):
        def __call__(self, rows):
            with open(log, "a") as file:
                file.write(f"{rows.num_rows}\n")
            return super().__call__(rows)

    monkeypatch.setattr(scorer, "Scorer", Watched)
    job = dataclasses.replace(JOB, form=ImageForm(height=32, width=32, channels=1), batch_size=64, call_rows=64)
    scores(source, network, tmp_path / "out", dataclasses.replace(HERE, here=False, max_actors=1), job)
    assert sorted(map(int, log.read_text().split())) == [6, 64, 64, 64]
    assert ray.data.DataContext.get_current().target_max_block_size == 28 * 1_040


@pytest.mark.slow
def test_actors_go_on_with_the_rows_that_are_missing(source, network, tmp_path, local_ray, monkeypatch):
    whole, actors = scores(source, network, tmp_path / "whole"), dataclasses.replace(HERE, here=False, max_actors=1)
    log = tmp_path / "given"

    class Watched(scorer.Scorer):
        def __call__(self, rows):
            with open(log, "a") as file:
                file.write(f"{rows.num_rows}\n")
            if 150 in rows["id"].to_pylist() and len(log.read_text().split()) < 20:
                time.sleep(2)  # what was scored before is written meanwhile
                raise RuntimeError("broken")
            return super().__call__(rows)

    monkeypatch.setattr(scorer, "Scorer", Watched)
    job = dataclasses.replace(JOB, call_rows=16)
    with pytest.raises(Exception, match="broken"):
        scores(source, network, tmp_path / "out", actors, job)
    kept = sum(pq.read_metadata(file).num_rows for file in (tmp_path / "out").glob("*.parquet"))
    assert 0 < kept < ROWS - 2
    log.write_text("0\n" * 20)
    assert scores(source, network, tmp_path / "out", actors, job).cast(whole.schema).equals(whole)
    assert sum(map(int, log.read_text().split())) == ROWS - 2 - kept


@pytest.mark.parametrize(("chunk", "call_rows", "batch", "block", "given"), [
    (111, 512, 512, 102, 510),  # 224 x 224 x 3
    (111, 64, 64, 64, 64),
    (111, 512, 256, 102, 510),
    (8192, 9_984, 64, 4_992, 9_984),
    (16, 4, 1, 4, 4),
])  # fmt: skip
def test_whole_blocks_are_nearly_whole_batches(
    source, network, tmp_path, monkeypatch, chunk, call_rows, batch, block, given
):
    """So that an actor computes little that is thrown away, and a block is no larger than what a reader holds."""
    asked = {}

    class Asked(Exception):
        pass

    class Stream:
        def map_batches(self, *_, batch_size, **__):
            asked["given"] = batch_size
            raise Asked

    def stream(*_, block, **__):
        asked["block"] = block
        return Stream()

    monkeypatch.setattr(scorer, "decoded_stream", stream)
    monkeypatch.setattr(scorer, "chunk_rows", lambda form: chunk)
    job = dataclasses.replace(JOB, call_rows=call_rows, batch_size=batch)
    with pytest.raises(Asked):
        scores(source, network, tmp_path / "out", dataclasses.replace(HERE, here=False), job)
    assert asked == {"block": block, "given": given}
    assert given / (batch * math.ceil(given / batch)) > 0.95


def test_small_samples_come_in_blocks_of_what_an_actor_is_given(tmp_path, local_ray):
    """By bytes all of these texts are a part of one block, for one of the actors."""
    source = pool(tmp_path / "pool.parquet", ["a text"] * 300)
    found = decoded_stream(source, TextForm(length=256), block=64, tasks=1)
    blocks = found.map_batches(
        lambda rows: pa.table({"rows": [rows.num_rows]}), batch_size=None, batch_format="pyarrow"
    )
    assert sorted(row["rows"] for row in blocks.take_all()) == [44, 64, 64, 64, 64]


def test_an_error_in_one_thread_ends_the_others(source, network, tmp_path, monkeypatch):
    class Broken(scorer.Scorer):
        def __call__(self, rows):
            broken = threading.current_thread().name.endswith("_1")
            time.sleep(0.1 if broken else 1.0)
            if broken:
                raise RuntimeError("broken")
            return super().__call__(rows)

    monkeypatch.setattr(scorer, "Scorer", Broken)
    with pytest.raises(RuntimeError, match="broken"):
        scores(source, network, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) < 5, "of 13 parts, each of which takes as long"


def test_actors_say_what_is_wrong_as_the_driver_does(source, network, tmp_path, local_ray, monkeypatch):
    monkeypatch.setattr(scorer, "cpus_now", lambda: 1.0)  # so many tasks read, each in a process that has to start
    actors = dataclasses.replace(HERE, here=False, max_actors=1)
    job = dataclasses.replace(JOB, backend="eager", precision="bf16")
    for plan in (HERE, actors):
        with pytest.raises(networks.NetworkError) as said:
            scores(source, network, tmp_path / f"network-{plan.here}", plan, job)
        assert str(said.value).startswith("scoring.backend: eager computes in fp32 alone, not in bf16: set ")
    bad, file = pa.array([b"\xff", b"a"], pa.binary()).view(pa.string()), tmp_path / "bad.parquet"
    pq.write_table(pa.table({"id": bad, "image": [encode_png(p) for p in random_images(2)]}), file)
    broken = Source(fs=pafs.LocalFileSystem(), files=(str(file),), sizes=(file.stat().st_size,), label_column=None)
    for plan in (HERE, actors):
        with pytest.raises(PoolError) as said:
            scores(broken, network, tmp_path / f"pool-{plan.here}", plan)
        assert str(said.value) == f"'{file}': column 'id' holds text that is not UTF-8; write it anew"


def test_the_driver_holds_no_large_part_of_the_scores(source, network, tmp_path, monkeypatch):
    whole = scores(source, network, tmp_path / "whole")
    monkeypatch.setattr(scorer, "HERE_PARTS", 1)
    monkeypatch.setattr(scorer, "HELD_ROWS", {False: 32, True: 32})
    assert scores(source, network, tmp_path / "out").equals(whole)
    assert max(pq.read_metadata(file).num_rows for file in (tmp_path / "out").iterdir()) <= 32


def test_reading_tasks_do_not_carry_the_ids_of_the_test_set(source, local_ray, monkeypatch):
    made, really = [], ray.data.read_datasource
    monkeypatch.setattr(ray.data, "read_datasource", lambda files, **how: made.append(files) or really(files, **how))
    source = dataclasses.replace(source, without=IdSet.of(pa.array(range(100, 50_100))))
    found = decoded_stream(source, JOB.form, exclude=pa.array([3, 4]), tasks=2)
    assert all(one.without is None for one in made[0].parts(2))
    assert sorted(row["id"] for row in found.select_columns(["id"]).take_all()) == [
        i for i in range(100) if i not in (3, 4)
    ]


def test_a_pass_that_was_taken_over_removes_nothing_that_was_scored_the_other_way(source, network, tmp_path):
    out = tmp_path / "out"
    scores(source, network, out)
    before = sorted(out.iterdir())

    def lost():
        raise LedgerError("another process is driving this run")

    with pytest.raises(LedgerError, match="another process"):
        scores(source, network, out, dataclasses.replace(HERE, here=False, check=lost))
    assert sorted(out.iterdir()) == before


def test_a_note_that_a_store_had_copied_and_not_yet_removed_loses_no_row(source, network, tmp_path, local_ray):
    """Stores rename by copying; the driver was killed in between."""
    actors = dataclasses.replace(HERE, here=False, max_actors=1)
    whole = scores(source, network, tmp_path / "out", actors)
    committed = sorted((tmp_path / "out-checkpoint").glob("*.parquet"))[0]
    shutil.copy(committed, committed.with_suffix(".pending.parquet"))
    assert scores(source, network, tmp_path / "out", actors).equals(whole)
    assert not list((tmp_path / "out-checkpoint").glob("*.pending.parquet"))
