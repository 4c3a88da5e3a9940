"""Places of samples inside tars and Arrow files: the bytes there are the sample's, on any filesystem."""

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from prunefuse_ray.data.containers import arrow_schema, class_names, class_number, scan_arrow, scan_tar
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.errors import PoolError
from prunefuse_ray.storage import Place
from tests.data.test_index import huggingface, sample, write_tar
from tests.support.pools import random_images

PNGS = [encode_png(p) for p in random_images(7)]


def elsewhere(path):
    """The same file on a filesystem that is not the local one, as an object store's is not."""
    return Place(pafs.SubTreeFileSystem(str(path.parent), pafs.LocalFileSystem()), path.name)


def here(path):
    return Place.at(str(path))


@pytest.mark.parametrize("place", [here, elsewhere])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_ranges_of_an_arrow_file_hold_its_images(tmp_path, place, batch):
    huggingface(tmp_path / "d", random_images(7), shards=1, batch=batch)
    file = next((tmp_path / "d").glob("data-*"))
    content, found, labels = file.read_bytes(), [], []
    for offsets, sizes, given in scan_arrow(place(file), "image", "label"):
        found += [content[o : o + s] for o, s in zip(offsets, sizes, strict=True)]
        labels += given
    assert found == PNGS
    assert labels == [0, 1, 0, 1, 0, 1, 0]
    assert class_names(arrow_schema(place(file)), "label") == ["dark", "light"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_every_type_of_bytes_is_found_and_nulls_are_empty(tmp_path, kind):
    values = ["ä", None, "", "longer than the others"]
    table = pa.table({"x": pa.array(values).cast(kind)})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    content = (tmp_path / "a.arrow").read_bytes()
    ((offsets, sizes, _),) = scan_arrow(here(tmp_path / "a.arrow"), "x", None)
    found = [content[o : o + s].decode() for o, s in zip(offsets, sizes, strict=True)]
    assert found == ["ä", "", "", "longer than the others"]


def test_columns_without_bytes_and_other_arrow_files_are_refused(tmp_path):
    table = pa.table({"x": [1, 2]})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(PoolError, match="a column of type int64 holds neither"):
        list(scan_arrow(here(tmp_path / "a.arrow"), "x", None))
    with pa.ipc.new_file(tmp_path / "b.arrow", table.schema) as file:
        file.write_table(table)
    with pytest.raises(PoolError, match="random-access form"):
        arrow_schema(here(tmp_path / "b.arrow"))


@pytest.mark.parametrize("place", [here, elsewhere])
def test_ranges_of_a_tar_hold_its_images(tmp_path, place):
    members = [
        m for i, p in enumerate(random_images(7)) for m in sample(f"sub/{i}.v1" if i == 3 else f"sub/{i}", p, i % 2)
    ]
    write_tar(tmp_path / "s.tar", [("README", b"no sample"), (".hidden.png", b"x"), *members])
    content = (tmp_path / "s.tar").read_bytes()
    found = list(scan_tar(place(tmp_path / "s.tar"), "cls"))
    assert [content[r.offset : r.offset + r.bytes] for r in found] == PNGS
    assert [r.key for r in found] == [f"sub/{i}" for i in range(7)], "a key ends at the first dot"


def test_labels_are_names_before_they_are_numbers():
    assert class_number("dog", ["cat", "dog"]) == 1
    assert class_number("1", ["1", "0"]) == 0
    assert class_number(1, ["1", "0"]) == 1
    assert class_number(" 1 ", ["a", "b"]) == 1
    assert [class_number(v, ["a", "b"]) for v in ("2", -1, "", None, "1.0")] == [None] * 5
