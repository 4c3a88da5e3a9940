"""Small files, whole or not at all, on a local disk and on a filesystem that is none."""

import os

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from prunefuse_ray.errors import LedgerError
from prunefuse_ray.storage import Place


@pytest.fixture(params=["local", "other"])
def root(request, tmp_path):
    """A local directory, and the same behind a filesystem that pyarrow does not know as local."""
    if request.param == "local":
        return Place.at(str(tmp_path))
    return Place(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "run")


def test_bytes_json_and_tables_come_back(root):
    (root / "a" / "b").write_bytes(b"\x00\x01")
    assert (root / "a" / "b").read_bytes() == b"\x00\x01"
    (root / "c.json").write_json({"x": [1, None, "é"]})
    assert (root / "c.json").read_json() == {"x": [1, None, "é"]}
    table = pa.table({"id": ["a"], "n": [1]})
    (root / "t").write_table(table)
    assert (root / "t").read_table(table.schema).equals(table)


def test_listing_deleting_and_absence(root):
    assert not (root / "x").exists()
    assert (root / "x").files() == []
    (root / "x").delete()
    for name in ("b", "a", "sub/c"):
        (root / "x" / name).write_bytes(b"1")
    assert [f.base_name for f in (root / "x").files()] == ["a", "b"]
    assert [f.base_name for f in (root / "x").files(recursive=True)] == ["a", "b", "c"]
    (root / "x").delete()
    assert not (root / "x").exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    place = Place.at(str(tmp_path / "a"))
    place.write_bytes(b"old")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        place.write_bytes(b"new")
    assert place.read_bytes() == b"old"


def test_damaged_files_are_said(root):
    (root / "a.json").write_bytes(b"{")
    with pytest.raises(LedgerError, match=r"a\.json.*not valid JSON"):
        (root / "a.json").read_json()
    (root / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(LedgerError, match=r"a\.parquet.*not a readable Parquet"):
        (root / "a.parquet").read_table(pa.schema([("id", pa.string())]))
    (root / "b.parquet").write_table(pa.table({"x": [1]}))
    with pytest.raises(LedgerError, match="expected"):
        (root / "b.parquet").read_table(pa.schema([("id", pa.string())]))


def test_uris_and_paths_name_the_same_place(tmp_path):
    assert Place.at(f"file://{tmp_path}") == Place.at(str(tmp_path)) == Place.at(str(tmp_path) + "/")
