"""Pools: found, checked, streamed and fetched from alike, whatever form they have."""

import os
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from prunefuse_ray.acquisition import random_scores
from prunefuse_ray.data import index, reading
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.pool import Source, groups
from prunefuse_ray.data.stream import rows as read_here
from prunefuse_ray.data.stream import stream
from prunefuse_ray.data.survey import source_of, sources
from prunefuse_ray.errors import PoolError
from prunefuse_ray.selection.random import select_random
from prunefuse_ray.storage import Place
from tests.support.pools import rows

GRAY8 = ImageForm(height=8, width=8, channels=1)


def test_the_stream_gives_every_sample(made):
    pool, pixels, ids = made
    source, _ = sources(pool, Place.at("unused"))
    got = rows(stream(source))
    assert sorted(got) == sorted(ids)
    np.testing.assert_array_equal(GRAY8.decode(got[ids[7]]["sample"]), pixels[7])
    assert "label" not in got[ids[0]]


def test_fetching_gives_the_samples_asked_for_with_their_labels(made):
    pool, pixels, ids = made
    source, _ = sources(pool, Place.at("unused"))
    got = rows(stream(source, only=pa.array([ids[11], ids[30]]), label=True))
    assert {i: r["label"] for i, r in got.items()} == {ids[11]: 1, ids[30]: 0}
    np.testing.assert_array_equal(GRAY8.decode(got[ids[30]]["sample"]), pixels[30])


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


@pytest.mark.parametrize("derived", [False, True])
def test_of_row_groups_without_a_wanted_row_no_sample_is_read(tmp_path, monkeypatch, derived):
    """Ten labels of a pool of terabytes must not cost its reading."""
    for number in range(2):
        ids = pa.array(range(100 * number, 100 * number + 40), pa.int64())
        table = pa.table({"id": ids, "image": [b"%d" % i for i in ids.to_pylist()], "label": ids})
        pq.write_table(
            table.drop_columns(["id"]) if derived else table, tmp_path / f"{number}.parquet", row_group_size=8
        )
    files = tuple(str(tmp_path / f"{n}.parquet") for n in range(2))
    source = Source(
        fs=pafs.LocalFileSystem(), files=files, sizes=(1, 1), id_column="id", names=("a", "b") if derived else None
    )
    read, whole = [], reading.tables

    def counted(source, columns, rows=None, row_group=None):
        if "image" in columns:
            read.append((source.files, row_group))
        return whole(source, columns, rows, row_group)

    monkeypatch.setattr(reading, "tables", counted)
    ids = ["a:7", "a:8", "a:39"] if derived else [7, 8, 39]
    got = pa.concat_tables(read_here(source, only=pa.array(ids), label=True))
    assert got.to_pylist() == [{"id": i, "sample": b"%d" % n, "label": n} for i, n in zip(ids, [7, 8, 39], strict=True)]
    assert read == [((files[0],), 0), ((files[0],), 1), ((files[0],), 4)]


def test_a_column_with_a_dot_in_its_name_is_read_in_small_batches(tmp_path):
    images = [bytes([n]) * 7 + os.urandom(100_000) for n in range(200)]
    table = pa.table({"id": list(range(200)), "image.bytes": pa.array(images, pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        assert reading._batch_rows(file, ["id", "image.bytes"]) < 100


def index_of(*ids):
    parts = [pa.table({"id": pa.array(some, pa.string())}) for some in ids]
    return index.Index(
        rows=sum(map(len, ids)), bytes=0, files=1, listing_digest="", id_digest="", labels=Counter(), parts=parts,
        source=Source(fs=pafs.LocalFileSystem(), files=(), sizes=()),
    )  # fmt: skip


def test_ids_of_a_scan_are_compared_in_buckets(local_ray, monkeypatch):
    monkeypatch.setattr(index, "HASHES_PER_BUCKET", 2)
    held = SimpleNamespace(field="pool.path")
    index.check_unique(index_of(["a", "b", "c"], ["d", "e"]), held, "id")
    with pytest.raises(PoolError, match=r"column 'id' has duplicate ids, e\.g\. 'c';"):
        index.check_unique(index_of(["a", "b", "c"], ["d", "c"]), held, "id")
    with pytest.raises(PoolError, match="duplicate ids"):  # one spelling of Unicode, and the other
        index.check_unique(index_of(["caf\u00e9", "b"], ["cafe\u0301"]), held, "id")


@pytest.mark.parametrize("rows", [32, 3_072], ids=["many row groups", "one"])
def test_a_file_is_read_as_it_is_used_and_not_kept(tmp_path, rows):
    file = str(tmp_path / "a.parquet")
    table = pa.table({"id": range(3_072), "image": pa.array([os.urandom(32_768)] * 3_072, pa.binary())})
    pq.write_table(table, file, row_group_size=rows, compression="none", use_dictionary=False)
    del table
    source = Source(fs=pafs.LocalFileSystem(), files=(file,), sizes=(os.path.getsize(file),), label_column=None)
    before, held = pa.total_allocated_bytes(), []
    for _ in reading.tables(source, ["image"]):
        held.append(pa.total_allocated_bytes() - before)
    with reading.FileRows(source, 0, ["image"]) as forwards:
        for first in range(0, 3_072, 64):
            forwards.take(first, 64)
            held.append(pa.total_allocated_bytes() - before)
    assert max(held) < 48 * 2**20, "of 96 MiB"


def test_an_empty_row_group_at_the_beginning_makes_no_batches_of_one_row(tmp_path):
    table, file = pa.table({"id": list(range(100))}), str(tmp_path / "a.parquet")
    with pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table.slice(0, 0))
        writer.write_table(table)
    source = Source(fs=pafs.LocalFileSystem(), files=(file,), sizes=(1,), label_column=None)
    assert max(t.num_rows for t in reading.tables(source, ["id"])) == 100


def test_a_file_is_not_gone_through_whole_to_be_opened(tmp_path, monkeypatch):
    file, seen, whole = str(tmp_path / "a.parquet"), [], reading._bytes_of
    table = pa.table({"image": pa.array([os.urandom(2**17)] * 300, pa.binary())})
    pq.write_table(table, file, row_group_size=1, compression="none", use_dictionary=False)
    monkeypatch.setattr(reading, "_bytes_of", lambda g, c: seen.append(1) or whole(g, c))
    with pafs.LocalFileSystem().open_input_file(file) as stream:
        reading.parquet_file(stream, ["image"])
    assert len(seen) < 150


def test_equal_random_scores_do_not_go_by_id(tmp_path):
    """Scores have 24 bits: of a billion samples sixty have each, and their ids may begin with the class."""
    pq.write_table(pa.table({"id": pa.array(range(60_000), pa.int64())}), tmp_path / "0.parquet")
    source = Source(fs=pafs.LocalFileSystem(), files=(str(tmp_path / "0.parquet"),), sizes=(1,))
    chosen = select_random(source, 60_000, 0, 0, pa.array([], pa.int64()))
    ids, scores = chosen["id"].to_numpy(), chosen["score"].to_numpy()
    equal = np.flatnonzero(scores[1:] == scores[:-1])
    assert len(equal) > 50  # about n² / 2²⁵
    assert 0 < np.mean(ids[equal] < ids[equal + 1]) < 1
