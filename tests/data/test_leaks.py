"""What must not be in two sets at once is refused, by file and by id; and a run does not write into its own pool."""

import os
import shutil
from contextlib import nullcontext

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefuse_ray import config as cfg
from prunefuse_ray.data.leaks import check_outside
from prunefuse_ray.data.survey import survey
from prunefuse_ray.errors import ConfigError, PoolError
from prunefuse_ray.storage import Place
from tests.support.pools import image_folder, parquet_pool, random_images, write_pool


def images(path, test, **more):
    where = path if isinstance(path, list) else str(path)
    return cfg.Pool(source="images", path=where, test_path=str(test), channels=1, **more)


def test_a_pool_that_contains_the_test_set_is_refused_with_the_remedy(tmp_path, local_ray):
    image_folder(tmp_path / "photos", ("cat", "dog"))
    image_folder(tmp_path / "photos" / "test", ("cat", "dog"))
    said = r"share 6 of the 6 files of pool\.test_path.*'.*/photos' of pool\.path contains '.*/photos/test' of"
    with pytest.raises(PoolError, match=said):
        survey(images(tmp_path / "photos", tmp_path / "photos" / "test"), labeled=False)
    beside = [str(tmp_path / "photos" / "cat"), str(tmp_path / "photos" / "dog")]
    both = images(beside, tmp_path / "photos" / "test")
    with pytest.raises(PoolError, match="would both begin with"):
        survey(both, labeled=False)
    info = survey(images(tmp_path / "photos" / "[cd]*", tmp_path / "photos" / "test"), labeled=False).info
    assert info.rows == 6


def test_a_pattern_no_longer_reaches_into_the_test_folder(tmp_path, local_ray):
    for i, (part, first) in enumerate((("data/a", 0), ("data/test/deep", 900))):
        write_pool(tmp_path / part, random_images(4, seed=i), first_id=first)
        os.rename(tmp_path / part / "part-0.parquet", tmp_path / part / "img0.parquet")
    pool = parquet_pool(tmp_path).model_copy(
        update={"path": str(tmp_path / "data" / "*" / "img*.parquet"), "test_path": str(tmp_path / "data" / "test")}
    )
    assert survey(pool).info.rows == 4
    across = pool.model_copy(update={"path": str(tmp_path / "data" / "**" / "img*.parquet")})
    with pytest.raises(PoolError, match=r"share 1 of the 1 files of pool\.test_path"):
        survey(across)


def test_a_shared_file_is_found_behind_links(tmp_path, local_ray):
    image_folder(tmp_path / "train")
    image_folder(tmp_path / "real")
    shutil.copytree(tmp_path / "real", tmp_path / "test", symlinks=True)
    (tmp_path / "test" / "cat" / "9.png").symlink_to(tmp_path / "train" / "cat" / "0.png")
    with pytest.raises(
        PoolError, match=r"share 1 of the 7 files .*train/cat/0\.png'; give files that no two sets share"
    ):
        survey(images(tmp_path / "train", tmp_path / "test"))
    (tmp_path / "test" / "cat" / "9.png").unlink()
    assert survey(images(tmp_path / "train", tmp_path / "test")).info.rows == 6, "the same names are no shared ids"


def test_shared_ids_of_a_column_are_refused_and_those_of_file_names_are_not(tmp_path, local_ray):
    write_pool(tmp_path / "pool", random_images(10))
    write_pool(tmp_path / "test", random_images(4, seed=1), first_id=8)
    with pytest.raises(PoolError, match=r"pool\.path and pool\.test_path share 2 ids, e\.g\. 's0008', 's0009'"):
        survey(parquet_pool(tmp_path))
    assert survey(parquet_pool(tmp_path, id_column=None)).info.rows == 10
    write_pool(tmp_path / "test", random_images(4, seed=1), first_id=900)
    write_pool(tmp_path / "val", random_images(4, seed=2), first_id=903)
    with pytest.raises(PoolError, match=r"pool\.test_path and pool\.validation_path share 1 ids, e\.g\. 's0903'"):
        survey(parquet_pool(tmp_path, validation_path=str(tmp_path / "val")))


def test_ids_in_two_unicode_forms_are_one_id(tmp_path, local_ray):
    nfc, nfd = "caf\u00e9", "cafe\u0301"
    write_pool(tmp_path / "pool", random_images(3), id=["a", nfc, "b"])
    write_pool(tmp_path / "test", random_images(2, seed=1), id=[nfd, "c"])
    with pytest.raises(PoolError, match="share 1 ids"):
        survey(parquet_pool(tmp_path))
    write_pool(tmp_path / "pool", random_images(3), id=["a", nfc, nfd])
    with pytest.raises(
        PoolError, match=r"duplicate ids, e\.g\. .*two Unicode forms of a name, NFC and NFD, are one id"
    ):
        survey(parquet_pool(tmp_path))


def test_integer_ids_are_compared_as_numbers(tmp_path, local_ray):
    for part, first in (("pool", 0), ("test", 5)):
        table = pq.read_table(_written(tmp_path, part))
        ids = pa.array(range(first, first + 6), pa.int32() if part == "pool" else pa.int64())
        pq.write_table(table.set_column(0, "id", ids), tmp_path / part / "part-0.parquet")
    with pytest.raises(PoolError, match=r"share 1 ids, e\.g\. 5"):
        survey(parquet_pool(tmp_path))
    names = pa.array(["5", *"abcde"])
    pq.write_table(table.set_column(0, "id", names), tmp_path / "test" / "part-0.parquet")
    with pytest.raises(PoolError, match=r"share 1 ids, e\.g\. '5'"):
        survey(parquet_pool(tmp_path))


def _written(tmp_path, part):
    write_pool(tmp_path / part, random_images(6))
    return tmp_path / part / "part-0.parquet"


def test_a_run_directory_in_the_pool_is_refused(tmp_path):
    pool = images(tmp_path / "photos", tmp_path / "test")
    inside = Place.at(str(tmp_path / "photos" / "runs" / "one"))
    with pytest.raises(
        ConfigError, match=r"run\.directory: '.*/photos/runs/one' lies in the pool's folder '.*/photos'"
    ):
        check_outside(pool, inside, "run.directory")
    check_outside(pool, Place.at(str(tmp_path / "photos2")), "run.directory")
    pattern = images(str(tmp_path / "photos" / "*.png"), tmp_path / "test")
    check_outside(pattern, inside, "run.directory")


def test_a_directory_in_the_pool_is_found_behind_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    pool = cfg.Pool(source="parquet", path=str(tmp_path / "link"), test_path=str(tmp_path / "test"))
    with pytest.raises(ConfigError, match=r"--out: .* lies in the pool's folder"):
        check_outside(pool, Place.at(str(tmp_path / "real" / "out")), "--out")
    check_outside(pool, Place.at(str(tmp_path / "other")), "--out")


@pytest.mark.parametrize(
    ("pattern", "reached"),
    [("**/*.png", True), ("*/**/*.png", True), ("*", True), ("*.png", False), ("train-*/*.png", False)],
)
def test_a_directory_that_a_pattern_reaches_is_refused(tmp_path, pattern, reached):
    pool = cfg.Pool(source="images", path=str(tmp_path / "photos" / pattern), test_samples=5, classes=2)
    directory = Place.at(str(tmp_path / "photos/runs/one"))
    with pytest.raises(ConfigError, match="reach of the pool's pattern") if reached else nullcontext():
        check_outside(pool, directory, "run.directory")
