"""Image folders: sub-folders are classes, paths are ids."""

import numpy as np
import pyarrow as pa
import pytest

from prunefuse_ray import config as cfg
from prunefuse_ray.data.images import ImageForm, decode, encode_png
from prunefuse_ray.data.stream import stream
from prunefuse_ray.data.survey import check_unchanged, materialise, sources, survey
from prunefuse_ray.errors import LedgerError, PoolError
from prunefuse_ray.storage import Place
from tests.support.pools import image_folder, random_images, rows
from tests.support.surveys import opened

GREY8 = ImageForm(height=8, width=8, channels=1)


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
    with pytest.raises(LedgerError, match=r"then 6 files, .* now 7 files"):
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


def test_a_test_folder_with_another_class_is_refused(tmp_path):
    image_folder(tmp_path / "train")
    image_folder(tmp_path / "val", ("cat", "cow"))
    with pytest.raises(PoolError, match=r"pool\.test_path: folder 'cow'"):
        survey(cfg.Pool(source="images", path=str(tmp_path / "train"), test_path=str(tmp_path / "val")))


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
