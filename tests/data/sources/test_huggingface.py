"""Hugging Face datasets: the bytes in the index are the images or texts, and other Arrow files do not count."""

import pyarrow as pa
import pytest

from prunefuse_ray import config as cfg
from prunefuse_ray.data.classes import features_names
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.huggingface import HUGGINGFACE, arrow_schema, scan_arrow
from prunefuse_ray.data.sources.huggingface import _scan as scan
from prunefuse_ray.data.stream import stream
from prunefuse_ray.data.survey import survey
from prunefuse_ray.errors import PoolError
from prunefuse_ray.storage import Place
from tests.support.pools import elsewhere, here, huggingface, random_images, rows
from tests.support.surveys import opened

PNGS = [encode_png(p) for p in random_images(7)]


@pytest.mark.parametrize("place", [here, elsewhere])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_ranges_of_an_arrow_file_hold_its_images(tmp_path, place, batch):
    huggingface(tmp_path / "d", random_images(7), shards=1, batch=batch)
    file = next((tmp_path / "d").glob("data-*"))
    content, found, labels = file.read_bytes(), [], []
    for offsets, sizes, given in scan_arrow(place(file), "image", "label"):
        found += [content[o : o + s] for o, s in zip(offsets, sizes, strict=True)]
        labels += given
    assert found == PNGS
    assert labels == [0, 1, 0, 1, 0, 1, 0]
    assert features_names(arrow_schema(place(file)), "label") == ["dark", "light"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_every_type_of_bytes_is_found_and_nulls_are_empty(tmp_path, kind):
    values = ["ä", None, "", "longer than the others"]
    table = pa.table({"x": pa.array(values).cast(kind)})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    content = (tmp_path / "a.arrow").read_bytes()
    ((offsets, sizes, _),) = scan_arrow(here(tmp_path / "a.arrow"), "x", None)
    found = [content[o : o + s].decode() for o, s in zip(offsets, sizes, strict=True)]
    assert found == ["ä", "", "", "longer than the others"]


def test_columns_without_bytes_and_other_arrow_files_are_refused(tmp_path):
    table = pa.table({"x": [1, 2]})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(PoolError, match="a column of type int64 holds neither"):
        list(scan_arrow(here(tmp_path / "a.arrow"), "x", None))
    with pa.ipc.new_file(tmp_path / "b.arrow", table.schema) as file:
        file.write_table(table)
    with pytest.raises(PoolError, match="random-access form"):
        arrow_schema(here(tmp_path / "b.arrow"))


def test_a_dataset_of_several_splits_and_compressed_batches_are_refused(tmp_path, local_ray):
    huggingface(tmp_path / "d" / "train", random_images(4))
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    where = str(tmp_path / "d")
    with pytest.raises(PoolError, match="holds the splits train, test; give one"):
        survey(cfg.Pool(source="huggingface", path=where, test_path=where))
    huggingface(tmp_path / "z", random_images(40), compression="zstd")
    where = str(tmp_path / "z"), str(tmp_path / "d" / "train")
    with pytest.raises(PoolError, match="compressed record batches"):
        survey(cfg.Pool(source="huggingface", path=where[0], test_path=where[1], channels=1))


def test_texts_of_a_dataset_are_texts(tmp_path, local_ray):
    table = pa.table({"text": ["bad", None, "fähig"], "label": [0, 1, 1]})
    for root in (tmp_path / "d", tmp_path / "t"):
        root.mkdir()
        with pa.ipc.new_stream(root / "data.arrow", table.schema) as stream_:
            stream_.write_table(table)
        (root / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    where = {"path": str(tmp_path / "d"), "test_path": str(tmp_path / "t")}
    pool = cfg.Pool(source="huggingface", text_column="text", classes=2, **where)
    _, source, _ = opened(pool, Place.at(str(tmp_path / "run")))
    got = {i: r["sample"] for i, r in rows(stream(source)).items()}
    assert got == {"data.arrow:0": "bad", "data.arrow:1": "", "data.arrow:2": "fähig"}


def test_datasets_that_name_their_classes_in_another_order_are_no_one_pool(tmp_path):
    for name, classes in (("a", ("dark", "light")), ("b", ("light", "dark"))):
        huggingface(tmp_path / name, random_images(4), shards=1, names=classes)
    paths = [str(tmp_path / name) for name in "ab"]
    pool = cfg.Pool(source="huggingface", path=paths, test_path=paths[0], channels=1)
    one, other = (here(path / "data-00000-of-00001.arrow") for path in map(tmp_path.joinpath, "ab"))
    columns = ("image", "label", SampleSet(pool), ("dark", "light"))
    assert sum(len(found.ids) for found in scan(one, "a", *columns)) == 4
    with pytest.raises(PoolError, match=r"b/data-.*': names its classes light, dark, the pool dark, light; fix it"):
        list(scan(other, "b", *columns))


def test_files_that_were_cut_are_noticed(tmp_path, local_ray):
    huggingface(tmp_path / "d", random_images(12), shards=1, batch=3)
    huggingface(tmp_path / "t", random_images(4, seed=1))
    file = next((tmp_path / "d").glob("data-*"))
    pool = cfg.Pool(source="huggingface", path=str(tmp_path / "d"), test_path=str(tmp_path / "t"), channels=1)
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])  # between two batches: the mark at the end is gone
    index = survey(pool).indexes["path"]
    assert index.rows == 12
    assert index.left_out.examples["Arrow stream without its end mark: more may have followed"] == (file.name,)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PoolError, match=r"cut off, or damaged \(.*; copy it again"):
        survey(pool)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(PoolError, match=r"no Arrow stream file \(.*a Git LFS pointer in place of the file"):
        survey(pool)


def test_a_file_of_a_dataset_that_is_not_there_is_said(tmp_path):
    huggingface(tmp_path / "d", random_images(8), shards=2)
    (tmp_path / "d" / "data-00001-of-00002.arrow").unlink()
    pool = cfg.Pool(source="huggingface", path=str(tmp_path / "d"), test_path=str(tmp_path / "t"), channels=1)
    with pytest.raises(
        PoolError, match=r"1 of the 2 files that state\.json lists are not there, such as '.*/data-00001"
    ):
        HUGGINGFACE.listing(SampleSet(pool))


@pytest.mark.parametrize("named", ["sets", "sets/*", ["sets/a", "sets/b*"]], ids=str)
def test_caches_beside_datasets_that_a_pattern_or_a_folder_names_are_no_samples(tmp_path, named):
    for n, name in enumerate("ab"):
        huggingface(tmp_path / "sets" / name, random_images(4, seed=n), shards=1)  # and a cache beside it
    path = [str(tmp_path / one) for one in named] if isinstance(named, list) else str(tmp_path / named)
    pool = cfg.Pool(source="huggingface", path=path, test_path=str(tmp_path / "sets/a"), channels=1)
    found = HUGGINGFACE.listing(SampleSet(pool))
    assert [p.removeprefix(f"{tmp_path}/") for p in found.paths] == [
        "sets/a/data-00000-of-00001.arrow", "sets/b/data-00000-of-00001.arrow",
    ]  # fmt: skip
    assert [o.reason for o in found.left_out].count("not in state.json") == 2


def test_a_file_that_lacks_a_column_is_refused(tmp_path):
    """Arrow would take its last column for that."""
    table = pa.table({"text": ["a"], "url": ["b"], "grade": [1]})
    with pa.ipc.new_stream(tmp_path / "x.arrow", table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(PoolError, match="no column 'label', or several; it has text, url, grade"):
        list(scan_arrow(here(tmp_path / "x.arrow"), "text", "label"))
    with pytest.raises(PoolError, match="no column 'content'"):
        list(scan_arrow(here(tmp_path / "x.arrow"), "content", None))
