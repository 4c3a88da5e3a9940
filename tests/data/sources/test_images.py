"""Image folders: sub-folders are classes, paths are ids."""

import numpy as np
import pytest
from PIL import Image

from prunefuse_ray import config as cfg
from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.data.stream import stream
from prunefuse_ray.data.survey import check_unchanged, materialize, sources, survey
from prunefuse_ray.errors import LedgerError, PoolError
from prunefuse_ray.storage import Place
from tests.support.pools import image_folder, random_images, rows
from tests.support.surveys import opened

GRAY8 = ImageForm(height=8, width=8, channels=1)


def test_an_image_folder_becomes_an_index_and_streams_alike(tmp_path, local_ray):
    image_folder(tmp_path / "train")
    image_folder(tmp_path / "val", each=2)
    pool = cfg.Pool(source="images", path=str(tmp_path / "train"), test_path=str(tmp_path / "val"), channels=1)
    found = survey(pool)
    assert (found.info.rows, found.info.classes, found.info.sample_size) == (6, ["cat", "dog"], (8, 8))
    root = Place.at(str(tmp_path / "run"))
    materialize(found, root)
    source, test = sources(pool, root)
    got = rows(stream(source, label=True))
    assert {i: r["label"] for i, r in got.items()} == {
        "cat/0.png": 0, "cat/1.png": 0, "cat/2.png": 0, "dog/0.png": 1, "dog/1.png": 1, "dog/2.png": 1,
    }  # fmt: skip
    np.testing.assert_array_equal(GRAY8.decode(got["dog/1.png"]["sample"]), random_images(3, seed=1)[1])
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
        ((), False, r"no files that end in \.png, \.jpg, .*, \.\.\.; there are 1 extension \.txt \(notes\.txt\)"),
        (("_unlabeled", "cat"), False, "the folder '_unlabeled' is what other tools call samples without a label"),
        (("Cat", "cat", "dog"), False, "'Cat' and 'cat' differ by case or blanks alone"),
        (("train", "val"), False, "called train, val, as the parts of a data set are: give the folder .*/train/train"),
    ],
)
def test_a_folder_that_is_no_image_folder_is_refused(tmp_path, classes, loose, said):
    (tmp_path / "train").mkdir()
    image_folder(tmp_path / "train", classes)
    (tmp_path / "train" / "notes.txt").write_bytes(b"x")
    image_folder(tmp_path / "test")
    if loose:
        (tmp_path / "train" / "x.png").write_bytes(b"x")
    pool = cfg.Pool(source="images", path=str(tmp_path / "train"), test_path=str(tmp_path / "test"))
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
    materialize(found, root)
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
    image_folder(tmp_path / "test")
    pool = cfg.Pool(source="images", path=paths, test_path=str(tmp_path / "test"), channels=1)
    info, source, _ = opened(pool, Place.at(str(tmp_path / "run")))
    assert info.classes == ["cat", "dog"]
    got = rows(stream(source, label=True))
    assert {i: r["label"] for i, r in got.items()} == {"cat/a.png": 0, "dog/b.png": 1}
    np.testing.assert_array_equal(GRAY8.decode(got["dog/b.png"]["sample"]), random_images(2)[0])


def test_class_folders_in_two_unicode_forms_are_one_class(tmp_path, local_ray):
    """macOS spells names in NFD, most others in NFC: the same class in pool and test set, and in pool.classes."""
    nfc, nfd = "caf\u00e9", "cafe\u0301"
    image_folder(tmp_path / "train", (nfd, "tea"))
    image_folder(tmp_path / "val", (nfc, "tea"), each=2)
    where = {"path": str(tmp_path / "train"), "test_path": str(tmp_path / "val"), "channels": 1}
    info, source, test = opened(cfg.Pool(source="images", **where), Place.at(str(tmp_path / "run")))
    assert info.classes == [nfc, "tea"]
    got = rows(stream(source, label=True))
    assert {i: r["label"] for i, r in got.items()}[f"{nfd}/0.png"] == 0, "the id is the path as it is on the disk"
    assert sorted(r["label"] for r in rows(stream(test, label=True)).values()) == [0, 0, 1, 1]
    assert survey(cfg.Pool(source="images", classes=["tea", nfd], **where)).indexes["path"].labels == {0: 3, 1: 3}
    (tmp_path / "train" / nfc).mkdir()
    (tmp_path / "train" / nfc / "0.png").write_bytes(encode_png(random_images(1)[0]))
    with pytest.raises(PoolError, match=r"in another Unicode form, NFC or NFD.* would both begin with"):
        survey(cfg.Pool(source="images", **where))


def test_files_of_every_format_that_pillow_decodes_are_samples(tmp_path, local_ray):
    image_folder(tmp_path / "val")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "dog").mkdir()
    image = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
    for ending in ("jfif", "gif", "avif", "jpe", "ppm", "jp2", "webp", "tga", "TIF"):
        image.save(tmp_path / "train" / "cat" / f"a.{ending}")
    image.save(tmp_path / "train" / "dog" / "b.png")
    (tmp_path / "train" / "cat" / "c.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    (tmp_path / "train" / "cat" / "empty.png").write_bytes(b"")
    pool = cfg.Pool(source="images", path=str(tmp_path / "train"), test_path=str(tmp_path / "val"), image_size=(8, 8))
    found = survey(pool)
    assert found.info.rows == 10
    assert found.indexes["path"].left_out.counts == {"empty": 1, "extension .eps": 1}
    root = Place.at(str(tmp_path / "run"))
    materialize(found, root)
    for row in rows(stream(sources(pool, root)[0])).values():
        shown = ImageForm(height=8, width=8, channels=3).decode(row["sample"])
        assert np.abs(shown.astype(int) - 90).max() <= 3, row["id"]


def test_folders_have_no_numbers(tmp_path):
    """Their places among the classes would become the targets."""
    for part in ("train", "test"):
        image_folder(tmp_path / part, ("angle",))
    pool = cfg.Pool(source="images", path=str(tmp_path / "train"), test_path=str(tmp_path / "test"), classes=["angle"])
    with pytest.raises(PoolError, match="folders name classes, and the labels of task 'regression' are numbers"):
        survey(pool, task="regression")


def test_two_images_do_not_share_a_mask(tmp_path):
    for part in ("pool", "test"):
        for folder, name in (("images", "a.png"), ("images", "a.bmp"), ("masks", "a.png")):
            (tmp_path / part / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / part / folder / name)
    pool = cfg.Pool(source="images", path=str(tmp_path / "pool/images"), test_path=str(tmp_path / "test/images"),
                    mask_folder="masks", classes=["x", "y"], channels=1)  # fmt: skip
    with pytest.raises(PoolError, match=r"'a\.bmp' and 'a\.png' would have the same mask"):
        survey(pool, task="segmentation")
