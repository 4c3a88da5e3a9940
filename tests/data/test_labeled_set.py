"""Samples in memory: the right images with the right labels."""

import errno
import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.data.labeled_set import check_masks, held_out, load_samples, load_test
from prunefuse_ray.errors import PoolError
from tests.support.pools import random_images, source, write_pool

FORM = ImageForm(height=8, width=8, channels=1)


@pytest.fixture
def labeled(tmp_path):
    ids = write_pool(tmp_path / "samples", random_images(50), files=2)
    return source(tmp_path / "samples"), pa.table({"id": ids, "label": [i % 2 for i in range(50)]})


def test_samples_without_their_images_are_said(labeled):
    samples, labels = labeled
    more = pa.concat_tables([labels, pa.table({"id": ["s9999"], "label": [0]})])
    with pytest.raises(PoolError, match="51 labels, but 50 of their samples"):
        load_samples(samples, FORM, more)


def test_samples_come_in_the_order_of_their_ids_with_their_labels(labeled):
    samples, labels = labeled
    shuffled = labels.take(np.random.default_rng(0).permutation(50))
    loaded = load_samples(samples, FORM, shuffled)
    assert loaded.labels_N.tolist() == [i % 2 for i in range(50)]
    np.testing.assert_array_equal(loaded.values_N, random_images(50))


def test_only_samples_with_a_label_are_read(labeled):
    samples, labels = labeled
    loaded = load_samples(samples, FORM, labels.slice(10, 5))
    np.testing.assert_array_equal(loaded.values_N, random_images(50)[10:15])


def test_a_test_image_that_cannot_be_read_is_said(tmp_path):
    write_pool(tmp_path, random_images(3), image=pa.array([b"x", None, b""], pa.binary()))
    with pytest.raises(PoolError, match=r"sample 's0000' cannot be read .*; remove or fix it"):
        load_test(source(tmp_path), FORM)


def test_the_test_set_is_read_once_and_again_when_it_changes(tmp_path):
    write_pool(tmp_path, random_images(4))
    first = load_test(source(tmp_path), FORM)
    assert load_test(source(tmp_path), FORM) is first
    write_pool(tmp_path, random_images(6))
    assert len(load_test(source(tmp_path), FORM)) == 6
    same, before = source(tmp_path), load_test(source(tmp_path), FORM).labels_N.clone()
    for file in same.files:  # labels are corrected, and take as many bytes as before
        table = pq.read_table(file)
        other = pa.array([1 - label for label in table["label"].to_pylist()], table["label"].type)
        pq.write_table(table.set_column(table.column_names.index("label"), "label", other), file)
    assert source(tmp_path).sizes == same.sizes
    assert torch.equal(load_test(source(tmp_path), FORM).labels_N, 1 - before)


def test_another_column_of_the_same_test_files_is_another_test_set(tmp_path):
    """Two runs in one process: the first predicts one label of a file, the second another one."""
    write_pool(tmp_path, random_images(4))
    (file,) = source(tmp_path).files
    table = pq.read_table(file)
    pq.write_table(table.append_column("other", pa.array([1 - n for n in table["label"].to_pylist()])), file)
    first = load_test(source(tmp_path), FORM)
    other = load_test(replace(source(tmp_path), label_column="other"), FORM)
    assert torch.equal(other.labels_N, 1 - first.labels_N)


def test_samples_on_disk_are_those_in_memory(labeled, tmp_path):
    samples, labels = labeled
    held, file = load_samples(samples, FORM, labels.slice(3, 40)), tmp_path / "decoded"
    written = load_samples(samples, FORM, labels.slice(3, 40), file)
    mapped = load_samples(samples, FORM, labels.slice(3, 40), file, fill=False)
    file.unlink()
    for other in (written, mapped):
        assert torch.equal(other.values_N, held.values_N)
        assert torch.equal(other.labels_N, held.labels_N)


def test_a_disk_without_room_is_said_before_training(labeled, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    samples, labels = labeled
    with pytest.raises(PoolError, match=r"no room for .* GiB .*No space left.*sample_memory_gb"):
        load_samples(samples, FORM, labels, tmp_path / "decoded")
    assert not (tmp_path / "decoded").exists()


def test_held_out_samples_stay_held_out_while_the_set_grows():
    labels = pa.table({"id": [f"s{i}" for i in range(400)], "label": [0] * 400})
    train, held = held_out(labels, 0.2, seed=3)
    assert sorted(train["id"].to_pylist() + held["id"].to_pylist()) == sorted(labels["id"].to_pylist())
    assert 50 < held.num_rows < 110
    fewer, early = held_out(labels.slice(0, 100), 0.2, seed=3)
    assert set(early["id"].to_pylist()) <= set(held["id"].to_pylist())
    assert set(fewer["id"].to_pylist()) <= set(train["id"].to_pylist())
    assert held_out(labels, 0.2, seed=4)[1]["id"].to_pylist() != held["id"].to_pylist()


def test_neither_side_of_a_held_out_set_is_empty():
    labels = pa.table({"id": ["a", "b", "c"], "label": [0, 1, 0]})
    for share in (0.001, 0.5):
        for seed in range(20):
            train, held = held_out(labels, share, seed)
            assert train.num_rows > 0 < held.num_rows
    assert held_out(labels, 0.0, 0)[0] is labels


@pytest.mark.parametrize("numbers", [[0, 255], [255], [0, 1, 255], [0, 1], [0]], ids=str)
def test_masks_in_black_and_white_are_not_taken_for_pixels_that_are_left_out(tmp_path, numbers, caplog):
    """Many programs write 255 for the second class, which is the number of pixels that nobody can tell."""
    masks = np.random.default_rng(0).choice(np.array(numbers, np.uint8), (6, 8, 8))
    table = pa.table({
        "id": list("abcdef"),
        "image": pa.array([encode_png(image) for image in random_images(6)], pa.binary()),
        "label": pa.array([encode_png(mask) for mask in masks], pa.binary()),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "held.parquet")
    held, labels = replace(source(tmp_path), task="segmentation"), table.select(["id", "label"])
    if 255 in numbers and 1 not in numbers:
        with pytest.raises(PoolError, match=r"hold no numbers but .*255 means pixels that are left out"):
            check_masks(held)
        check_masks(held, labels)  # one round's masks may be so
        assert "write the number of that class" in caplog.text
    else:
        check_masks(held)
        check_masks(held, labels)
        assert not caplog.text
