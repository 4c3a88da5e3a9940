"""Parquet pools: columns, ids, labels, files that belong together or do not."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.data.labeled_set import load_samples, own_labels
from prunefuse_ray.data.pool import with_groups
from prunefuse_ray.data.reading import canonical, head
from prunefuse_ray.data.stream import stream
from prunefuse_ray.data.survey import sources, survey
from prunefuse_ray.data.texts import TextForm
from prunefuse_ray.errors import PoolError
from prunefuse_ray.selection.random import select_random
from prunefuse_ray.storage import Place
from tests.support.pools import huggingface, parquet_pool, random_images, rows, write_pool
from tests.support.surveys import opened

GRAY8 = ImageForm(height=8, width=8, channels=1)


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
        np.testing.assert_array_equal(GRAY8.decode(got[id_]["sample"]), random_images(10)[i])
        assert got[id_]["label"] == i % 2
    assert list(rows(stream(source, only=pa.array(["b.parquet:3"])))) == ["b.parquet:3"]
    assert len(load_samples(test, GRAY8)) == 10


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


def test_integer_ids_and_other_column_names(tmp_path, local_ray):
    for part, first, n in (("pool", 0, 9), ("test", 100, 3)):
        (tmp_path / part).mkdir()
        table = {
            "key": pa.array(range(first, first + n), pa.int32()),
            "png": pa.array([encode_png(p) for p in random_images(n)]),
            "y": pa.array([i % 2 for i in range(n)], pa.int16()),
        }
        pq.write_table(pa.table(table), tmp_path / part / "a.parquet")
    pool = parquet_pool(tmp_path, id_column="key", image_column="png", label_column="y")
    assert survey(pool).info.id_type == "int64"
    got = rows(stream(sources(pool, Place.at("unused"))[0], only=pa.array([2, 5]), label=True))
    assert {i: r["label"] for i, r in got.items()} == {2: 0, 5: 1}


@pytest.mark.parametrize(
    ("column", "said"),
    [("site", r"pool\.group_column: pool\.path has no column 'site'"), ("image", "groups are strings or integers")],
)
def test_a_group_column_that_cannot_serve_is_refused(made, column, said):
    pool, _, _ = made
    with pytest.raises(PoolError, match=said):
        survey(pool.model_copy(update={"group_column": column}))


def test_an_empty_file_is_part_of_a_pool(made, tmp_path):
    """As distributed writers leave them behind."""
    pool, _, ids = made
    whole = pq.read_table(next((tmp_path / "pool").iterdir()))
    pq.write_table(whole.slice(0, 0), tmp_path / "pool" / "zz.parquet")
    assert survey(pool).info.rows == 40
    source = sources(pool, Place.at("unused"))[0]
    assert sorted(select_random(source, 40, 0, 0, pa.array([], pa.string()))["id"].to_pylist()) == sorted(ids)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.set_column(0, "id", pa.array(range(t.num_rows))), "column 'id' is integers, before strings"),
        (lambda t: t.drop_columns(["image"]), "column 'image' is missing, before binary"),
        (lambda t: t.drop_columns(["label"]), "column 'label' is missing, before integers"),
        (lambda t: None, "is no Parquet file that can be read"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(made, tmp_path, change, said):
    pool, _, _ = made
    last = sorted((tmp_path / "pool").iterdir())[-1]
    changed = change(pq.read_table(last))
    last.write_bytes(b"")
    if changed is not None:
        pq.write_table(changed, last)
    with pytest.raises(PoolError, match=f"pool.path: '{last}'.*{said}"):
        survey(pool)


def test_ids_beyond_64_bits_with_a_sign_are_refused(made, tmp_path):
    pool, _, _ = made
    for file in (tmp_path / "pool").iterdir():
        table = pq.read_table(file)
        pq.write_table(table.set_column(0, "id", pa.array(range(table.num_rows), pa.uint64())), file)
    with pytest.raises(PoolError, match="'id' is of type uint64; cast it"):
        survey(pool)


def test_a_parquet_pool_needs_no_label_column_where_people_give_labels(made, tmp_path):
    pool, _, _ = made
    for file in (tmp_path / "pool").iterdir():
        pq.write_table(pq.read_table(file).drop_columns(["label"]), file)
    assert survey(pool, labeled=False).info.rows == 40
    with pytest.raises(PoolError, match="no column 'label'"):
        survey(pool)


@pytest.mark.parametrize(("names", "classes"), [(("light", "dark"), None), (("dark", "light"), 3)])
def test_class_names_that_contradict_each_other_are_refused(tmp_path, local_ray, names, classes):
    """Labels are numbers: with the names in another order they would silently mean something else."""
    for part, of in (("train", ("dark", "light")), ("val", names)):
        table = huggingface(tmp_path / f"{part}.hf", random_images(4), names=of)
        (tmp_path / part).mkdir()
        pq.write_table(table, tmp_path / part / "a.parquet")
    where = {"path": str(tmp_path / "train"), "test_path": str(tmp_path / "val")}
    pool = parquet_pool(tmp_path).model_copy(update={**where, "classes": classes, "id_column": None})
    said = r"pool\.classes: 3, but pool\.path names 2 classes" if classes else (
        r"pool\.test_path: names its classes light, dark, the pool dark, light; .*set pool\.classes to the names"
    )  # fmt: skip
    with pytest.raises(PoolError, match=said):
        survey(pool)
    named = pool.model_copy(update={"classes": ["dim", "bright"]})
    assert survey(named).info.classes == ["dim", "bright"]


@pytest.mark.parametrize("part", ["train", "val"])
def test_files_of_one_set_that_name_their_classes_in_another_order_are_refused(tmp_path, part):
    for folder, file, names in (("train", "a", "ab"), ("train", "b", "ab"), ("val", "a", "ab"), ("val", "b", "ab")):
        turned = (folder, file) == (part, "b")
        table = huggingface(tmp_path / f"{folder}-{file}.hf", random_images(4), names=names[::-1] if turned else names)
        (tmp_path / folder).mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / folder / f"{file}.parquet")
    where = {"path": str(tmp_path / "train"), "test_path": str(tmp_path / "val")}
    pool = parquet_pool(tmp_path).model_copy(update={**where, "classes": None, "id_column": None})
    with pytest.raises(PoolError, match=rf"{part}/b\.parquet': names its classes b, a, the pool a, b; fix them"):
        survey(pool)
    assert survey(pool.model_copy(update={"classes": ["dim", "bright"]})).info.classes == ["dim", "bright"]


@pytest.mark.parametrize(
    ("classes", "fits"),
    [
        (["dark", "light", "gray"], True),
        (["dim", "bright"], True),
        (["light", "dark"], False),
        (["black", "dark", "light"], False),
    ],
)
def test_names_of_the_configuration_may_be_others_but_not_the_files_own_in_another_order(tmp_path, classes, fits):
    """Their labels are numbers, and people who label mean the names."""
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        pq.write_table(huggingface(tmp_path / f"{part}.hf", random_images(4)), tmp_path / part / "a.parquet")
    where = {"path": str(tmp_path / "train"), "test_path": str(tmp_path / "val")}
    pool = parquet_pool(tmp_path).model_copy(update={**where, "classes": classes, "id_column": None})
    if fits:
        assert survey(pool).info.classes == classes
        return
    with pytest.raises(PoolError, match=r"'dark' is class 0 of the files, and class 1 of pool\.classes; fix"):
        survey(pool)


def with_labels(tmp_path, change, kind):
    """The files of a pool with other labels."""
    for part in ("pool", "test"):
        for file in (tmp_path / part).iterdir():
            table = pq.read_table(file)
            labels = pa.array([change(n) for n in table["label"].to_pylist()])
            pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", labels.cast(kind)), file)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_labels_that_are_words_are_read_by_the_names_of_the_configuration(made, tmp_path, kind):
    pool, _, _ = made
    before = survey(pool)
    numbers = [own_labels(source) for source in sources(pool, Place.at("unused"))]
    # As people write them: blanks, and another Unicode form of the same name.
    names = ["cha\u0302t ", "dog"]
    with_labels(tmp_path, {0: "ch\u00e2t", 1: " dog"}.get, kind)
    with pytest.raises(PoolError, match=r"'label' is of type .*integers.*, or names that are listed in pool\.classes"):
        survey(pool)
    named = pool.model_copy(update={"classes": names})
    assert {n: index.labels for n, index in survey(named).indexes.items()} == {
        n: index.labels for n, index in before.indexes.items()
    }
    for expected, source in zip(numbers, sources(named, Place.at("unused")), strict=True):
        assert own_labels(source).equals(expected)
    with pytest.raises(PoolError, match=r"has 20 labels that are .*, e\.g\.  dog \(id 's0001'\)"):
        survey(pool.model_copy(update={"classes": ["cha\u0302t", "bird"]}))


def test_lists_of_words_are_sets_of_the_classes_that_they_name(made, tmp_path):
    pool, _, _ = made
    with_labels(tmp_path, {0: [], 1: ["dog", "cat"]}.get, pa.list_(pa.string()))
    named = pool.model_copy(update={"classes": ["cat", "dog", "owl"]})
    survey(named, task="multi_label")
    labels = own_labels(sources(named, Place.at("unused"), task="multi_label")[0])["label"].to_pylist()
    assert labels[:2] == [[], [0, 1]]
    with pytest.raises(PoolError, match=r"has 20 labels that are "):
        survey(pool.model_copy(update={"classes": ["cat", "bird", "owl"]}), task="multi_label")


def test_files_that_hold_paths_in_place_of_images_are_refused(made, tmp_path):
    """As `Dataset.to_parquet` writes images that are not embedded."""
    pool, _, _ = made
    for i, file in enumerate(sorted((tmp_path / "pool").iterdir())):
        table = pq.read_table(file)
        images = [{"bytes": None if i else b, "path": "x.png"} for b in table["image"].to_pylist()]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(table.set_column(1, "image", pa.array(images, kind)), file)
    said = r"part-1\.parquet': column 'image' holds the paths of images and not their bytes: write them .*embed_table"
    with pytest.raises(PoolError, match=said):
        survey(pool)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:665232916d127eb7\nsize 146946961\n"


@pytest.mark.parametrize("which", [0, -1])
def test_pointers_of_git_lfs_are_named_with_the_remedy(made, tmp_path, which):
    pool, _, _ = made
    sorted((tmp_path / "pool").iterdir())[which].write_bytes(POINTER)
    with pytest.raises(PoolError, match=r"a Git LFS pointer in place of the file; fetch the file itself with git lfs"):
        survey(pool)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()),
                                  pa.dictionary(pa.int8(), pa.large_string())])  # fmt: skip
def test_strings_of_every_type_are_ids(made, tmp_path, kind):
    pool, _, ids = made
    for file in (tmp_path / "pool").iterdir():
        table = pq.read_table(file)
        table = table.set_column(0, "id", table["id"].cast(kind))
        image = pa.chunked_array([table["image"].combine_chunks().dictionary_encode()])
        label = table["label"].combine_chunks().dictionary_encode()
        pq.write_table(table.set_column(1, "image", image).set_column(2, "label", label), file)
    found = survey(pool)
    assert found.info.id_type == "string"
    assert sorted(rows(stream(found.indexes["path"].source, label=True))) == sorted(ids)
    doubled = pq.read_table(next((tmp_path / "pool").iterdir()))
    names = pa.chunked_array([["M\u00fcll", "Mu\u0308ll"][: min(2, doubled.num_rows)]]).cast(kind)
    pq.write_table(doubled.slice(0, 2).set_column(0, "id", names), tmp_path / "pool" / "more.parquet")
    with pytest.raises(PoolError, match="duplicate ids"):
        survey(pool)


def test_text_that_is_not_utf8_is_refused_in_ids_and_replaced_in_texts(made, tmp_path):
    pool, _, _ = made
    file = sorted((tmp_path / "pool").iterdir())[0]
    table = pq.read_table(file)
    latin = pa.Array.from_buffers(pa.string(), 1, pa.array([b"M\xfcll"]).buffers())
    spoilt = pa.chunked_array([latin, table["id"].combine_chunks()[1:]])
    pq.write_table(table.set_column(0, "id", spoilt), file)
    with pytest.raises(PoolError, match="column 'id' holds text that is not UTF-8; write it anew"):
        survey(pool)
    texts = pa.chunked_array([latin, pa.array(["fine"] * (table.num_rows - 1))])
    pq.write_table(table.append_column("text", texts), file)
    source = replace(survey(pool).indexes["path"].source, files=(str(file),), sample_column="text")
    read = head(source, 2)["sample"].to_pylist()
    assert read == ["M\ufffdll", "fine"]
    assert TextForm(length=9).read(read[0])[1] == ("bytes that are not UTF-8 replaced",)


def test_a_group_column_may_be_called_id_where_ids_are_made(made):
    pool, _, ids = made
    pool = pool.model_copy(update={"id_column": None, "group_column": "id"})
    rows_ = pa.concat_tables(canonical(with_groups(sources(pool, Place.at("unused"))[0], pool)))
    assert sorted(rows_["group"].to_pylist()) == sorted(ids)
    assert rows_["id"][0].as_py() == "part-0.parquet:0"


def test_labels_that_are_missing_are_said_with_their_remedy(made, tmp_path):
    pool, _, _ = made
    with_labels(tmp_path, {0: None, 1: "dog"}.get, pa.string())
    with pytest.raises(PoolError, match=r"e\.g\. None \(id .*pool\.known_labels to a table of these"):
        survey(pool.model_copy(update={"classes": ["cat", "dog"]}))


def test_lists_of_words_may_be_of_different_widths(made, tmp_path):
    """As pyarrow and Polars write them."""
    pool, _, _ = made
    with_labels(tmp_path, {0: [], 1: ["dog"]}.get, pa.list_(pa.string()))
    file = sorted((tmp_path / "pool").iterdir())[-1]
    table = pq.read_table(file)
    wide = pa.array(table["label"].to_pylist(), pa.large_list(pa.large_string()))
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", wide), file)
    survey(pool.model_copy(update={"classes": ["cat", "dog"]}), task="multi_label")


def test_ids_of_a_test_set_may_be_integers_of_two_widths(tmp_path, local_ray):
    for part, first in (("pool", 0), ("test", 100)):
        (tmp_path / part).mkdir()
        for n, kind in enumerate((pa.int64(), pa.int32())):
            table = {
                "id": pa.array(range(first + 4 * n, first + 4 * n + 4), kind),
                "image": pa.array([encode_png(p) for p in random_images(4)]),
                "label": [0, 1, 0, 1],
            }
            pq.write_table(pa.table(table), tmp_path / part / f"{n}.parquet")
    pool = parquet_pool(tmp_path)
    survey(pool)
    assert len(load_samples(sources(pool, Place.at("unused"))[1], GRAY8)) == 8


@pytest.mark.parametrize("which", [0, -1])
def test_a_column_that_stands_there_twice_is_refused(made, tmp_path, which):
    file = sorted((tmp_path / "pool").iterdir())[which]
    table = pq.read_table(file)
    pq.write_table(table.append_column("label", table["label"]), file)
    with pytest.raises(PoolError, match=r"column 'label' (is there )?twice|'label' is there twice"):
        survey(made[0])


def test_vectors_in_lists_of_every_kind_are_of_one_type(tmp_path, local_ray):
    """As pandas, Polars and Delta's rewrites leave them: what is copied of a pool goes into one file."""
    kinds = (pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2))
    for part, first in (("pool", 0), ("test", 100)):
        (tmp_path / part).mkdir()
        for n, kind in enumerate(kinds):
            given = {"id": [f"s{first + n}"], "v": pa.array([[float(n), 1.0]], kind), "label": [n % 2]}
            pq.write_table(pa.table(given), tmp_path / part / f"{n}.parquet")
    pool = parquet_pool(tmp_path, vector_column="v")
    survey(pool)
    found = list(canonical(sources(pool, Place.at("unused"))[0]))
    assert all(table["sample"].type == pa.list_(pa.float32()) for table in found)  # but for the name of elements
    assert sorted(table["sample"][0].as_py() for table in found) == [[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]


@pytest.mark.parametrize("values", [[1, 2, 1, 2], [0, 1, 0, 1]])
def test_integers_that_may_be_the_names_of_other_classes_are_refused(tmp_path, local_ray, values):
    """Of stars without a 5 every label would be the star above it."""
    write_pool(tmp_path / "pool", random_images(4), label=values)
    write_pool(tmp_path / "test", random_images(4, seed=1), first_id=900, label=values)
    pool = parquet_pool(tmp_path).model_copy(update={"classes": ["1", "2", "3"]})
    with pytest.raises(PoolError, match=r"'label' holds integers, which may be the numbers of classes or the names"):
        survey(pool)
    assert survey(pool.model_copy(update={"classes": ["0", "1", "2"]})).info.rows == 4
