"""The account of a pool: whatever lies there is a sample or left out with a reason, and what sets share is said."""

import dataclasses
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prunefuse_ray import config as cfg
from prunefuse_ray.data import inventory
from prunefuse_ray.data.account import lines
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.data.inventory import checked, take, write
from prunefuse_ray.data.known_labels import check_known_labels
from prunefuse_ray.data.survey import survey
from prunefuse_ray.errors import PoolError, ScoreError
from prunefuse_ray.schemas import HELD_OUT, LEFT_OUT
from prunefuse_ray.storage import Place
from tests.support.pools import image_folder, parquet_pool, random_images, write_pool, write_tar
from tests.support.sources import COUNT, IN_FOLDERS, clutter, pool_of, there


@pytest.mark.parametrize("name", IN_FOLDERS)
def test_samples_and_what_is_left_out_are_all_that_lies_there(name, tmp_path, local_ray):
    pool = pool_of(name, tmp_path)
    clutter(tmp_path / "pool")
    if name == "webdataset":
        more = [("x.png", encode_png(random_images(1)[0])), ("x.cls", b"1"), ("y.cls", b"0"), ("._x.png", b"x")]
        write_tar(tmp_path / "pool" / "more.tar", more)
    taken = take(survey(pool))
    account = taken.inventory.sets["path"]
    assert account.samples == COUNT + (name == "webdataset")
    assert account.samples + sum(account.left_out.values()) == there(tmp_path / "pool")
    assert set(account.left_out) >= {"extension .txt", "extension .db", "hidden", "empty folder", "dangling link",
                                     "link to a folder that it lies in"}  # fmt: skip
    root = Place.at(str(tmp_path / "run"))
    write(taken, root)
    full = (root / "left_out.parquet").read_table(LEFT_OUT)
    for setting, one in taken.inventory.sets.items():
        assert full["set"].to_pylist().count(setting) == sum(one.left_out.values())
    assert (root / "inventory.json").read_json() == _plain(taken.inventory.to_json())


def _plain(tree):
    if isinstance(tree, dict):
        return {k: _plain(v) for k, v in tree.items()}
    return [_plain(v) for v in tree] if isinstance(tree, list | tuple) else tree


@pytest.fixture
def photos(tmp_path):
    """A folder as people have it: 8 images of 6 contents, one turned, one in CMYK, one broken."""
    image_folder(tmp_path / "photos", each=3)
    image_folder(tmp_path / "test", each=1)
    cat = tmp_path / "photos" / "cat"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 30), "red").save(cat / "turned.jpg", exif=exif)
    Image.new("CMYK", (40, 40)).save(cat / "press.jpg")
    (cat / "broken.jpg").write_bytes(b"x")
    for i, part in enumerate(("cat", "dog")):
        (tmp_path / "test" / part / "0.png").write_bytes(encode_png(random_images(2, seed=9)[i]))
    fields = {"path": str(tmp_path / "photos"), "test_path": str(tmp_path / "test"), "image_size": (8, 8)}
    return cfg.Pool.model_validate({"source": "images", **fields})


def test_conversions_sizes_classes_and_what_cannot_be_read(photos, tmp_path, local_ray):
    (tmp_path / "photos" / "dog" / "again.png").write_bytes((tmp_path / "photos" / "cat" / "0.png").read_bytes())
    os.link(tmp_path / "photos" / "dog" / "1.png", tmp_path / "photos" / "dog" / "hard.png")
    account = take(survey(photos)).inventory
    one = account.sets["path"]
    assert one.conversions == {"gray to RGB": 8, "CMYK to RGB": 1, "turned by EXIF orientation": 1}
    assert one.unreadable == {"not an image in a known format": 1}
    assert one.sizes == {"smallest": (8, 8), "median": (8, 8), "largest": (40, 40)}
    assert one.labels == {"cat": 6, "dog": 5}
    assert one.repeated == 2
    assert sorted(one.examples["repeated"]) == ["cat/0.png = dog/again.png", "dog/1.png = dog/hard.png"]
    told = "\n".join(lines(account.to_json(), "runs/x"))
    for said in (
        "pool: 11 samples in 11 files, 8 x 8 to 40 x 40 pixels (median 8 x 8)",
        "converted: 8 gray to RGB (cat/0.png, cat/1.png, cat/2.png, ...); 1 CMYK to RGB (cat/press.jpg)",
        "unreadable: 1 not an image in a known format (cat/broken.jpg)",
        "2 have the content of another one (",
        "by class: cat 6, dog 5",
        "classes: 0 cat, 1 dog",
        "pool and test set share no file and no content",
    ):
        assert said in told


def test_a_truncated_image_is_found_by_a_thorough_look_alone(photos, tmp_path, local_ray):
    whole = (tmp_path / "photos" / "cat" / "press.jpg").read_bytes()
    (tmp_path / "photos" / "cat" / "press.jpg").write_bytes(whole[:-60])
    found = survey(photos)
    assert len(take(found).inventory.sets["path"].unreadable) == 1
    one = take(found, thorough=True).inventory.sets["path"]
    assert one.decoded
    assert any("cat/press.jpg" in ids for reason, ids in one.examples.items() if reason.startswith("cannot be decoded"))


def share(tmp_path, test=10, shared=2):
    """A pool of 20 that holds the content of the first of its test set."""
    held_out = [encode_png(p) for p in random_images(test, seed=1)]
    own = [encode_png(p) for p in random_images(20)]
    write_pool(tmp_path / "test", random_images(test), first_id=900, image=held_out)
    write_pool(tmp_path / "pool", random_images(20), files=4, image=held_out[:shared] + own[shared:])


def test_content_that_pool_and_test_set_share_is_named_and_refused_above_a_share(tmp_path, local_ray):
    share(tmp_path)
    found = survey(parquet_pool(tmp_path, max_overlap=0.2))
    account = take(found).inventory.to_json()
    assert account["overlaps"]["test_path"]["held_out"] == 2
    assert lines(account)[-1] == (
        "2 samples of the pool have the content of 2 of the test set (s0000 = s0900, s0001 = s0901)"
    )
    told = []
    checked(take(found), found.pool, told.extend)
    assert told == [], "a run tells it by itself"
    strict = parquet_pool(tmp_path, max_overlap=0.1)
    said = r"the very bytes of 2 of the 10 samples of pool\.test_path \(s0000 = s0900, .*than the allowed share 0\.1"
    with pytest.raises(PoolError, match=said):
        checked(take(survey(strict)), strict, told.extend)
    assert told == lines(account)


def test_too_many_that_cannot_be_read_are_refused_before_anything_is_bought(photos, local_ray, monkeypatch):
    with pytest.raises(
        ScoreError, match=r"pool\.max_rejected: 1 of 9 samples cannot be used.*'cat/broken\.jpg': not an"
    ):
        checked(take(survey(photos)), photos, lambda _: None)
    monkeypatch.setattr(inventory, "ALL_ROWS", 5)
    monkeypatch.setattr(inventory, "SOME", 8)
    checked(take(survey(photos)), photos, lambda _: None)  # a single one among some says little of the whole


def test_of_a_large_pool_a_part_is_looked_at_and_the_rest_is_left_to_scoring(tmp_path, local_ray, monkeypatch):
    monkeypatch.setattr(inventory, "ALL_ROWS", 15)
    monkeypatch.setattr(inventory, "SOME", 8)
    share(tmp_path)
    taken = take(survey(parquet_pool(tmp_path, max_overlap=0.5)))
    account = taken.inventory
    assert account.compared == account.sets["path"].looked == 8
    assert account.sets["path"].repeated is None
    assert account.sets["test_path"].looked == 10
    assert "as far as 8 samples of the pool tell; the others are compared when they are first scored" in lines(
        account.to_json()
    )[-1]  # fmt: skip
    write(taken, Place.at(str(tmp_path / "run")))
    kept = Place.at(str(tmp_path / "run" / "pool" / "held-out.parquet")).read_table(HELD_OUT)
    assert kept["id"].to_pylist() == [f"s{900 + i:04d}" for i in range(10)]
    whole = take(survey(parquet_pool(tmp_path, max_overlap=0.5)), thorough=True)
    assert (whole.inventory.compared, whole.held_out) == (20, None)


def with_known_labels(where, rows, task="classification"):
    share(where, shared=0)
    (where / "known.csv").write_text(f"id,label\n{rows}")
    pool = parquet_pool(where, known_labels=str(where / "known.csv"))
    found = survey(pool)
    known = check_known_labels(pool, task, found.info, found.indexes["path"])
    samples = {**found.sets, "path": dataclasses.replace(found.sets["path"], task_name=task)}
    return take(dataclasses.replace(found, sets=samples), known).inventory


def test_known_labels_are_counted_by_class(tmp_path, local_ray):
    account = with_known_labels(tmp_path, "s0003,1\ns0004,1\ns0005,0\n")
    assert account.known_labels == {"0": 1, "1": 2}
    assert "known labels: 3: 0 1, 1 2" in lines(account.to_json())
    of_several = {**account.to_json(), "known": 2}  # one of the samples has two labels
    assert "known labels: 2: 0 1, 1 2" in lines(of_several)


def test_samples_with_known_labels_are_counted_and_not_their_classes(tmp_path, local_ray):
    account = with_known_labels(tmp_path, "s0003,0;1\ns0004,1\n", "multi_label")
    assert (account.known, account.known_labels) == (2, {"0": 1, "1": 2})


def test_texts_that_are_cut_or_missing_are_counted(tmp_path, local_ray):
    for part, first in (("pool", 0), ("test", 900)):
        texts = ["a long text", "short", None, "a long text"] if first == 0 else ["other", "more"]
        ids = [f"s{first + i}" for i in range(len(texts))]
        (tmp_path / part).mkdir()
        table = pa.table({"id": ids, "text": texts, "label": [i % 2 for i in range(len(texts))]})
        pq.write_table(table, tmp_path / part / "a.parquet")
    one = take(survey(parquet_pool(tmp_path, text_column="text", text_length=6))).inventory.sets["path"]
    assert one.conversions == {"text cut": 2}
    assert one.unreadable == {"no text (null)": 1}
    assert (one.repeated, one.sizes) == (1, {})


@pytest.mark.parametrize("broken", ["head", "null", "cut"])
def test_a_held_out_sample_that_cannot_be_read_is_refused_before_anything_is_bought(tmp_path, local_ray, broken):
    held_out = [encode_png(p) for p in random_images(4, seed=1)]
    held_out[2] = {"head": b"x", "null": None, "cut": held_out[2][:-30]}[broken]
    write_pool(tmp_path / "pool", random_images(20))
    write_pool(tmp_path / "test", random_images(4), first_id=900, image=pa.array(held_out, pa.binary()))
    pool = parquet_pool(tmp_path)
    with pytest.raises(PoolError, match=r"pool\.test_path: 1 of 4 samples cannot be read, e\.g\. 's0902': "):
        checked(take(survey(pool)), pool, lambda _: None)
