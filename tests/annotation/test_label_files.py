"""Which files of a round's folder are read: none that holds labels is passed over in silence."""

import time
import unicodedata

import pyarrow as pa
import pytest

from prunefuse_ray.annotation import Files, Wait, decide
from prunefuse_ray.annotation.label_files import changed_files
from prunefuse_ray.storage import Place
from tests.annotation.test_files import give, labels, place, request_at, table

GOOD = "id,label\na,cat\n"


@pytest.fixture
def request_(tmp_path):
    return request_at(place(tmp_path, "local"), dict.fromkeys("abcd", b""))


@pytest.mark.parametrize("name", ["Labels.csv", "LABELS.CSV", "labels.tsv", "labels.txt", "labels (1).csv",
                                  "labels - Copy.csv", "labels copy 2.csv", "samples.csv"])  # fmt: skip
def test_names_by_case_copies_and_the_table_itself_filled_in(request_, name):
    assert labels(give(request_, GOOD, name)) == {("a", ""): 0}


def test_a_copy_that_says_otherwise_is_refused(request_):
    give(request_, GOOD)
    (fault,) = give(request_, "id,label\na,dog\n", "labels (1).csv").faults
    assert "id 'a' is labeled 'cat', but 'dog' at" in fault or "id 'a' is labeled 'dog', but 'cat' at" in fault


@pytest.mark.parametrize("name", ["labels-anna (1).csv", "labels-anna(1).csv", "labels-anna copy.csv",
                                  "labels-anna copy 2.csv", "labels-anna - Copy (2).csv",
                                  "labels-anna - Kopie.csv", "labels-anna - Copie.csv", "labels-anna - copia.csv",
                                  "labels-anna – kopia.csv",
                                  "labels-anna (Anna's conflicted copy 2026-01-31).csv",
                                  "labels-anna (In Konflikt stehende Kopie von Anna 2026-01-31).csv",
                                  "labels-anna.sync-conflict-20260131-120000-ABCDEFG.csv"])  # fmt: skip
def test_a_copy_of_somebodys_labels_is_no_second_person(request_, name):
    """It would outvote the others, or be the second label that a sample waits for."""
    give(request_, GOOD, "labels-anna.csv")
    assert labels(give(request_, GOOD, name)) == {("a", "anna"): 0}
    (fault,) = give(request_, "id,label\na,dog\n", name).faults
    assert "by 'anna'" in fault


@pytest.mark.parametrize("no", ["0", "False", "no", "", " ", "nan"])
def test_a_no_in_the_column_unsure_leaves_the_sample_to_be_labeled(request_, no):
    answers = give(request_, f"id,label,unsure\na,cat,{no}\nb,,{no}\nc,,yes\nd,,1\n")
    assert labels(answers) == {("a", ""): 0}
    assert set(answers.unsure) == {("c", ""), ("d", "")}
    assert isinstance(decide("abcd", answers, labels_per_sample=1, accept_partial=False), Wait)


def test_labels_that_come_with_a_doubt_are_counted(request_):
    answers = give(request_, "id,label,unsure\na,cat,yes\nb,dog,\n")
    assert (labels(answers).keys(), answers.unsure) == ({("a", ""), ("b", "")}, {})
    assert answers.notes == ("1 labels of rows that are marked as unsure, too, are taken",)


def test_people_are_the_same_in_either_unicode_form(request_):
    give(request_, GOOD, f"labels-{unicodedata.normalize('NFD', 'José')}.csv")
    assert labels(give(request_, "id,label,annotator\na,cat,José\n")) == {("a", "José"): 0}


@pytest.mark.parametrize("name", ["labels.xlsx", "Labels.ODS", "labels.json", "labels.csv.gz", "labels-ann.xls"])
def test_labels_in_a_file_that_is_not_read_are_refused(request_, name):
    (fault,) = give(request_, "x", name).faults
    assert fault.startswith(f"{name}: is no file that is read; save the table as 'CSV UTF-8'")
    give(request_, GOOD, name.split(".")[0] + ".csv")
    answers = Files().collect(request_)
    assert answers.faults == ()
    assert answers.notes == (f"{name} is not read: the file of that name in CSV or Parquet is",)


def test_a_spreadsheet_under_the_name_of_a_csv(request_):
    (fault,) = give(request_, b"PK\x03\x04").faults
    assert fault.startswith("labels.csv: is a spreadsheet (xlsx")


def test_other_tables_are_named_and_other_files_left_alone(request_):
    for name in ("my-labels.csv", "notes.txt", "~$labels.xlsx", ".~lock.labels.csv#", "labelstudio.log"):
        answers = give(request_, "x", name)
    assert labels(answers) == {}
    assert answers.notes == ("my-labels.csv is not read: files with labels are called labels.csv, or labels-NAME.csv",)


def test_the_table_itself_is_not_read_while_nobody_has_filled_it_in(request_):
    Files().ask(request_)
    assert all(row["label"] == "" for row in table(request_))
    answers = Files().collect(request_)
    assert (labels(answers), answers.files, answers.notes) == ({}, {}, ())
    give(request_, b"\xd6;\xd6", "samples.csv")
    assert "not UTF-8; save the file as 'CSV UTF-8'; it is not read" in Files().collect(request_).notes[0]


@pytest.mark.parametrize("kind", ["local", "object store"])
def test_files_that_change_after_their_labels_were_taken_are_named(tmp_path, kind):
    request = request_at(place(tmp_path, kind), dict.fromkeys("abcd", b""))
    taken = give(request, GOOD).files
    assert set(taken) == {"labels.csv"}
    assert changed_files(request.place, taken) == []
    give(request, "id,label\na,dog\n")
    give(request, GOOD, "labels-eve.csv")
    late, changed = changed_files(request.place, taken)
    assert late.endswith("labels-eve.csv has come since the labels of its round were taken")
    assert changed.endswith("labels.csv has changed since its labels were taken")


def test_ids_are_found_in_either_unicode_form_and_with_blanks(tmp_path):
    request = request_at(place(tmp_path, "local"), {"M\u00fcll.png": b"", " b": b""})
    assert labels(give(request, "id,label\nMu\u0308ll.png ,cat\n b,dog\n")) == {("M\u00fcll.png", ""): 0, (" b", ""): 1}


def test_numbers_of_classes_and_missing_words_are_read_and_said(tmp_path):
    request = request_at(place(tmp_path, "local"), {1: b"", 2: b"", 3: b""}, id_type=pa.int64())
    answers = give(request, ",id,label\n0,1,1.0\n1,2.0,nan\n2,3,dog\n")
    assert labels(answers) == {(1, ""): 1, (3, ""): 1}
    assert "1 labels such as '1.0' are read as '1'" in answers.notes
    assert "1 labels 'nan' are read as missing" in answers.notes


def test_thousands_of_wrong_rows_are_told_within_seconds(tmp_path):
    request = request_at(place(tmp_path, "local"), {f"image-{i}": b"" for i in range(3000)})
    rows = "".join(f"imag-{i},horse{i}\n" for i in range(3000))
    started = time.thread_time()
    faults = give(request, f"id,label\n{rows}").faults
    assert time.thread_time() - started < 10
    assert "... and 2980 more unknown ids" in faults
    assert "id 'imag-0' was not asked for (did you mean 'image-" in faults[0]


def test_what_is_taken_for_a_copy_is_told(request_):
    """labels-1.csv and labels-2.csv may be two people."""
    assert give(request_, GOOD, "labels-1.csv").notes == (
        "labels-1.csv: taken for a copy of labels.csv; labels of somebody else go into labels-NAME.csv",
    )


@pytest.mark.parametrize("nothing", ["", "NA", "nan", "#N/A", "NULL"])
def test_who_cannot_tell_may_write_any_word_for_no_label(request_, nothing):
    answers = give(request_, f"id,label,unsure,time\na,cat,,{nothing}\nb,{nothing},TRUE,{nothing}\n")
    assert labels(answers) == {("a", ""): 0}
    assert set(answers.unsure) == {("b", "")}


@pytest.mark.parametrize("column", ["filepath", "lead_time", "source", "context", "annotation_id"])
def test_columns_that_people_have_beside_the_labels_are_left_aside(request_, column):
    answers = give(request_, f"id,label,{column}\na,cat,x\n")
    assert labels(answers) == {("a", ""): 0}
    assert answers.notes == (f"labels.csv: columns left aside: {column}",)


def test_a_file_that_goes_between_two_looks_is_gone(request_, monkeypatch):
    """U on the page takes back the only label of a file, in another thread."""
    give(request_, GOOD)
    listed = request_.place.files()
    (request_.place / "labels.csv").delete()
    monkeypatch.setattr(Place, "files", lambda *_, **__: listed)
    assert labels(Files().collect(request_)) == {}


def test_a_persons_spreadsheet_is_not_passed_over_for_another_file(request_):
    give(request_, GOOD)
    (fault,) = give(request_, "x", "labels.anna.xlsx").faults
    assert fault.endswith("save the table as 'CSV UTF-8', labels.anna.csv")


def test_a_doubt_about_a_sample_that_was_not_asked_for_is_a_fault(request_):
    (fault,) = give(request_, "id,label,unsure\na,cat,\nx,,yes\n").faults
    assert fault.startswith("labels.csv line 3: id 'x' was not asked for")
