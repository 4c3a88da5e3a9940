"""Lance tables: the rows that the library reads, at the version that it reads."""

from dataclasses import replace

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.data.pool import Prepared
from prunefuse_ray.data.prepared import decoded
from prunefuse_ray.data.reading import opened
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import reader_of
from prunefuse_ray.data.sources.lance import _at, _Scan, _source
from prunefuse_ray.errors import PoolError
from prunefuse_ray.storage import Place
from tests.support.pools import random_images
from tests.support.sources import COUNT, pool_of

GRAY8 = ImageForm(height=8, width=8, channels=1)


def read(pool):
    """(listing, id -> (sample, label)) by the source's own parts, in this process."""
    samples = SampleSet(pool)
    listing = reader_of(pool).listing(samples)
    at, found = _at(samples, listing), {}
    for name in listing.names:
        for piece in _Scan(at)(Place.at(pool.path) / name, name, pool.id_column, pool.label_column):
            rows = pa.table({"id": piece.ids, "root": [0] * len(piece.ids), "file": [name] * len(piece.ids),
                             **piece.columns})  # fmt: skip
            for part in opened(rows, _source(samples, at)):
                triples = zip(part["id"].to_pylist(), part["sample"].to_pylist(), piece.labels, strict=True)
                found |= {id_: (sample, label) for id_, sample, label in triples}
    return listing, found


def truth(pool):
    table = lance.dataset(pool.path, version=pool.version).to_table()
    return dict(zip(table["id"].to_pylist(), zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True),
                    strict=True))  # fmt: skip


def test_deletes_changed_columns_and_compaction_are_seen_and_a_pinned_version_is_not_touched(tmp_path):
    pool = pool_of("lance", tmp_path)
    before, rows = read(pool)
    assert rows == truth(pool)
    for i, pixels in enumerate(random_images(COUNT)):
        np.testing.assert_array_equal(GRAY8.decode(rows[f"s{i:04d}"][0]), pixels)
    lance.dataset(pool.path).delete("id in ('s0003', 's0012')")
    deleted, rows = read(pool)
    assert rows == truth(pool)
    assert len(rows) == COUNT - 2
    assert deleted.names == before.names
    assert deleted.digest != before.digest, "no file was added, and still it is another pool"
    by_place = read(pool.model_copy(update={"id_column": None}))[1]
    assert {i.rpartition(":")[2] for i in by_place} == set("01234567")
    assert len(by_place) == COUNT - 2, "a row's number does not move when one before it is deleted"
    lance.dataset(pool.path).add_columns({"grade": "label * 2"})
    lance.dataset(pool.path).alter_columns({"path": "grade", "name": "mark"})
    marks = read(pool.model_copy(update={"label_column": "mark"}))[1]
    assert {i: mark for i, (_, mark) in marks.items()} == {i: 2 * label for i, (_, label) in rows.items()}
    lance.dataset(pool.path).optimize.compact_files()
    compacted, same = read(pool)
    assert same == rows
    assert compacted.digest != deleted.digest
    pinned = pool.model_copy(update={"version": int(before.of_table.version)})
    assert read(pinned)[0].digest == before.digest
    assert read(pinned)[1] == truth(pinned)
    lance.dataset(pool.path).delete("true")
    with pytest.raises(PoolError, match=r"the Lance table '.*' has no rows at version \d"):
        read(pool)


def as_prepared(pool, tmp_path):
    """The images (N, 8, 8, 1) by way of the prepared pool."""
    samples = SampleSet(pool)
    at, (name,) = _at(samples, listing := reader_of(pool).listing(samples)), listing.names
    (piece,) = _Scan(at)(Place.at(pool.path) / name, name, "id", "label")
    count, file = len(piece.ids), tmp_path / "index.parquet"
    rows = pa.table({"id": piece.ids, "root": [0] * count, "file": [name] * count, **piece.columns})
    pq.write_table(rows, file)
    kept = Prepared(place=Place.at(str(tmp_path / "kept")))
    made = {"fs": Place.at(str(file)).fs, "files": (str(file),), "sizes": (file.stat().st_size,), "prepared": kept}
    chunks = decoded(replace(_source(samples, at), **made), GRAY8)
    return np.concatenate([chunk.samples.values_N for chunk in chunks])


def add(path, name, pixels):
    images = pa.array([encode_png(p) for p in pixels], pa.binary())
    lance.dataset(path).add_columns(pa.table({name: images}).to_reader())


def test_two_columns_of_a_table_and_one_that_is_written_anew_are_other_samples(tmp_path):
    left, right = random_images(4), random_images(4, seed=1)
    path = str(tmp_path / "t")
    pool = pool_of("lance", tmp_path).model_copy(update={"path": path, "image_column": "left"})
    lance.write_dataset(pa.table({"id": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]}), path)
    add(path, "left", left)
    add(path, "right", right)
    np.testing.assert_array_equal(as_prepared(pool, tmp_path), left)
    other = pool.model_copy(update={"image_column": "right"})
    np.testing.assert_array_equal(as_prepared(other, tmp_path), right)
    before = reader_of(pool).listing(SampleSet(pool))
    lance.dataset(path).drop_columns(["left"])
    add(path, "left", left[::-1])  # as many bytes as before
    now = reader_of(pool).listing(SampleSet(pool))
    assert now.names == before.names
    assert now.digest != before.digest, "a run that is resumed has to notice it"
    np.testing.assert_array_equal(as_prepared(pool, tmp_path), left[::-1])


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"version": 99}, r"pool\.path: the Lance table .* cannot be opened at version 99"),
        ({"version": "silver"}, r"cannot be opened at version silver .*tag silver does not exist"),
        ({"path": "nowhere"}, r"the Lance table 'nowhere' cannot be opened"),
        ({"path": ["a", "b"]}, r"give one table"),
        ({"id_column": "key"}, r"pool\.id_column: .* has no column 'key'; it has id, image, label; null makes ids"),
    ],
)
def test_what_a_table_does_not_have_is_said(field, said, tmp_path):
    pool = pool_of("lance", tmp_path).model_copy(update=field)
    with pytest.raises(PoolError, match=said):
        reader_of(pool).listing(SampleSet(pool))


def test_tags_name_versions(tmp_path):
    pool = pool_of("lance", tmp_path)
    lance.dataset(pool.path).tags.create("gold", 1)
    tagged = pool.model_copy(update={"version": "gold"})
    assert read(tagged)[1] == truth(tagged)
    assert len(read(tagged)[1]) == COUNT // 2


def test_images_in_blobs_and_in_structs_are_read(tmp_path):
    pool = pool_of("lance", tmp_path)
    blob = pa.field("image", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    schema = pa.schema([("id", pa.string()), ("label", pa.int64()), blob])
    table = pa.table({"id": ["a", "b", "c"], "label": [0, 1, 0], "image": [b"x" * 9, None, b"y"]}, schema)
    lance.write_dataset(table, tmp_path / "blobs")
    found = read(pool.model_copy(update={"path": str(tmp_path / "blobs")}))[1]
    assert found == {"a": (b"x" * 9, 0), "b": (None, 1), "c": (b"y", 0)}
    struct = pa.table({"id": ["a"], "label": [1], "image": [{"bytes": b"q", "path": "x"}]})
    lance.write_dataset(struct, tmp_path / "structs")
    assert read(pool.model_copy(update={"path": str(tmp_path / "structs")}))[1] == {"a": (b"q", 1)}


@pytest.mark.parametrize("id_", [None, ""])
def test_ids_that_are_missing_are_said(id_, tmp_path):
    pool = pool_of("lance", tmp_path)
    table = pa.table({"id": ["a", id_], "label": [0, 1], "image": [b"x", b"y"]})
    lance.write_dataset(table, tmp_path / "gaps")
    with pytest.raises(PoolError, match=r"in column 'id' is no id; fill it in, or set pool\.id_column to null"):
        read(pool.model_copy(update={"path": str(tmp_path / "gaps")}))


def test_fragments_are_counted_once_and_one_that_is_not_there_is_no_other(tmp_path):
    pool = pool_of("lance", tmp_path)
    samples = SampleSet(pool)
    listing = reader_of(pool).listing(samples)
    scan = _Scan(_at(samples, listing))
    offsets = [n for name in listing.names for piece in scan(Place.at(pool.path), name, "id", "label")
               for n in piece.columns["offset"]]  # fmt: skip
    assert offsets == list(range(COUNT))
    with pytest.raises(KeyError):
        list(scan(Place.at(pool.path), "data/other.lance", "id", "label"))
