"""Samples by their contents: what is there twice, and what two sets share."""

import numpy as np
import pyarrow as pa
import pytest
import ray

from prunefuse_ray.data import contents
from prunefuse_ray.data.contents import HeldOut, digest, digests, overlaps, repeated
from prunefuse_ray.data.images import sample_values
from prunefuse_ray.schemas import DIGESTS, HELD_OUT


def table(first, values):
    return pa.table({"id": [f"s{first + i}" for i in range(len(values))], "digest": digests(values)}, schema=DIGESTS)


def test_a_digest_is_of_the_bytes_and_of_the_form_of_a_tensor():
    assert digest(b"abc") == digest("abc") != digest(b"abd")
    pixels = np.arange(12, dtype=np.uint8)
    assert digest(pixels.reshape(3, 4)) != digest(pixels.reshape(4, 3))
    assert digest(pixels) == digest(pixels.copy())
    assert digests([b"x", None]) == [digest(b"x"), None]


@pytest.mark.parametrize("way", ["here", "tasks", "buckets"])
def test_repeated_contents_are_counted_wherever_they_lie(way, local_ray, monkeypatch):
    values = [b"a", b"b", None, b"a", b"c", b"b", b"a", None]
    parts = [table(0, values[:3]), table(3, values[3:])]
    if way != "here":
        parts = [ray.put(part) for part in parts]
    if way == "buckets":
        monkeypatch.setattr(contents, "ROWS_PER_BUCKET", 2)
    found = repeated(parts, 8)
    assert found.samples == 3
    assert sorted(found.examples) == [("s0", "s3", "s6"), ("s1", "s5")]
    assert repeated([table(0, [b"a", b"b"])], 2) == contents.Repeated()


@pytest.mark.parametrize("tasks", [False, True])
def test_what_the_pool_shares_with_each_held_out_set(tasks, local_ray):
    held_out = HeldOut(
        pa.table(
            {"set": ["test_path"] * 4 + ["validation_path"], "id": ["t0", "t1", "t2", "t3", "v0"],
             "digest": digests([b"a", b"b", b"x", None, b"c"])}, schema=HELD_OUT,
        )
    )  # fmt: skip
    parts = [table(0, [b"a", b"q", None]), table(3, [b"b", b"a", b"r"])]
    found = overlaps([ray.put(part) for part in parts] if tasks else parts, held_out)
    assert (found["test_path"].samples, found["test_path"].held_out) == (3, 2)
    assert found["test_path"].examples == (("s0", "t0"), ("s3", "t1"), ("s4", "t0"))
    assert found["validation_path"] == contents.Overlap()
    looked_up = held_out.column(digests([b"c", b"q", None])).to_pylist()
    assert looked_up == [3, None, None], "rows without a digest do not count"
    assert overlaps(parts, HeldOut(HELD_OUT.empty_table())) == {}


def test_vectors_are_compared_as_they_are_read():
    v = [0.1, -2.5, 3.0]
    kinds = [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.float32(), 3), pa.large_list(pa.float32())]
    tables = [pa.chunked_array([pa.array(rows, kind)]) for kind in kinds for rows in ([v], [v, None])]
    assert len({digests(sample_values(t))[0] for t in tables}) == 1
    assert digests([np.array([1, 2, 3], np.uint8)]) == digests([np.array([1.0, 2.0, 3.0])])
