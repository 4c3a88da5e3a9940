"""Pools: found, checked, streamed and fetched from alike, whatever form they have."""

import numpy as np
import pyarrow as pa
from prunefuse_ray.selection.random import select_random

from prunefuse_ray.acquisition import random_scores
from prunefuse_ray.data.digits import digits_tables
from prunefuse_ray.data.images import ImageForm, decode
from prunefuse_ray.data.parquet import locate_parquet
from prunefuse_ray.data.pool import groups
from prunefuse_ray.data.stream import stream
from prunefuse_ray.data.survey import sources
from prunefuse_ray.storage import Place
from tests.support.pools import rows

GREY8 = ImageForm(height=8, width=8, channels=1)


def test_the_stream_gives_every_sample_but_the_excluded_ones(made):
    pool, pixels, ids = made
    source, _ = sources(pool, Place.at("unused"))
    got = rows(stream(source, exclude=pa.array([ids[3], ids[39]])))
    assert sorted(got) == sorted(set(ids) - {ids[3], ids[39]})
    np.testing.assert_array_equal(decode(got[ids[7]]["sample"], GREY8), pixels[7])
    assert "label" not in got[ids[0]]


def test_fetching_gives_the_samples_asked_for_with_their_labels(made):
    pool, pixels, ids = made
    source, _ = sources(pool, Place.at("unused"))
    got = rows(stream(source, only=pa.array([ids[11], ids[30]]), label=True))
    assert {i: r["label"] for i, r in got.items()} == {ids[11]: 1, ids[30]: 0}
    np.testing.assert_array_equal(decode(got[ids[30]]["sample"], GREY8), pixels[30])


def test_digits_are_the_whole_set_with_a_fifth_held_out():
    pool, test = digits_tables()
    assert (pool.num_rows, test.num_rows) == (1437, 360)
    ids = pool["id"].to_pylist() + test["id"].to_pylist()
    assert sorted(ids) == [f"digit-{i:04d}" for i in range(1797)]
    from sklearn.datasets import load_digits

    digits = load_digits()
    row = int(ids[5].removeprefix("digit-"))
    assert pool["label"][5].as_py() == digits.target[row]
    pixels = decode(pool["image"][5].as_py(), GREY8)[:, :, 0]
    assert np.abs(pixels - digits.images[row] * (255 / 16)).max() <= 0.5


def test_select_random_is_the_global_top_of_the_hash_scores(made):
    pool, _, ids = made
    source, _ = sources(pool, Place.at("unused"))
    exclude = [ids[0], ids[20]]
    chosen = select_random(source, 7, 5, 2, pa.array(exclude))
    scores = dict(zip(ids, random_scores(np.array(ids, object), 5, 2), strict=True))
    expected = sorted(set(ids) - set(exclude), key=lambda i: (-scores[i], i))[:7]
    assert chosen["id"].to_pylist() == expected


def test_groups_hold_every_file_once(made):
    source = locate_parquet(made[0].path, made[0], "pool.path")
    for count in (1, 2, 3, 64):
        cut = groups(source, count)
        assert sorted(f for g in cut for f in g.files) == sorted(source.files)
        assert len(cut) == min(count, 3)
