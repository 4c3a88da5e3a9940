"""Labels by files: what is written for people, and that whatever is wrong with their answer is said at once."""

import csv
import io
import shlex
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prunefuse_ray.annotation import Files, Request, request_schema
from prunefuse_ray.annotation.files import _run
from prunefuse_ray.data.images import encode_png
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS
from tests.support.pools import random_images

STRING = pa.string()
CLASSES = ("cat", "dog", "Tench, old")


def place(tmp_path, kind):
    """A run directory on the local disk, or on a filesystem that Place takes for an object store."""
    if kind == "local":
        return Place(pafs.LocalFileSystem(), str(tmp_path))
    return Place(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "bucket/run")


def request_at(root, samples, *, guesses=None, id_type=STRING, **more):
    """A request for `samples` (id -> value), ranked in that order."""
    ids = list(samples)
    rows = {
        "id": ids, "rank": range(len(ids)), "score": [0.5] * len(ids),
        "guess": guesses or [None] * len(ids), "probability": [0.75 if guesses else None] * len(ids),
    }  # fmt: skip
    label_type, values = TASKS[more.get("task", "classification")].label_type, list(samples.values())
    file = root / "samples" / "0.parquet"
    file.write_table(pa.table({"id": pa.array(ids, id_type), "sample": values}))
    defaults = {
        "run": "r", "marker": "m", "round": 1, "classes": CLASSES, "place": root / "to_label", "samples": (file,),
        "texts": False, "rows": pa.table(rows, schema=request_schema(id_type, label_type)),
    }  # fmt: skip
    return Request(**defaults | more)


@pytest.fixture
def request_(tmp_path):
    return request_at(
        place(tmp_path, "local"), {i: encode_png(p) for i, p in zip("abcd", random_images(4), strict=True)}
    )


def table(request) -> list[dict[str, str]]:
    text = (request.place / "samples.csv").read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


def give(request, data: str | bytes, name="labels.csv"):
    (request.place / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return Files().collect(request)


def labels(answers) -> dict:
    assert not answers.faults
    return {(r["id"], r["annotator"]): r["label"] for r in answers.annotations.to_pylist()}


# --- what people get ---


@pytest.mark.parametrize("kind", ["local", "object store"])
def test_images_of_a_parquet_pool_are_exported_with_the_guess(tmp_path, kind):
    pixels = random_images(2)
    jpeg = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(jpeg, "JPEG")
    samples = {"x/../../é": encode_png(pixels[0]), "y.jpg": jpeg.getvalue()}
    request = request_at(place(tmp_path, kind), samples, guesses=[2, 0])
    Files().ask(request)
    first, second = table(request)
    assert (first["id"], first["guess"], first["probability"]) == ("x/../../é", "Tench, old", "0.7500")
    assert second["path"] == "images/000001-y.jpg"
    for row, data in zip((first, second), samples.values(), strict=True):
        assert row["path"].startswith("images/0")
        assert row["path"].count("/") == 1, "an id must not lead out of the folder"
        assert (request.place / row["path"]).read_bytes() == data


def test_tensors_are_exported_as_png(tmp_path):
    request = request_at(place(tmp_path, "local"), {"a": random_images(1)[0, :, :, 0].tolist()})
    Files().ask(request)
    with Image.open(io.BytesIO((request.place / table(request)[0]["path"]).read_bytes())) as image:
        np.testing.assert_array_equal(np.asarray(image), random_images(1)[0, :, :, 0])


def test_images_of_a_folder_are_named_where_they_lie(tmp_path):
    request = request_at(place(tmp_path, "local"), {"a/1.png": b""}, folder=str(tmp_path / "photos"))
    Files().ask(request)
    assert table(request)[0]["path"] == str(tmp_path / "photos/a/1.png")
    assert not (request.place / "images").exists()
    remote = request_at(place(tmp_path / "r", "local"), {"a/1.png": b""}, folder="s3://bucket/photos")
    Files().ask(remote)
    assert table(remote)[0]["path"] == "s3://bucket/photos/a/1.png"
    store = request_at(place(tmp_path / "s", "local"), {"a/1.png": b""}, folder="s3://bucket/photos?region=eu")
    Files().ask(store)
    assert table(store)[0]["path"] == "s3://bucket/photos/a/1.png?region=eu"


def test_texts_stand_in_the_table(tmp_path):
    request = request_at(place(tmp_path, "local"), {7: 'two\nlines, "quoted"', 8: "é"}, texts=True, id_type=pa.int64())
    Files().ask(request)
    assert [r["text"] for r in table(request)] == ['two\nlines, "quoted"', "é"]


def test_asking_again_changes_nothing_and_completes_what_is_missing(request_):
    Files().ask(request_)
    before = {f.path: f.mtime for f in request_.place.files(recursive=True)}
    Files().ask(request_)
    assert {f.path: f.mtime for f in request_.place.files(recursive=True)} == before
    (request_.place / "samples.csv").delete()  # as after a kill: the table is written last
    Files().ask(request_)
    assert {f.path for f in request_.place.files(recursive=True)} == set(before)


# --- what people give ---


@pytest.mark.parametrize("kind", ["local", "object store"])
def test_a_filled_in_copy_of_the_table_is_taken(tmp_path, kind):
    request = request_at(place(tmp_path, kind), {"a": b"", "b": b"", "c,d": b""}, guesses=[0, 1, 2])
    Files().ask(request)
    rows = table(request)
    for row, label in zip(rows, ["dog", " Tench, old ", ""], strict=True):
        row["label"] = label
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    assert labels(give(request, out.getvalue())) == {("a", ""): 1, ("b", ""): 2}, "an empty label is a missing one"


@pytest.mark.parametrize(
    "data",
    [
        b"id,label\na,cat\nb,dog\n",
        b"\xef\xbb\xbfid;label\r\na;cat\r\n\r\nb;dog\r\n",
        b"\nlabel\tid\ncat\ta\ndog\tb",
        b'id,label\n"a","cat"\nb,dog\nb,dog\n',
    ],
    ids=["plain", "a European spreadsheet", "tabs, other order", "quoted, and one twice alike"],
)
def test_the_forms_that_spreadsheets_write(request_, data):
    assert labels(give(request_, data)) == {("a", ""): 0, ("b", ""): 1}


def test_parquet_and_several_annotators(request_):
    pq.write_table(
        pa.table({"id": ["a", "a"], "label": ["cat", "dog"], "annotator": ["ann", "bob"]}), tmp := io.BytesIO()
    )
    give(request_, tmp.getvalue(), "labels.parquet")
    answers = give(request_, "id,label,time\na,dog,2026-01-31T12:00:00+01:00\n", "labels-eve.csv")
    assert labels(answers) == {("a", "ann"): 0, ("a", "bob"): 1, ("a", "eve"): 1}
    times = {r["annotator"]: r["time"] for r in answers.annotations.to_pylist()}
    assert times["eve"] == datetime(2026, 1, 31, 11, tzinfo=UTC)
    written = next(f for f in request_.place.files() if f.path.endswith("labels.parquet")).mtime
    assert abs((times["ann"] - written).total_seconds()) < 0.001, "a label without a time is as old as its file"


def test_integer_ids_and_numbered_classes(tmp_path):
    request = request_at(place(tmp_path, "local"), {7: b"", 10: b""}, id_type=pa.int64(), classes=["0", "1"])
    pq.write_table(pa.table({"id": [7, 10], "label": [1, 0]}), tmp := io.BytesIO())
    assert labels(give(request, tmp.getvalue(), "labels.parquet")) == {(7, ""): 1, (10, ""): 0}


def test_everything_that_is_wrong_is_said_at_once_with_its_line(request_):
    answers = give(
        request_,
        "id,label\na,cat\nz,dog\nb,dgo\n\nc,dog\nc,cat\nd,\n",
    )
    assert answers.faults == (
        "labels.csv line 3: id 'z' was not asked for",
        "labels.csv line 4: label 'dgo' is not a class (did you mean 'dog'?)",
        "the classes are cat, dog, Tench, old",
        "labels.csv line 7: id 'c' is labeled 'cat', but 'dog' at labels.csv line 6",
    )


def test_lines_are_counted_over_cells_of_several_lines(request_):
    answers = give(request_, 'id,label,text\na,cat,"one\ntwo\nthree"\nz,cat,x\n')
    assert answers.faults == ("labels.csv line 5: id 'z' was not asked for",)


def test_the_same_annotator_may_not_contradict_himself_across_files(request_):
    give(request_, "id,label,annotator\na,cat,ann\n")
    answers = give(request_, "id,label\na,dog\n", "labels-ann.csv")
    assert answers.faults == (
        "labels.csv line 2: id 'a' is labeled 'cat' by 'ann', but 'dog' at labels-ann.csv line 2",
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "labels.csv: is empty"),
        (b" \n", "labels.csv: is empty"),
        (b",,\n,,\n", "labels.csv: is empty"),
        (b"id,lable\na,cat\n", "labels.csv: has no column 'label'; it has id, lable"),
        (b"id,lable\na,cat\n", "labels.csv: unknown column 'lable' (did you mean 'label'?)"),
        (b"a,cat\nb,dog\n", "labels.csv: has no column 'id'; it has a, cat"),
        (b"id,label,id\na,cat,a\n", "labels.csv: column 'id' stands there twice"),
        (b"id,label\na,cat\nb,d\xf6g\n", "labels.csv line 3 is not UTF-8; save the file as 'CSV UTF-8'"),
        ("id,label\na,cat\n".encode("utf-16-le"), "UTF-16"),
        (b"id,label\na\n", "labels.csv line 2: 1 cells, but the header has 2"),
        (b'id,label\na,"cat\n', "labels.csv line 2: unexpected end of data"),
        (b"id,label,time\na,cat,yesterday\n", "labels.csv line 2: time 'yesterday' is no ISO 8601 date"),
    ],
)
def test_a_file_of_the_wrong_form_is_refused(request_, data, said):
    faults = give(request_, data).faults
    assert any(said in fault for fault in faults), faults


def test_a_damaged_parquet_file_is_refused(request_):
    (fault,) = give(request_, b"PAR1 no", "labels.parquet").faults
    assert fault.startswith("labels.parquet: ")


def test_a_thousand_faults_are_cut(request_):
    faults = give(request_, "id,label\n" + "".join(f"q{n},cat\n" for n in range(1000))).faults
    assert len(faults) == 21
    assert faults[-1] == "... and 980 more unknown ids"


def test_a_text_with_a_carriage_return_stays_one_cell(tmp_path):
    request = request_at(place(tmp_path, "local"), {"a": "one\rtwo"}, texts=True)
    Files().ask(request)
    assert not Files().collect(request).notes
    assert [row["text"] for row in table(request)] == ["one\rtwo"]


def test_what_comes_from_the_pool_is_no_formula_in_the_table_and_is_read_back(tmp_path):
    samples, classes = {"=1+1": "=HYPERLINK(1)"}, ("@SUM(A1)", "b")
    request = request_at(place(tmp_path, "local"), samples, guesses=[0], classes=classes, texts=True)
    Files().ask(request)
    (row,) = table(request)
    assert (row["id"], row["text"], row["guess"]) == ("'=1+1", "'=HYPERLINK(1)", "'@SUM(A1)")
    assert labels(give(request, "id,label\n'=1+1,b\n")) == {("=1+1", ""): 1}


def test_the_command_that_is_offered_can_be_given_as_it_stands(tmp_path):
    folder = Place.at(str(tmp_path / "my runs" / "x" / "rounds" / "000" / "to_label"))
    assert shlex.split(f"prunefuse label {_run(folder)}")[2:] == [str(tmp_path / "my runs" / "x")]
