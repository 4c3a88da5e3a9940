"""Pools as people have them: WebDataset tars, Hugging Face datasets, folders, lists and patterns, ids or none."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prunefuse_ray.selection.random import select_random

from prunefuse_ray import config as cfg
from prunefuse_ray.data.images import ImageForm, decode, encode_png
from prunefuse_ray.data.labeled_set import load_samples
from prunefuse_ray.data.stream import stream
from prunefuse_ray.data.survey import check_unchanged, materialise, source_of, sources, survey
from prunefuse_ray.errors import LedgerError, PoolError
from prunefuse_ray.storage import Place
from tests.support.pools import parquet_pool, random_images, rows, write_pool

GREY8 = ImageForm(height=8, width=8, channels=1)


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample(key, pixels, label):
    return [(f"{key}.png", encode_png(pixels)), (f"{key}.cls", str(label).encode()), (f"{key}.json", b"{}")]


def webdataset(root, pixels, shards=2, label=lambda i: i % 2):
    each = -(-len(pixels) // shards)
    for s in range(shards):
        mine = range(s * each, min((s + 1) * each, len(pixels)))
        write_tar(root / f"shard-{s}.tar", [m for i in mine for m in sample(f"{i:04d}", pixels[i], label(i))])


def huggingface(root, pixels, shards=2, batch=3, names=("dark", "light"), **options):
    """What `datasets.Dataset.save_to_disk` writes: Arrow stream files, and the list of them."""
    root.mkdir(parents=True)
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table(
        {
            "label": pa.array([i % 2 for i in range(len(pixels))], pa.int64()),
            "image": pa.array([{"bytes": encode_png(p), "path": None} for p in pixels]),
        }
    ).replace_schema_metadata(metadata)
    each = -(-len(pixels) // shards)
    files = []
    for s in range(shards):
        files.append(f"data-{s:05d}-of-{shards:05d}.arrow")
        with pa.ipc.new_stream(root / files[-1], table.schema, options=pa.ipc.IpcWriteOptions(**options)) as stream_:
            stream_.write_table(table.slice(s * each, each), max_chunksize=batch)
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": f} for f in files]}))
    (root / "cache-0123.arrow").write_bytes((root / files[0]).read_bytes())  # datasets leaves such files there
    return table


def opened(pool, root):
    found = survey(pool)
    materialise(found, root)
    return found.info, *sources(pool, root)


KINDS = {
    "webdataset": (webdataset, {"classes": 2}, lambda i: f"shard-{i // 8}/{i:04d}"),
    "huggingface": (huggingface, {}, lambda i: f"data-0000{i // 8}-of-00002.arrow:{i % 8}"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_streams_excludes_and_labels_alike(kind, tmp_path, local_ray):
    write, more, id_of = KINDS[kind]
    pixels = random_images(16)
    write(tmp_path / "train", pixels)
    write(tmp_path / "val", random_images(4, seed=1))
    pool = cfg.Pool(source=kind, path=str(tmp_path / "train"), test_path=str(tmp_path / "val"), channels=1, **more)
    info, source, test = opened(pool, Place.at(str(tmp_path / "run")))
    assert (info.rows, info.files, info.sample_size, info.id_type) == (16, 2, (8, 8), "string")
    assert info.classes == (["0", "1"] if kind == "webdataset" else ["dark", "light"])
    ids = [id_of(i) for i in range(16)]
    got = rows(stream(source, exclude=pa.array([ids[2], ids[9]]), label=True))
    assert sorted(got) == sorted(set(ids) - {ids[2], ids[9]})
    for i in set(range(16)) - {2, 9}:
        np.testing.assert_array_equal(decode(got[ids[i]]["sample"], GREY8), pixels[i])
        assert got[ids[i]]["label"] == i % 2
    assert list(rows(stream(source, only=pa.array([ids[5]])))) == [ids[5]]
    assert set(select_random(source, 16, 0, 0, pa.array([], pa.string()))["id"].to_pylist()) == set(ids)
    np.testing.assert_array_equal(load_samples(test, GREY8).values_N, random_images(4, seed=1))
    check_unchanged(pool, info)
    write(tmp_path / "more", pixels[:3])
    with pytest.raises(LedgerError, match=r"then 2 files.* now 4 files"):
        check_unchanged(pool.model_copy(update={"path": [pool.path, str(tmp_path / "more")]}), info)


def test_a_pool_without_labels_is_surveyed_without_them(tmp_path, local_ray):
    webdataset(tmp_path / "train", random_images(4), label=lambda _: "")
    pool = cfg.Pool(source="webdataset", path=str(tmp_path / "train"), test_path="unused", channels=1)
    pool = pool.model_copy(update={"test_path": None})
    found = survey(pool, labeled=False)
    materialise(found, Place.at(str(tmp_path / "run")))
    source = source_of(pool, Place.at(str(tmp_path / "run")), "path")
    assert len(rows(stream(source))) == found.info.rows == 4


@pytest.mark.parametrize(
    ("members", "more", "said"),
    [
        (sample("a", random_images(1)[0], 7), {}, r"labels that are none of the 2 classes, e\.g\. '7' \(id 's/a'\)"),
        (sample("a", random_images(1)[0], "cow"), {"classes": ["cat", "dog"]}, "'cow'"),
        ([("a.png", b"x")], {}, "None"),
        (
            [*sample("a", random_images(1)[0], 1), *sample("b", random_images(1)[0], 1), ("a.txt", b"")],
            {},
            "'a' comes twice",
        ),
    ],
)
def test_tars_that_are_not_what_was_said_are_refused(tmp_path, local_ray, members, more, said):
    write_tar(tmp_path / "s.tar", members)
    where = str(tmp_path / "s.tar")
    pool = cfg.Pool(**{"source": "webdataset", "path": where, "test_path": where, "classes": 2, "channels": 1, **more})
    with pytest.raises(PoolError, match=said) as caught:
        survey(pool)
    assert "Traceback" not in str(caught.value)


def test_compressed_tars_are_refused(tmp_path, local_ray):
    with tarfile.open(tmp_path / "s.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    where = str(tmp_path / "s.tar")
    with pytest.raises(PoolError, match=r"s\.tar: not an uncompressed tar file .*; unpack it"):
        survey(cfg.Pool(source="webdataset", path=where, test_path=where, classes=2))


def test_class_names_and_json_fields_label_tars(tmp_path, local_ray):
    members = []
    for i, pixels in enumerate(random_images(4)):
        members.append((f"{i}.png", encode_png(pixels)))
        members.append((f"{i}.json", json.dumps({"kind": ["cat", "dog"][i // 2]}).encode()))
    write_tar(tmp_path / "s.tar", members)
    where = str(tmp_path / "s.tar")
    pool = cfg.Pool(
        source="webdataset", path=where, test_path=where, classes=["cat", "dog"], channels=1, label_column="json:kind"
    )
    _, source, _ = opened(pool, Place.at(str(tmp_path / "run")))
    found = {i: r["label"] for i, r in rows(stream(source, label=True)).items()}
    assert found == {"s/0": 0, "s/1": 0, "s/2": 1, "s/3": 1}


def test_a_dataset_of_several_splits_and_compressed_batches_are_refused(tmp_path, local_ray):
    huggingface(tmp_path / "d" / "train", random_images(4))
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    where = str(tmp_path / "d")
    with pytest.raises(PoolError, match="holds the splits train, test; give one"):
        survey(cfg.Pool(source="huggingface", path=where, test_path=where))
    huggingface(tmp_path / "z", random_images(40), compression="zstd")
    where = str(tmp_path / "z")
    with pytest.raises(PoolError, match="compressed record batches"):
        survey(cfg.Pool(source="huggingface", path=where, test_path=where, channels=1))


def test_texts_of_a_dataset_are_texts(tmp_path, local_ray):
    root = tmp_path / "d"
    root.mkdir()
    table = pa.table({"text": ["bad", None, "fähig"], "label": [0, 1, 1]})
    with pa.ipc.new_stream(root / "data.arrow", table.schema) as stream_:
        stream_.write_table(table)
    (root / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    pool = cfg.Pool(source="huggingface", path=str(root), test_path=str(root), text_column="text", classes=2)
    _, source, _ = opened(pool, Place.at(str(tmp_path / "run")))
    got = {i: r["sample"] for i, r in rows(stream(source)).items()}
    assert got == {"data.arrow:0": "bad", "data.arrow:1": "", "data.arrow:2": "fähig"}


def test_parquet_shards_of_hugging_face_name_their_classes_and_need_no_ids(tmp_path, local_ray):
    table = huggingface(tmp_path / "unused", random_images(10))
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        pq.write_table(table.slice(0, 6), tmp_path / part / "a.parquet", row_group_size=2)
        pq.write_table(table.slice(6), tmp_path / part / "b.parquet")
    pool = parquet_pool(tmp_path).model_copy(
        update={"path": str(tmp_path / "train"), "test_path": str(tmp_path / "val"), "classes": None, "id_column": None}
    )
    info, source, test = opened(pool, Place.at(str(tmp_path / "run")))
    assert info.classes == ["dark", "light"]
    got = rows(stream(source, label=True))
    ids = [*(f"a.parquet:{i}" for i in range(6)), *(f"b.parquet:{i}" for i in range(4))]
    assert sorted(got) == sorted(ids)
    for i, id_ in enumerate(ids):
        np.testing.assert_array_equal(decode(got[id_]["sample"], GREY8), random_images(10)[i])
        assert got[id_]["label"] == i % 2
    assert list(rows(stream(source, only=pa.array(["b.parquet:3"])))) == ["b.parquet:3"]
    assert len(load_samples(test, GREY8)) == 10


def test_an_id_column_that_is_missing_is_said_with_the_remedy(tmp_path, local_ray):
    write_pool(tmp_path / "pool", random_images(4))
    write_pool(tmp_path / "test", random_images(4))
    with pytest.raises(PoolError, match=r"pool\.id_column.*'key'.*null makes ids of file names and row numbers"):
        survey(parquet_pool(tmp_path, id_column="key"))


def test_lists_and_patterns_name_each_file_once(tmp_path, local_ray):
    ids = write_pool(tmp_path / "pool", random_images(12), files=3)
    more = write_pool(tmp_path / "other", random_images(4), first_id=100)
    write_pool(tmp_path / "test", random_images(4), first_id=900)
    where = tmp_path / "pool"
    paths = [
        str(where / "part-[01].parquet"),
        str(where / "part-1.parquet"),
        str(where / "*-2*"),
        str(tmp_path / "other"),
    ]
    pool = parquet_pool(tmp_path).model_copy(update={"path": paths})
    assert survey(pool).info.rows == 16
    assert sorted(rows(stream(sources(pool, Place.at("unused"))[0]))) == sorted(ids + more)
    with pytest.raises(PoolError, match=r"holds no files that end in \.parquet"):
        survey(pool.model_copy(update={"path": [*paths, str(tmp_path / "none-*")]}))


def test_files_whose_ids_would_clash_are_refused(tmp_path, local_ray):
    for part in ("pool", "other", "test"):
        write_pool(tmp_path / part, random_images(4))
    pool = parquet_pool(tmp_path, id_column=None)
    paths = [str(tmp_path / "pool"), str(tmp_path / "other")]
    with pytest.raises(PoolError, match=r"would both begin with 'part-0\.parquet'; give a directory above both"):
        survey(pool.model_copy(update={"path": paths}))
    both = pool.model_copy(update={"path": str(tmp_path / "*" / "part-0.parquet")})
    assert "other/part-0.parquet:3" in rows(stream(sources(both, Place.at("unused"))[0]))


def test_two_image_folders_are_one_pool_and_hidden_files_are_none(tmp_path, local_ray):
    for folder, name in (("a", "cat"), ("b", "dog"), ("b", ".thumbnails")):
        (tmp_path / folder / name).mkdir(parents=True)
        (tmp_path / folder / name / f"{folder}.png").write_bytes(encode_png(random_images(2)[0]))
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    pool = cfg.Pool(source="images", path=paths, test_path=paths, channels=1)
    info, source, _ = opened(pool, Place.at(str(tmp_path / "run")))
    assert info.classes == ["cat", "dog"]
    got = rows(stream(source, label=True))
    assert {i: r["label"] for i, r in got.items()} == {"cat/a.png": 0, "dog/b.png": 1}
    np.testing.assert_array_equal(decode(got["dog/b.png"]["sample"], GREY8), random_images(2)[0])
