"""Scoring a pool: in the driver or by actors, at once or after a kill, prepared or not, the scores are the same."""

import dataclasses

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import torch

from prunefuse_ray import networks
from prunefuse_ray.data import prepared
from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.data.pool import Prepared, Source
from prunefuse_ray.distributed.resources import ScoringPlan
from prunefuse_ray.errors import LedgerError
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
    pq.write_table(pa.table({"id": range(ROWS), "image": images}), tmp_path / "pool.parquet")
    file = tmp_path / "pool.parquet"
    return Source(fs=pafs.LocalFileSystem(), files=(str(file),), sizes=(file.stat().st_size,), label_column=None)


def scores(source, network, out, plan=HERE):
    places = [Place.at(str(out)), Place.at(f"{out}-checkpoint")]
    for place in places:
        place.fs.create_dir(place.path)
    excluded = pa.array([3, 4], pa.int64())
    score_pool(source, network, JOB, plan, exclude=excluded, rows=ROWS, out=places[0], checkpoint=places[1])
    return pa.concat_tables([pq.read_table(f.path) for f in places[0].files()]).sort_by("id")


def test_the_driver_scores_as_actors_do(source, network, tmp_path, local_ray):
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
