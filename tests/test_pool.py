"""Pools: found, checked, streamed and fetched from alike, whatever form they have."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefuse_ray import config as cfg
from prunefuse_ray.acquisition import random_scores
from prunefuse_ray.errors import LedgerError, PoolError
from prunefuse_ray.images import ImageForm, decode, encode_png
from prunefuse_ray.pool import digits_tables, groups, locate_parquet, random_choice, stream
from prunefuse_ray.storage import Place
from prunefuse_ray.survey import check_unchanged, materialise, sources, survey

from .conftest import pictures, write_pool

GREY8 = ImageForm(height=8, width=8, channels=1)


def parquet_pool(tmp_path, **more) -> cfg.Pool:
    return cfg.Pool(
        source="parquet", path=str(tmp_path / "pool"), test_path=str(tmp_path / "test"), classes=2, channels=1, **more
    )


@pytest.fixture
def made(tmp_path, local_ray):
    """A Parquet pool of 40 samples in 3 files and a test set of 6."""
    pixels = pictures(40)
    ids = write_pool(tmp_path / "pool", pixels, files=3)
    write_pool(tmp_path / "test", pictures(6, seed=1), first_id=900)
    return parquet_pool(tmp_path), pixels, ids


def rows(dataset) -> dict:
    table = pa.concat_tables(list(dataset.iter_batches(batch_format="pyarrow", batch_size=None)))
    return {r["id"]: r for r in table.to_pylist()}


def test_the_survey_finds_what_the_configuration_left_open(made):
    pool, _, _ = made
    info = survey(pool).info
    assert (info.rows, info.files, info.id_type, info.classes, info.image_size) == (40, 3, "string", ["0", "1"], (8, 8))


def test_the_fingerprint_does_not_depend_on_the_files_a_pool_is_cut_into(made, tmp_path):
    pool, pixels, _ = made
    write_pool(tmp_path / "other" / "pool", pixels, files=5)
    write_pool(tmp_path / "other" / "test", pixels[:2])
    assert survey(parquet_pool(tmp_path / "other")).info.id_digest == survey(pool).info.id_digest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_column": "img"}, ["pool.image_column", "'img'", "it has id, image, label"]),
        ({"label_column": "y"}, ["pool.label_column", "'y'"]),
        ({"id_column": "key"}, ["pool.id_column", "'key'"]),
        ({"id_column": "image"}, ["pool.id_column", "strings or integers"]),
        ({"path": "/nowhere/at/all"}, ["pool.path", "no Parquet files"]),
    ],
)
def test_a_pool_that_is_not_what_was_said_is_refused(made, change, said):
    pool = made[0].model_copy(update=change)
    with pytest.raises(PoolError) as caught:
        survey(pool)
    for part in said:
        assert part in str(caught.value)


def test_labels_outside_the_classes_are_refused_with_their_ids(tmp_path, local_ray):
    write_pool(tmp_path / "pool", pictures(4), label=[0, 1, 2, 1])
    write_pool(tmp_path / "test", pictures(4))
    with pytest.raises(PoolError, match=r"labels outside 0 \.\. 1, e\.g\. 2 \(id 's0002'\)"):
        survey(parquet_pool(tmp_path))


def test_duplicate_ids_are_refused_wherever_they_lie(tmp_path, local_ray):
    write_pool(tmp_path / "pool", pictures(6), files=3, id=["a", "b", "c", "d", "e", "a"])
    write_pool(tmp_path / "test", pictures(2))
    with pytest.raises(PoolError, match=r"duplicate ids, e\.g\. 'a'"):
        survey(parquet_pool(tmp_path))


def test_null_ids_are_refused(tmp_path, local_ray):
    write_pool(tmp_path / "pool", pictures(3), id=["a", None, "c"])
    write_pool(tmp_path / "test", pictures(2))
    with pytest.raises(Exception, match="1 null ids"):
        survey(parquet_pool(tmp_path))


def test_a_changed_pool_is_refused(made, tmp_path):
    pool, pixels, _ = made
    info = survey(pool).info
    check_unchanged(pool, info)
    write_pool(tmp_path / "pool" / "more", pixels[:3], first_id=50)
    with pytest.raises(LedgerError, match=r"has changed since the run began \(then 3 files.*now 4 files"):
        check_unchanged(pool, info)


def test_the_stream_gives_every_sample_but_the_excluded_ones(made):
    pool, pixels, ids = made
    source, _ = sources(pool, Place.at("unused"))
    got = rows(stream(source, exclude=pa.array([ids[3], ids[39]])))
    assert sorted(got) == sorted(set(ids) - {ids[3], ids[39]})
    np.testing.assert_array_equal(decode(got[ids[7]]["image"], GREY8), pixels[7])
    assert "label" not in got[ids[0]]


def test_fetching_gives_the_samples_asked_for_with_their_labels(made):
    pool, pixels, ids = made
    source, _ = sources(pool, Place.at("unused"))
    got = rows(stream(source, only=pa.array([ids[11], ids[30]]), label=True))
    assert {i: r["label"] for i, r in got.items()} == {ids[11]: 1, ids[30]: 0}
    np.testing.assert_array_equal(decode(got[ids[30]]["image"], GREY8), pixels[30])


def test_integer_ids_and_other_column_names(tmp_path, local_ray):
    for part, n in (("pool", 9), ("test", 3)):
        (tmp_path / part).mkdir()
        table = {
            "key": pa.array(range(n), pa.int32()),
            "png": pa.array([encode_png(p) for p in pictures(n)]),
            "y": pa.array([i % 2 for i in range(n)], pa.int16()),
        }
        pq.write_table(pa.table(table), tmp_path / part / "a.parquet")
    pool = parquet_pool(tmp_path, id_column="key", image_column="png", label_column="y")
    assert survey(pool).info.id_type == "int64"
    got = rows(stream(sources(pool, Place.at("unused"))[0], only=pa.array([2, 5]), label=True))
    assert {i: r["label"] for i, r in got.items()} == {2: 0, 5: 1}


def image_folder(root, classes=("cat", "dog"), each=3):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            (root / name / f"{i}.png").write_bytes(encode_png(pictures(each, seed=c)[i]))


def test_an_image_folder_becomes_an_index_and_streams_alike(tmp_path, local_ray):
    image_folder(tmp_path / "train")
    image_folder(tmp_path / "val", each=2)
    pool = cfg.Pool(source="images", path=str(tmp_path / "train"), test_path=str(tmp_path / "val"), channels=1)
    found = survey(pool)
    assert (found.info.rows, found.info.classes, found.info.image_size) == (6, ["cat", "dog"], (8, 8))
    root = Place.at(str(tmp_path / "run"))
    materialise(found, root)
    source, test = sources(pool, root)
    got = rows(stream(source, exclude=pa.array(["cat/0.png"]), label=True))
    assert {i: r["label"] for i, r in got.items()} == {
        "cat/1.png": 0, "cat/2.png": 0, "dog/0.png": 1, "dog/1.png": 1, "dog/2.png": 1,
    }  # fmt: skip
    np.testing.assert_array_equal(decode(got["dog/1.png"]["image"], GREY8), pictures(3, seed=1)[1])
    assert test.image_root == Place.at(str(tmp_path / "val"))
    check_unchanged(pool, found.info)
    (tmp_path / "train" / "dog" / "9.png").write_bytes(b"x")
    with pytest.raises(LedgerError, match="then 6 pictures; now 7 pictures"):
        check_unchanged(pool, found.info)


@pytest.mark.parametrize(
    ("classes", "loose", "said"),
    [(("cat",), False, "at least two"), (("cat", "dog"), True, "outside any class folder"), ((), False, "no pictures")],
)
def test_a_folder_that_is_no_image_folder_is_refused(tmp_path, classes, loose, said):
    (tmp_path / "train").mkdir()
    image_folder(tmp_path / "train", classes)
    if loose:
        (tmp_path / "train" / "x.png").write_bytes(b"x")
    pool = cfg.Pool(source="images", path=str(tmp_path / "train"), test_path=str(tmp_path / "train"))
    with pytest.raises(PoolError, match=said):
        survey(pool)


def test_a_test_folder_with_another_class_is_refused(tmp_path):
    image_folder(tmp_path / "train")
    image_folder(tmp_path / "val", ("cat", "cow"))
    with pytest.raises(PoolError, match=r"pool\.test_path: folder 'cow'"):
        survey(cfg.Pool(source="images", path=str(tmp_path / "train"), test_path=str(tmp_path / "val")))


def test_digits_are_the_whole_set_with_a_fifth_held_out():
    pool, test = digits_tables()
    assert (pool.num_rows, test.num_rows) == (1437, 360)
    ids = pool["id"].to_pylist() + test["id"].to_pylist()
    assert sorted(ids) == [f"digit-{i:04d}" for i in range(1797)]
    from sklearn.datasets import load_digits

    digits = load_digits()
    row = int(ids[5].removeprefix("digit-"))
    assert pool["label"][5].as_py() == digits.target[row]
    pixels = decode(pool["image"][5].as_py(), GREY8)[:, :, 0]
    assert np.abs(pixels - digits.images[row] * (255 / 16)).max() <= 0.5


def test_random_choice_is_the_global_top_of_the_hash_scores(made):
    pool, _, ids = made
    source, _ = sources(pool, Place.at("unused"))
    exclude = [ids[0], ids[20]]
    chosen = random_choice(source, 7, 5, 2, pa.array(exclude))
    scores = dict(zip(ids, random_scores(np.array(ids, object), 5, 2), strict=True))
    expected = sorted(set(ids) - set(exclude), key=lambda i: (-scores[i], i))[:7]
    assert chosen["id"].to_pylist() == expected


def test_groups_hold_every_file_once(made):
    source = locate_parquet(Place.at(made[0].path), made[0], "pool.path")
    for count in (1, 2, 3, 64):
        cut = groups(source, count)
        assert sorted(f for g in cut for f in g.files) == sorted(source.files)
        assert len(cut) == min(count, 3)
