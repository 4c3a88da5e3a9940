"""A look at samples: heads, digests, all of them or some, here or in tasks."""

import numpy as np
import pyarrow as pa
import pytest
import ray

from prunefuse_ray.data import look as looking
from prunefuse_ray.data.contents import digest
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.look import look
from prunefuse_ray.data.sample_format import form_of
from prunefuse_ray.data.survey import survey
from tests.support.pools import parquet_pool, random_images, write_pool
from tests.support.sources import WITH_FILES, pool_of

pytestmark = pytest.mark.usefixtures("either_way")


def tables(parts):
    return pa.concat_tables([part if isinstance(part, pa.Table) else ray.get(part) for part in parts])


@pytest.mark.parametrize("name", WITH_FILES)
def test_every_sample_of_every_source_is_looked_at(name, tmp_path, local_ray):
    found = survey(pool_of(name, tmp_path))
    seen, parts = look(found.indexes["path"], form_of(found.pool, found.info), some=None, heads=None)
    assert seen.looked == 16
    assert seen.sizes == {(8, 8): 16}
    expected = {digest(encode_png(p)) for p in random_images(16)}
    assert set(tables(parts)["digest"].to_pylist()) == expected
    assert len(set(tables(parts)["id"].to_pylist())) == 16


@pytest.mark.parametrize("name", WITH_FILES)
def test_some_are_taken_from_all_over_a_large_set(name, tmp_path, local_ray, monkeypatch):
    monkeypatch.setattr(looking, "ROWS_AT_ONCE", 1)
    found = survey(pool_of(name, tmp_path))
    index = found.indexes["path"]
    seen, parts = look(index, form_of(found.pool, found.info), some=4, heads=4)
    assert seen.looked == tables(parts).num_rows == 4
    ids = sorted(tables(parts)["id"].to_pylist())
    assert len(set(ids)) == 4
    all_ids = sorted(tables(look(index, form_of(found.pool, found.info), some=None, heads=2)[1])["id"].to_pylist())
    assert set(ids) <= set(all_ids), "ids are those of the run"
    assert len({i // 8 for i, id_ in enumerate(all_ids) if id_ in ids}) == 2, "from both halves"


def test_what_cannot_be_opened_is_told_by_reason_and_what_cannot_be_decoded_on_request(tmp_path, local_ray):
    images = [encode_png(p) for p in random_images(8)]
    images[1], images[2], images[3] = b"x", None, images[3][:-30]  # the last has a head, and no end
    write_pool(tmp_path / "pool", random_images(8), image=pa.array(images, pa.binary()))
    write_pool(tmp_path / "test", random_images(2, seed=1), first_id=900)
    found = survey(parquet_pool(tmp_path))
    index, form = found.indexes["path"], form_of(found.pool, found.info)
    heads, _ = look(index, form, some=None, heads=None)
    assert dict(heads.unreadable) == {
        "not an image in a known format": 1,
        "no image: null, or its file could not be read": 1,
    }
    assert heads.examples["not an image in a known format"] == ["s0001"]
    whole, _ = look(index, form, some=None, heads=None, decode=True)
    assert whole.unreadable.total() == 3
    assert any("s0003" in ids for ids in whole.examples.values())


def test_tensors_are_looked_at_too(tmp_path, local_ray):
    pixels = random_images(6)
    write_pool(tmp_path / "pool", pixels, image=pa.array(pixels.tolist()))
    write_pool(tmp_path / "test", random_images(2, seed=1), first_id=900, image=pa.array(pixels[:2].tolist()))
    found = survey(parquet_pool(tmp_path))
    seen, parts = look(found.indexes["path"], form_of(found.pool, found.info), some=None, heads=None)
    assert (seen.looked, seen.unreadable, dict(seen.sizes)) == (6, {}, {})
    assert set(tables(parts)["digest"].to_pylist()) == {digest(np.asarray(p)) for p in pixels}
