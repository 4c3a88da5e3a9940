"""Batches of a pool without labels: which samples, in which order, how often."""

import dataclasses
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from prunefuse_ray.data import prepared, unlabeled
from prunefuse_ray.data.contents import digest
from prunefuse_ray.data.ids import IdSet
from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.data.unlabeled import PoolBatches, Unlabeled
from prunefuse_ray.errors import PoolError
from prunefuse_ray.schemas import HELD_OUT
from prunefuse_ray.storage import Place
from tests.support.pools import source, write_pool

FORM = ImageForm(height=8, width=8, channels=1)
ROWS = 50


@pytest.fixture
def numbered(tmp_path, monkeypatch):
    """A pool whose samples show their number, in two files of four chunks each; number 7 cannot be decoded."""
    monkeypatch.setattr(prepared, "CHUNK_BYTES", 0)  # of the fewest rows, then
    monkeypatch.setattr(unlabeled, "chunk_rows", lambda form: 8)
    monkeypatch.setattr(prepared, "chunk_rows", lambda form: 8)
    pixels = np.arange(ROWS, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    images = [encode_png(p) for p in pixels]
    images[7] = b"nothing"
    write_pool(tmp_path / "pool", pixels, files=2, image=pa.array(images, pa.binary()))
    contents = Place.at(str(tmp_path / "held-out.parquet"))
    contents.write_table(pa.table([["test_path"], ["t"], [digest(images[9])]], schema=HELD_OUT))
    exclude = pa.array(["s0003", "s0011"])
    return Unlabeled(source=source(tmp_path / "pool"), exclude=exclude, held_out=contents)


def batches(pool, **more):
    return PoolBatches(pool, FORM, **{"batch": 10, "seed": 0, "memory": 2**20, **more})


def numbers(found, step):
    return found.values(found.places(step))[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("memory", [0, 3 * 512, 2**20])
def test_every_pass_shows_every_usable_sample_and_no_other(numbered, memory):
    found = batches(numbered, memory=memory)
    seen = [n for step in range(2 * ROWS // 10) for n in numbers(found, step)]
    usable = set(range(ROWS)) - {3, 7, 9, 11}
    for pass_ in (seen[:ROWS], seen[ROWS:]):
        assert set(pass_) == usable
        assert sum(Counter(pass_).values()) == ROWS  # those that may not be seen gave their places to others
    assert seen[:ROWS] != seen[ROWS:]
    assert len(found._held) <= max(1, memory // 512)


@pytest.mark.parametrize("aside", ["without", "exclude"])
def test_what_is_left_of_a_chunk_comes_equally_often(numbered, monkeypatch, aside):
    """A drawn test set lacks in the files' rows, which often lie in the order of classes."""
    monkeypatch.setattr(unlabeled, "chunk_rows", lambda form: 32)
    monkeypatch.setattr(prepared, "chunk_rows", lambda form: 32)
    gone = pa.array([f"s{i:04d}" for i in range(0, ROWS, 4)])
    if aside == "without":
        pool = dataclasses.replace(numbered, source=dataclasses.replace(numbered.source, without=IdSet.of(gone)))
    else:
        pool = dataclasses.replace(numbered, exclude=gone)
    found = batches(dataclasses.replace(pool, held_out=None))
    seen = Counter(n for step in range(ROWS // 10) for n in numbers(found, step))
    first = sorted(n for n in seen if n < 25)  # of the first file: number 7 and a quarter are gone
    half = len(first) // 2
    assert abs(sum(seen[n] for n in first[:half]) - sum(seen[n] for n in first[-half:])) <= 1


def test_a_batch_depends_on_seed_and_step_alone(numbered):
    first, again = batches(numbered), batches(numbered)
    steps = list(range(12))  # beyond the end of a pass
    inorder = [numbers(first, s) for s in steps]
    assert [numbers(again, s) for s in reversed(steps)] == inorder[::-1]
    assert [numbers(batches(numbered, seed=1), s) for s in steps] != inorder


def test_a_batch_may_be_larger_than_the_pool(numbered):
    assert len(numbers(batches(numbered, batch=3 * ROWS), 0)) == 3 * ROWS


def test_a_chunk_that_a_drawn_test_set_took_whole_gives_its_places_to_others(numbered):
    """The last chunk of the second file has one row."""
    aside = IdSet.of(pa.array([f"s{ROWS - 1:04d}", "s0000"]))
    found = batches(dataclasses.replace(numbered, source=dataclasses.replace(numbered.source, without=aside)))
    seen = {n for step in range(4 * ROWS // 10) for n in numbers(found, step)}
    assert seen == set(range(1, ROWS - 1)) - {3, 7, 9, 11}


def test_a_pool_of_which_nothing_may_be_learned_is_refused(numbered):
    everything = dataclasses.replace(numbered, exclude=pa.array([f"s{i:04d}" for i in range(ROWS)]))
    with pytest.raises(PoolError, match="none of its samples may be learned from"):
        numbers(batches(everything), 0)
