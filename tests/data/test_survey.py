"""Before a run: what pool and test set are, found without writing anything."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prunefuse_ray.selection.random import select_random

from prunefuse_ray import config as cfg
from prunefuse_ray.data.images import ImageForm, decode, encode_png
from prunefuse_ray.data.stream import stream
from prunefuse_ray.data.survey import check_unchanged, materialise, sources, survey
from prunefuse_ray.errors import LedgerError, PoolError
from prunefuse_ray.storage import Place
from tests.support.pools import parquet_pool, random_images, rows, write_pool

GREY8 = ImageForm(height=8, width=8, channels=1)


def test_the_survey_finds_what_the_configuration_left_open(made):
    pool, _, _ = made
    info = survey(pool).info
    assert (info.rows, info.files, info.id_type, info.classes, info.sample_size) == (
        40,
        3,
        "string",
        ["0", "1"],
        (8, 8),
    )


def test_integer_ids_and_other_column_names(tmp_path, local_ray):
    for part, n in (("pool", 9), ("test", 3)):
        (tmp_path / part).mkdir()
        table = {
            "key": pa.array(range(n), pa.int32()),
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


def image_folder(root, classes=("cat", "dog"), each=3):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            (root / name / f"{i}.png").write_bytes(encode_png(random_images(each, seed=c)[i]))


def test_tensors_cannot_be_scaled_for_a_crop(tmp_path, local_ray):
    for part, first in (("pool", 0), ("test", 900)):
        write_pool(tmp_path / part, random_images(12), first_id=first, image=pa.array(random_images(12).tolist()))
    assert survey(parquet_pool(tmp_path)).info.sample_size == (8, 8)
    with pytest.raises(PoolError, match=r"crop_ratio 0\.875 crops scaled images, but column 'image' holds tensors"):
        survey(parquet_pool(tmp_path, crop_ratio=0.875))


def test_an_image_folder_becomes_an_index_and_streams_alike(tmp_path, local_ray):
    image_folder(tmp_path / "train")
    image_folder(tmp_path / "val", each=2)
    pool = cfg.Pool(source="images", path=str(tmp_path / "train"), test_path=str(tmp_path / "val"), channels=1)
    found = survey(pool)
    assert (found.info.rows, found.info.classes, found.info.sample_size) == (6, ["cat", "dog"], (8, 8))
    root = Place.at(str(tmp_path / "run"))
    materialise(found, root)
    source, test = sources(pool, root)
    got = rows(stream(source, exclude=pa.array(["cat/0.png"]), label=True))
    assert {i: r["label"] for i, r in got.items()} == {
        "cat/1.png": 0, "cat/2.png": 0, "dog/0.png": 1, "dog/1.png": 1, "dog/2.png": 1,
    }  # fmt: skip
    np.testing.assert_array_equal(decode(got["dog/1.png"]["sample"], GREY8), random_images(3, seed=1)[1])
    assert test.roots == (Place.at(str(tmp_path / "val")),)
    check_unchanged(pool, found.info)
    (tmp_path / "train" / "dog" / "9.png").write_bytes(b"x")
    with pytest.raises(LedgerError, match=r"then 6 images, .* now 7 images"):
        check_unchanged(pool, found.info)


@pytest.mark.parametrize(
    ("classes", "loose", "said"),
    [
        (("cat",), False, "at least two"),
        (("cat", "dog"), True, "outside any class folder"),
        ((), False, "no files that end in .png"),
    ],
)
def test_a_folder_that_is_no_image_folder_is_refused(tmp_path, classes, loose, said):
    (tmp_path / "train").mkdir()
    image_folder(tmp_path / "train", classes)
    if loose:
        (tmp_path / "train" / "x.png").write_bytes(b"x")
    pool = cfg.Pool(source="images", path=str(tmp_path / "train"), test_path=str(tmp_path / "train"))
    with pytest.raises(PoolError, match=said):
        survey(pool)


def test_a_flat_folder_needs_no_labels_where_people_give_them(tmp_path, local_ray):
    image_folder(tmp_path / "val", each=2)
    (tmp_path / "flat" / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "deep/a.png"):
        (tmp_path / "flat" / name).write_bytes(encode_png(random_images(1)[0]))
    folders = {"path": str(tmp_path / "flat"), "test_path": str(tmp_path / "val")}
    pool = cfg.Pool(source="images", channels=1, classes=["dog", "cat"], **folders)
    found = survey(pool, labeled=False)
    assert (found.info.rows, found.info.classes) == (3, ["dog", "cat"])
    assert survey(pool.model_copy(update={"classes": None}), labeled=False).info.classes == ["cat", "dog"]
    root = Place.at(str(tmp_path / "run"))
    materialise(found, root)
    assert sorted(rows(stream(sources(pool, root)[0]))) == ["a.png", "b.png", "deep/a.png"]
    with pytest.raises(PoolError, match="outside any class folder"):
        survey(pool)


def test_a_parquet_pool_needs_no_label_column_where_people_give_labels(made, tmp_path):
    pool, _, _ = made
    for file in (tmp_path / "pool").iterdir():
        pq.write_table(pq.read_table(file).drop_columns(["label"]), file)
    assert survey(pool, labeled=False).info.rows == 40
    with pytest.raises(PoolError, match="no column 'label'"):
        survey(pool)


def test_a_test_folder_with_another_class_is_refused(tmp_path):
    image_folder(tmp_path / "train")
    image_folder(tmp_path / "val", ("cat", "cow"))
    with pytest.raises(PoolError, match=r"pool\.test_path: folder 'cow'"):
        survey(cfg.Pool(source="images", path=str(tmp_path / "train"), test_path=str(tmp_path / "val")))
