"""The prepared pool: what was decoded once is what would be decoded again, whatever becomes of its files."""

import dataclasses
import errno
import io
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prunefuse_ray import config as cfg
from prunefuse_ray.data import prepared, reading
from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.data.pool import Prepared, Source
from prunefuse_ray.data.prepared import decoded, evict, form_digest, open_prepared, room
from prunefuse_ray.data.reading import FileRows
from prunefuse_ray.data.stream import spans
from prunefuse_ray.data.texts import NgramForm, TextForm
from prunefuse_ray.storage import Place
from tests.support.pools import random_images

FORM = ImageForm(height=8, width=8, channels=1)
ROWS = 100


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(prepared, "CHUNK_BYTES", 16 * 64)
    assert prepared.chunk_rows(FORM) == 16


@pytest.fixture
def images():
    found = [encode_png(p) for p in random_images(ROWS)]
    found[3], found[50] = b"damaged", None
    return found


@pytest.fixture
def source(tmp_path, images):
    """Two files, of row groups that end inside chunks."""
    files = []
    for number, rows in enumerate((range(70), range(70, ROWS))):
        files.append(str(tmp_path / f"{number}.parquet"))
        table = pa.table({"id": [f"s{i}" for i in rows], "image": pa.array([images[i] for i in rows], pa.binary())})
        pq.write_table(table, files[-1], row_group_size=23)
    sizes = tuple(Path(file).stat().st_size for file in files)
    return Source(fs=pafs.LocalFileSystem(), files=tuple(files), sizes=sizes, label_column=None)


def kept(source, tmp_path, **more):
    return dataclasses.replace(source, prepared=Prepared(place=Place.at(str(tmp_path / "kept")), **more))


def read(source, form=FORM, **more):
    """id -> (values, why it was rejected, what was converted, digest)"""
    found = {}
    for chunk in decoded(source, form, **more):
        s = chunk.samples
        columns = zip(s.values_N, s.rejected, s.converted, s.digests, strict=True)
        for id_, (values, *told) in zip(chunk.rows["id"].to_pylist(), columns, strict=True):
            assert id_ not in found
            found[id_] = (values.tobytes(), *told)
    return found


def chunk_files(tmp_path):
    return sorted((tmp_path / "kept").rglob("*.chunk"))


def test_what_is_kept_is_what_was_decoded_and_the_originals_are_not_read_again(source, tmp_path, monkeypatch):
    plain = read(source)
    assert len(plain) == ROWS
    assert plain["s3"][1] is not None
    assert read(kept(source, tmp_path)) == plain
    assert len(chunk_files(tmp_path)) == 5 + 2  # of 70 and 30 rows
    monkeypatch.setattr(prepared, "_decode", None)
    assert read(kept(source, tmp_path)) == plain
    assert not list((tmp_path / "kept").rglob("*.tmp"))


def test_ids_made_of_file_and_row_and_labels_come_along(source, tmp_path):
    unnamed = dataclasses.replace(source, names=("a", "b"), id_column="none")
    assert list(read(unnamed)) == [f"a:{i}" for i in range(70)] + [f"b:{i}" for i in range(30)]
    labeled = str(tmp_path / "labeled.parquet")
    pq.write_table(pq.read_table(source.files[0]).append_column("label", pa.array(range(70))), labeled)
    one = dataclasses.replace(source, files=(labeled,), sizes=(1,), label_column="label")
    for again in (False, True):
        chunks = list(decoded(kept(one, tmp_path), FORM, label=True))
        assert [x for chunk in chunks for x in chunk.rows["label"].to_pylist()] == list(range(70)), again


def test_only_wanted_rows_are_handed_on_and_whole_chunks_are_kept(source, tmp_path):
    plain, only = read(source), pa.array(["s1", "s20", "s99"])
    for form in (source, kept(source, tmp_path), kept(source, tmp_path)):
        assert read(form, only=only) == {id_: plain[id_] for id_ in only.to_pylist()}
        assert read(form, exclude=only) == {k: v for k, v in plain.items() if k not in only.to_pylist()}
    assert len(chunk_files(tmp_path)) == 7


@pytest.mark.parametrize("format_", ["raw", "jpeg"])
def test_for_a_few_rows_no_chunk_is_decoded(source, tmp_path, monkeypatch, format_):
    """A thousand samples drawn from a million would decode nearly all of it."""
    mine, seen, real = kept(source, tmp_path, format=format_), [], prepared.read_column
    monkeypatch.setattr(prepared, "read_column", lambda column, form: seen.append(len(column)) or real(column, form))
    found = read(mine, only=pa.array(["s1", "s20", "s21"]))
    assert seen == [1, 2]
    assert not chunk_files(tmp_path)
    whole = read(mine)
    assert {id_: whole[id_] for id_ in found} == found
    assert len(chunk_files(tmp_path)) == 7


def test_unwanted_rows_are_not_decoded(source, monkeypatch):
    seen = []
    real = prepared.read_column
    monkeypatch.setattr(prepared, "read_column", lambda column, form: seen.append(len(column)) or real(column, form))
    read(source, only=pa.array(["s1", "s20"]))
    assert seen == [1, 1]


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_where_there_is_room_for_a_part_the_rest_is_decoded(source, tmp_path, share):
    plain = read(source)
    for _ in range(2):
        assert read(kept(source, tmp_path, share=share)) == plain
    assert len(chunk_files(tmp_path)) < 7


def test_damage_to_a_chunk_is_noticed_and_mended(source, tmp_path, caplog):
    plain = read(kept(source, tmp_path))
    file = chunk_files(tmp_path)[0]
    sound = file.read_bytes()
    for at in range(0, len(sound), 7):
        file.write_bytes(sound[:at] + bytes([sound[at] ^ 16]) + sound[at + 1 :])
        assert read(kept(source, tmp_path)) == plain, at
    for cut in (0, 1, len(sound) // 2, len(sound) - 1):
        file.write_bytes(sound[:cut])
        assert read(kept(source, tmp_path)) == plain, cut
    assert "is damaged" in caplog.text
    assert file.read_bytes() == sound
    other = chunk_files(tmp_path)[1]
    file.write_bytes(other.read_bytes())
    assert read(kept(source, tmp_path)) == plain
    file.unlink()
    assert read(kept(source, tmp_path)) == plain


def test_a_place_that_cannot_be_written_is_gone_without(source, tmp_path, caplog):
    (tmp_path / "kept").write_text("a file")
    assert read(kept(source, tmp_path)) == read(source)
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("offset", [None, 0], ids=["a file each", "ranges of a file"])
def test_a_disk_or_store_that_fails_says_nothing_of_a_sample(tmp_path, monkeypatch, offset):
    """Else what could not be read for a while would be rejected for good, in this run and in those after it."""
    (tmp_path / "a.png").write_bytes(encode_png(random_images(1)[0]))
    size = (tmp_path / "a.png").stat().st_size
    rows = {"id": ["a"], "root": pa.array([0], pa.int32()), "file": ["a.png"],
            "offset": pa.array([offset], pa.int64()), "bytes": [size]}  # fmt: skip
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    source = Source(fs=pafs.LocalFileSystem(), files=(str(tmp_path / "rows.parquet"),), sizes=(1,), label_column=None,
                    roots=(Place.at(str(tmp_path)),))  # fmt: skip
    really = Place.read_bytes
    for error, rejected in (
        (OSError(errno.EIO, "I/O error"), False),
        (OSError("AWS Error ACCESS_DENIED: HTTP status 403"), False),
        (OSError(errno.EACCES, "Permission denied"), True),
    ):

        def fail(*_, error=error):
            raise error

        with monkeypatch.context() as away:
            away.setattr(Place, "read_bytes", lambda p, fail=fail: fail() if p.name == "a.png" else really(p))
            away.setattr(reading, "_open", lambda *_, fail=fail: SimpleNamespace(read_at=fail, close=lambda: None))
            if rejected:
                assert "could not be read" in read(kept(source, tmp_path))["a"][1]
            else:
                with pytest.raises(OSError, match=error.args[-1]):
                    read(kept(source, tmp_path))
    assert read(kept(source, tmp_path))["a"][1] is None, "nobody remembers that it was away"


def test_a_pool_with_other_contents_has_other_chunks(source, tmp_path):
    read(kept(source, tmp_path))
    table = pq.read_table(source.files[0])
    pq.write_table(table.set_column(1, "image", pa.array([encode_png(p) for p in random_images(70, seed=9)])),
                   source.files[0])  # fmt: skip
    changed = dataclasses.replace(source, sizes=(Path(source.files[0]).stat().st_size, source.sizes[1]))
    assert read(kept(changed, tmp_path)) == read(changed)


@pytest.mark.parametrize("indexed", [False, True])
def test_a_file_that_was_mended_in_place_is_decoded_again(tmp_path, indexed):
    """Uncompressed images are as large as before."""
    before, after = (bmp(random_images(1, seed=seed)[0]) for seed in (1, 2))
    assert len(before) == len(after)
    where, rows = tmp_path / "rows.parquet", {"id": ["a"], "image": pa.array([before], pa.binary())}
    if indexed:
        (tmp_path / "a.bmp").write_bytes(before)
        rows = {"id": ["a"], "label": [0], "root": pa.array([0], pa.int32()), "file": ["a.bmp"],
                "offset": pa.array([None], pa.int64()), "bytes": [len(before)]}  # fmt: skip
    pq.write_table(pa.table(rows), where, compression="none", use_dictionary=False, write_statistics=False)
    mine = Source(
        fs=pafs.LocalFileSystem(), files=(str(where),), sizes=(where.stat().st_size,), label_column=None,
        roots=(Place.at(str(tmp_path)),) if indexed else (),
    )  # fmt: skip
    first = read(kept(mine, tmp_path))
    assert read(kept(mine, tmp_path)) == first
    changed = tmp_path / "a.bmp" if indexed else where
    changed.write_bytes(changed.read_bytes().replace(before, after))
    assert changed.stat().st_size == (len(before) if indexed else mine.sizes[0])
    now = read(kept(mine, tmp_path))
    assert now == read(mine)
    assert now != first


def bmp(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0]).save(buffer, format="BMP")
    return buffer.getvalue()


def test_forms_that_decode_alike_share_their_chunks():
    assert form_digest(FORM) == form_digest(dataclasses.replace(FORM, mean=(0.1,), std=(0.9,)))
    changes = {"height": 9, "channels": 3, "resize": False, "crop_ratio": 0.5, "value_range": (0, 9)}
    others = [dataclasses.replace(FORM, **{field: value}) for field, value in changes.items()]
    assert len({form_digest(form) for form in [FORM, TextForm(length=8), *others]}) == 7


def test_jpeg_is_close_and_the_same_in_every_pass(tmp_path):
    form = ImageForm(height=64, width=64, channels=3)
    x = np.linspace(0, 255, 64)
    photo = np.stack([np.add.outer(x, x) / 2, np.tile(x, (64, 1)), np.tile(x[:, None], (1, 64))], -1).astype(np.uint8)
    file = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["a", "b"], "image": [encode_png(photo), b"bad"]}), file)
    one = Source(fs=pafs.LocalFileSystem(), files=(file,), sizes=(1,), label_column=None)
    first, again = (read(kept(one, tmp_path, format="jpeg"), form) for _ in range(2))
    assert first == again
    values = np.frombuffer(first["a"][0], np.uint8).reshape(form.shape)
    assert 0 < np.abs(values.astype(int) - photo).max() <= 12
    assert np.abs(values.astype(int) - photo).mean() < 1
    assert (first["b"][0], first["b"][1] is None) == (bytes(64 * 64 * 3), False)
    full = Prepared(place=Place.at(str(tmp_path / "full")), share=0.0, format="jpeg")
    unkept = dataclasses.replace(one, prepared=full)
    assert read(unkept, form) == first, "how much room there is changes, and decides nothing"
    assert read(unkept, form, only=pa.array(["a"])) == {"a": first["a"]}


def test_tensors_are_not_kept(source, tmp_path):
    file = str(tmp_path / "tensors.parquet")
    pq.write_table(pa.table({"id": ["a"], "image": random_images(1).tolist()}), file)
    one = dataclasses.replace(source, files=(file,), sizes=(1,))
    assert read(kept(one, tmp_path))["a"][0] == random_images(1)[0].tobytes()
    assert not chunk_files(tmp_path)


@settings(max_examples=30, deadline=None)
@given(chunk=st.integers(1, 40), count=st.integers(1, 50))
def test_parts_cover_every_row_once_and_begin_where_chunks_do(tmp_path_factory, chunk, count):
    directory = tmp_path_factory.getbasetemp() / "spans"
    directory.mkdir(exist_ok=True)
    for name, rows in (("a", 70), ("b", 30), ("c", 0)):
        if not (directory / name).exists():
            pq.write_table(pa.table({"id": range(rows)}), directory / name)
    files = tuple(str(directory / name) for name in "abc")
    whole = Source(fs=pafs.LocalFileSystem(), files=files, sizes=(1, 1, 1))
    seen = []
    for one in spans(whole, chunk, count):
        for file, span in zip(one.files, one.spans or [(0, 70 if f == files[0] else 30 if f == files[1] else 0)
                                                       for f in one.files], strict=True):  # fmt: skip
            assert span[0] % chunk == 0
            seen += [(file, row) for row in range(*span)]
    assert sorted(seen) == [(files[0], i) for i in range(70)] + [(files[1], i) for i in range(30)]


def test_a_row_group_is_not_read_for_each_of_its_chunks(tmp_path, monkeypatch):
    """A piece of a row group is read from its start: for a piece of every chunk, half as often as there are chunks."""
    file, rows = str(tmp_path / "one.parquet"), 64 * 16
    pq.write_table(pa.table({"id": range(rows), "image": pa.array([b"x"] * rows, pa.binary())}), file)
    assert pq.read_metadata(file).num_row_groups == 1
    one = Source(fs=pafs.LocalFileSystem(), files=(file,), sizes=(1,), label_column=None)
    monkeypatch.setattr(reading, "BATCH_ROWS", 16)
    passed, really = [], FileRows._next

    def watched(file_rows):
        table = really(file_rows)
        passed.extend([table.num_rows] if table.column_names == ["image"] else [])
        return table

    monkeypatch.setattr(FileRows, "_next", watched)
    parts = spans(one, 16, 1_024)
    assert sum(len(read(part)) for part in parts) == rows
    assert len(parts) == 16
    assert sum(passed) <= 16 * rows
    index = dataclasses.replace(one, roots=(Place.at(str(tmp_path)),))
    assert len(spans(index, 16, 1_024)) == 64, "an index holds no samples"


def test_the_originals_are_opened_only_where_something_is_decoded(source, tmp_path, monkeypatch):
    read(kept(source, tmp_path))
    opened = []

    class Watched:
        def open_input_file(self, path):
            opened.append(path)
            return source.fs.open_input_file(path)

        def get_file_info(self, files):
            return source.fs.get_file_info(files)

    watched = dataclasses.replace(source, fs=Watched())
    read(kept(watched, tmp_path))
    assert opened == list(source.files), "once for the ids; samples come from the prepared pool"
    read(watched)
    assert len(opened) == 2 + 4


def test_a_prepared_pool_that_cannot_be_read_is_named(source, tmp_path, caplog, monkeypatch):
    plain = read(kept(source, tmp_path))
    real = Place.read_bytes

    def refused(place):
        if place.path.endswith(".chunk"):
            raise PermissionError(13, "no right to read", place.path)
        return real(place)

    monkeypatch.setattr(Place, "read_bytes", refused)
    assert read(kept(source, tmp_path)) == plain
    assert "cannot be read" in caplog.text


def test_rows_are_read_forwards_from_anywhere(source):
    with FileRows(source, 0, ["id"]) as rows:
        assert rows.total == 70
        for first, count in ((0, 5), (5, 30), (60, 5), (66, 99)):
            expected = [f"s{i}" for i in range(first, min(70, first + count))]
            assert rows.take(first, count)["id"].to_pylist() == expected


# --- room ---


def test_what_is_kept_follows_from_size_and_room():
    large = ImageForm(height=224, width=224, channels=3)
    auto = cfg.Prepared()
    assert room(auto, FORM, samples=1_000, free_bytes=None) is None, "decoded in no time"
    assert room(auto, TextForm(length=1024), samples=10**9, free_bytes=None) is None
    assert room(cfg.Prepared(format="none"), large, samples=10**6, free_bytes=None) is None
    whole = room(auto, large, samples=100_000, free_bytes=10**12)
    assert (whole.format, whole.share, whole.bytes) == ("raw", 1.0, 100_000 * 224 * 224 * 3)
    assert room(auto, large, samples=100_000, free_bytes=10**10).share == pytest.approx(5e9 / whole.bytes)
    assert room(cfg.Prepared(max_gb=1), large, samples=100_000, free_bytes=10**12).share == pytest.approx(
        2**30 / whole.bytes
    )
    assert room(cfg.Prepared(format="jpeg", max_gb=10), large, samples=100_000, free_bytes=None).share == 1.0


def test_the_place_is_told(tmp_path):
    told = []
    form = ImageForm(height=224, width=224, channels=3)
    found = open_prepared(cfg.Prepared(max_gb=0.01), Place.at(str(tmp_path)), form, 1_000, told.extend, name="")
    assert found.place.path == f"{tmp_path}/.prepared"
    assert told[0] == f"prepared pool: raw, 0.1 GiB in {tmp_path}/.prepared"
    assert "room for 7%" in told[1]


def test_what_was_used_longest_ago_makes_room_and_nothing_else_is_touched(tmp_path):
    for number, name in enumerate(("aaaaaaaaaaaa-raw", "bbbbbbbbbbbb-jpeg", "cccccccccccc-raw")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.chunk").write_bytes(bytes(100))
        os.utime(tmp_path / name / "x.chunk", (number, number))
    for precious in ("photos", "aaaaaaaaaaaa-raw-mine"):
        (tmp_path / precious).mkdir()
        (tmp_path / precious / "x.chunk").write_bytes(bytes(1000))
    mine = f"{tmp_path}/aaaaaaaaaaaa-raw"
    assert evict(Place.at(str(tmp_path)), [mine], 200) == []
    assert evict(Place.at(str(tmp_path)), [mine], 100) == [f"{tmp_path}/bbbbbbbbbbbb-jpeg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "aaaaaaaaaaaa-raw", "aaaaaaaaaaaa-raw-mine", "cccccccccccc-raw", "photos"]  # fmt: skip


@pytest.mark.parametrize(("why", "others"), [(PermissionError, 1), (FileNotFoundError, 0)])
def test_what_cannot_be_removed_keeps_no_run_from_starting(tmp_path, monkeypatch, caplog, why, others):
    """It is another user's, and the next one makes room; or another run has just removed it."""
    names = ("aaaaaaaaaaaa-raw", "bbbbbbbbbbbb-raw", "cccccccccccc-raw")
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.chunk").write_bytes(bytes(100))
        os.utime(tmp_path / name / "x.chunk", (number, number))
    really = Place.delete

    def delete(place):
        if place.name == names[0]:
            raise why(place.path)
        really(place)

    monkeypatch.setattr(Place, "delete", delete)
    assert evict(Place.at(str(tmp_path)), [], 250) == [f"{tmp_path}/{names[1]}"][:others]
    assert ("cannot be removed" in caplog.text) == bool(others)
    (tmp_path / names[1]).mkdir(exist_ok=True)
    (tmp_path / names[1] / "x.chunk").write_bytes(bytes(100))
    listed = Place.files
    monkeypatch.setattr(Place, "delete", really)

    def files(place, **more):
        if place.name == names[0]:
            raise PermissionError(13, "no right to read", place.path)
        return listed(place, **more)

    monkeypatch.setattr(Place, "files", files)
    assert sorted(evict(Place.at(str(tmp_path)), [], 0)) == [f"{tmp_path}/{name}" for name in names[1:]]
    assert f"{names[0]} cannot be listed" in caplog.text
    (tmp_path / "a file").write_text("")
    assert evict(Place.at(str(tmp_path / "a file")), [], 0) == []


def keep(found, form, size):
    file = Path(prepared._directory(found, form).path) / "x.chunk"
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as made:
        made.truncate(size)  # sparse


def test_pools_of_one_form_make_room_for_each_other(tmp_path):
    form, told = ImageForm(height=224, width=224, channels=3), []
    for name in ("a" * 12, "b" * 12):
        found = open_prepared(cfg.Prepared(max_gb=0.2), Place.at(str(tmp_path)), form, 1_000, told.extend, name=name)
        keep(found, form, 150_528_000)
    assert sum(f.stat().st_size for f in tmp_path.rglob("*.chunk")) <= 0.2 * 2**30
    assert any("removed to make room" in line for line in told)


def test_what_a_run_keeps_of_its_own_counts_and_is_spared(tmp_path):
    form, told = ImageForm(height=224, width=224, channels=3), []
    place, limit = Place.at(str(tmp_path)), cfg.Prepared(max_gb=0.3)
    for own in ("1" * 12, "2" * 12):
        for _ in range(2):
            found = open_prepared(limit, place, form, 2_000, told.extend, name="a" * 12, own=own)
            keep(found, form, 150_528_000)
            keep(dataclasses.replace(found, name=own), form, 150_528_000)
        assert {file.parent.name.split("-")[1] for file in tmp_path.rglob("x.chunk")} == {"a" * 12, own}
    assert sum("removed to make room" in line for line in told) == 1


def test_what_is_used_is_kept_longer_than_what_was_written_later(tmp_path):
    form, runs = ImageForm(height=224, width=224, channels=3), Place.at(str(tmp_path))
    for name in ("a" * 12, "b" * 12, "a" * 12):  # a is read again
        found = open_prepared(cfg.Prepared(max_gb=0.3), runs, form, 1_000, name=name)
        keep(found, form, 150_528_000)
        time.sleep(0.02)
    before = os.stat(tmp_path).st_mtime_ns
    for file in tmp_path.rglob("x.chunk"):
        os.utime(file, ns=(before - 10**9, before - 10**9 + ("bbbb" in str(file)) * 10**8))
    open_prepared(cfg.Prepared(max_gb=0.3), runs, form, 1_000, name="c" * 12)
    left = {file.parent.name.split("-")[1] for file in tmp_path.rglob("x.chunk")}
    assert left == {"a" * 12}


def test_every_form_in_which_the_pool_is_kept_counts():
    """A pre-training with random crops reads the uncropped images."""
    form = ImageForm(height=224, width=224, channels=3, crop_ratio=0.875)
    limit = cfg.Prepared(max_gb=1)
    alone = room(limit, form, samples=100_000, free_bytes=None)
    both = room(limit, form, samples=100_000, free_bytes=None, also=[form.uncropped])
    assert both.share == pytest.approx(alone.share / (1 + 1 / 0.875**2), rel=0.01)


def test_what_is_kept_already_needs_no_more_room(tmp_path, monkeypatch):
    form, told = ImageForm(height=224, width=224, channels=3), []
    monkeypatch.setattr(
        prepared, "_free", lambda _: 310_000_000 - sum(f.stat().st_size for f in tmp_path.rglob("*.chunk"))
    )
    for _ in range(2):
        found = open_prepared(cfg.Prepared(), Place.at(str(tmp_path)), form, 1_000, told.extend, name="a" * 12)
        keep(found, form, 150_528_000)
        assert found.share == 1.0
    assert not any("there is room for" in line for line in told)


def test_what_an_earlier_version_kept_is_read(tmp_path):
    form = ImageForm(height=224, width=224, channels=3)
    keep(prepared.Prepared(place=Place.at(str(tmp_path / ".prepared"))), form, 10)
    found = open_prepared(cfg.Prepared(), Place.at(str(tmp_path)), form, 1_000, name="a" * 12)
    assert prepared.usage(found, form)["files"] == 1


def test_what_a_plugin_can_read_is_not_taken_from_before_it_was_installed(monkeypatch):
    form = ImageForm(height=8, width=8, channels=3)
    digests = []
    for found in (None, True):
        prepared._decoders.cache_clear()
        monkeypatch.setattr(prepared, "find_spec", lambda name, found=found: found if name == "pillow_heif" else None)
        monkeypatch.setattr(prepared, "version", lambda name: "1.0")
        digests.append(form_digest(form))
    prepared._decoders.cache_clear()
    assert digests[0] != digests[1]


def test_large_files_are_opened_a_few_at_a_time(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(reading, "_load", lambda rows, _: seen.append(rows.num_rows) or [b""] * rows.num_rows)
    monkeypatch.setattr(reading, "LOADED_BYTES", 100)
    rows = pa.table(
        {
            "id": list("abcdef"),
            "root": pa.array([0] * 6, pa.int32()),
            "file": list("abcdef"),
            "offset": pa.nulls(6, pa.int64()),
            "bytes": [60, 30, 20, 500, 10, 10],
        }
    )
    source = Source(fs=pafs.LocalFileSystem(), files=(), sizes=(), roots=(Place.at(str(tmp_path)),))
    assert pa.concat_tables(reading.opened(rows, source))["id"].to_pylist() == list("abcdef")
    assert seen == [2, 1, 1, 2]


def test_copies_of_the_same_samples_share_their_chunks(tmp_path):
    """As the indexes of texts that every run has in its own directory."""
    rows = pa.table({"id": [f"t{i}" for i in range(40)], "sample": [f"word {i}" for i in range(40)]})
    for run in "ab":
        file = Place.at(str(tmp_path / run / "index-00000-00000.parquet"))
        file.write_table(rows)
        one = Source(fs=file.fs, files=(file.path,), sizes=(1,), sample_column="sample", label_column=None, copied=True)
        assert len(read(kept(one, tmp_path), NgramForm(length=8))) == 40
    assert len(chunk_files(tmp_path)) == 2  # of 32 rows and 8


def test_what_a_pool_was_before_it_changed_makes_room(tmp_path):
    form, told, place = ImageForm(height=224, width=224, channels=3), [], Place.at(str(tmp_path))
    for _ in range(2):
        found = open_prepared(cfg.Prepared(max_gb=0.2), place, form, 1_000, told.extend, name="a" * 12)
        keep(found, form, 301_056_000)  # twice the pool
    open_prepared(cfg.Prepared(max_gb=0.2), place, form, 1_000, told.extend, name="a" * 12)
    assert not list(tmp_path.rglob("*.chunk"))
    assert "removed to make room" in told[-1]


def test_the_largest_rows_say_how_many_are_read_at_once(tmp_path):
    texts = ["x"] * 100 + [f"{i:06d}" * 20_000 for i in range(100)]
    pq.write_table(pa.table({"t": texts}), tmp_path / "a.parquet", row_group_size=100, use_dictionary=False)
    assert reading._batch_rows(pq.ParquetFile(tmp_path / "a.parquet"), ["t"]) < 100


@pytest.mark.parametrize(("format_", "gb", "bytes_"), [("raw", 0.1, 108_500_000), ("jpeg", 0.03, 60_000_000)])
def test_a_pool_that_takes_a_little_more_than_its_room_is_kept(tmp_path, format_, gb, bytes_):
    form, place = ImageForm(height=224, width=224, channels=3), Place.at(str(tmp_path))
    settings = cfg.Prepared(format=format_, max_gb=gb)
    keep(open_prepared(settings, place, form, 1_000, name="a" * 12), form, bytes_)
    open_prepared(settings, place, form, 1_000, name="a" * 12)
    assert list(tmp_path.rglob("*.chunk"))
