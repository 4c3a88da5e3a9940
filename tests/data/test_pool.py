"""Pools: found, checked, streamed and fetched from alike, whatever form they have."""

import numpy as np
import pyarrow as pa

from prunefuse_ray.acquisition import random_scores
from prunefuse_ray.data.images import ImageForm, decode
from prunefuse_ray.data.pool import groups
from prunefuse_ray.data.stream import stream
from prunefuse_ray.data.survey import source_of, sources
from prunefuse_ray.selection.random import select_random
from prunefuse_ray.storage import Place
from tests.support.pools import rows

GREY8 = ImageForm(height=8, width=8, channels=1)


def test_the_stream_gives_every_sample(made):
    pool, pixels, ids = made
    source, _ = sources(pool, Place.at("unused"))
    got = rows(stream(source))
    assert sorted(got) == sorted(ids)
    np.testing.assert_array_equal(decode(got[ids[7]]["sample"], GREY8), pixels[7])
    assert "label" not in got[ids[0]]


def test_fetching_gives_the_samples_asked_for_with_their_labels(made):
    pool, pixels, ids = made
    source, _ = sources(pool, Place.at("unused"))
    got = rows(stream(source, only=pa.array([ids[11], ids[30]]), label=True))
    assert {i: r["label"] for i, r in got.items()} == {ids[11]: 1, ids[30]: 0}
    np.testing.assert_array_equal(decode(got[ids[30]]["sample"], GREY8), pixels[30])


def test_select_random_is_the_global_top_of_the_hash_scores(made):
    pool, _, ids = made
    source, _ = sources(pool, Place.at("unused"))
    exclude = [ids[0], ids[20]]
    chosen = select_random(source, 7, 5, 2, pa.array(exclude))
    scores = dict(zip(ids, random_scores(np.array(ids, object), 5, 2), strict=True))
    expected = sorted(set(ids) - set(exclude), key=lambda i: (-scores[i], i))[:7]
    assert chosen["id"].to_pylist() == expected


def test_groups_hold_every_file_once(made):
    source = source_of(made[0], Place.at("unused"), "path")
    for count in (1, 2, 3, 64):
        cut = groups(source, count)
        assert sorted(f for g in cut for f in g.files) == sorted(source.files)
        assert len(cut) == min(count, 3)
