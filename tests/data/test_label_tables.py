"""Tables of labels: every form that people export is read alike, or refused with line, value and remedy."""

import csv
import io
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefuse_ray.data.label_tables import Labels, TableError, delimiter_of, inert, plain, read_id, read_table
from prunefuse_ray.tasks.classification import CLASSIFICATION

ASKED = {"a": "cat", "b": "dog"}


def table(content, optional=()):
    """The lines of a table, and what was noted of it."""
    found = read_table(content if isinstance(content, bytes) else content.encode(), ("id", "label"), optional)
    return list(found.lines), found.notes


def cells(content, optional=()):
    return {line.cells["id"]: line.cells["label"] for line in table(content, optional)[0]}


def parquet(columns) -> bytes:
    pq.write_table(pa.table(columns), out := io.BytesIO())
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        "id,label\na,cat\nb,dog\n",
        "\ufeffid,label\r\na,cat\r\nb,dog\r\n",
        "id;label\na;cat\nb;dog",
        "id\tlabel\na\tcat\nb\tdog\n",
        "id|label\na|cat\nb|dog\n",
        "id,label\ra,cat\rb,dog\r",
        '"id","label"\n"a","cat"\n"b","dog"\n',
        "sep=;\r\nid;label\r\na;cat\r\nb;dog\r\n",
        "\n\nID, Label \na,cat\n\n,\nb,dog\n\n",
        "label,id\ncat,a\ndog,b\n",
        "id;label;;\na;cat;;\nb;dog;;\n",
        "id,label\na,cat,,\nb,dog,\n",
        "id,label\na,cat\nb,dog\n".encode("utf-16"),
        "\ufeffid,label\na,cat\nb,dog\n".encode("utf-16-be"),
        "\ufeff\ufeffid,label\na,cat\nb,dog\n",
    ],
)
def test_the_dialects_of_programs_and_countries(content):
    assert cells(content) == ASKED


@pytest.mark.parametrize(
    "content",
    [",id,label\n0,a,cat\n1,b,dog\n", "Unnamed: 0,id,label\n0,a,cat\n1,b,dog\n", "id,label,notes\na,cat,x\nb,dog,\n"],
)
def test_what_is_left_aside_is_said(content):
    assert cells(content) == ASKED
    _, (note,) = table(content)
    assert "aside" in note


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(),
                                  pa.dictionary(pa.int8(), pa.string())])  # fmt: skip
def test_every_type_of_strings_in_parquet(kind):
    columns = {"id": [*ASKED], "label": [*ASKED.values()]}
    assert cells(parquet({name: pa.array(v, pa.string()).cast(kind) for name, v in columns.items()})) == ASKED


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.decimal128(21, 2)])
def test_every_type_of_numbers_in_parquet(kind):
    made = parquet({"id": pa.array([7, 8], pa.int64()), "label": pa.array([1, None], pa.int64()).cast(kind)})
    assert cells(made) == {7: 1, 8: None}


def test_the_index_of_pandas_is_no_column():
    assert cells(parquet({"id": ["a", "b"], "label": ["cat", "dog"], "__index_level_0__": [5, 6]})) == ASKED


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04rest", r"spreadsheet \(xlsx, ods\).*save the table as 'CSV UTF-8'"),
        (b"\xd0\xcf\x11\xe0", "old Excel"),
        (b"\x1f\x8b\x08", "compressed; unpack it"),
        (b"ARROW1\0\0", "Arrow file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ('[{"id": "a", "label": "cat"}]', "JSON"),
        ("<!DOCTYPE html><html>", "web page"),
        (b"id,label\na,d\xf6g\n", "line 2 is not UTF-8"),
        ("id,label\na,cat\n".encode("utf-16-le"), "UTF-16"),
        ("id,label\na,cat\n".encode("utf-16")[:-1], "not whole UTF-16"),
        ("id,label\na,cat,x\n", "line 2: 3 cells, but the header has 2"),
        ("id,label\na\n", "line 2: 1 cells"),
        ("id,text,label\na,one, two,cat\n", "line 2: 4 cells, but the header has 3"),
        ("annotation_id,annotator,choice,id,image\n1,2,cat,3,a.png\n", "no column 'label'; it has annotation_id, an"),
        ("id,label,label\na,cat,dog\n", "column 'label' stands there twice"),
        ("id,Label,label\na,cat,dog\n", "column 'label' stands there twice"),
        ("filename,class\na,cat\n", "has no column 'id'; it has filename, class"),
        ("id,label,\na,cat,x\n", "line 2: 3 cells"),
        ("x,,id,label\nq,5,a,cat\n", "column 2 has no name, and cells that are not empty"),
        (",id,label\nq,a,cat\n", "column 1 has no name, and cells that are not empty"),
        ('id,label\na,"cat\n', "line 2: unexpected end of data"),
        ('id,label\na,"cat"x\n', "line 2: "),
        ("", "is empty"),
        (b"PAR1 no", "no Parquet file"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_table_is_refused_with_its_remedy(content, said):
    with pytest.raises(TableError, match=said):
        table(content)


def test_a_misspelt_column_is_not_left_aside():
    with pytest.raises(TableError, match=r"unknown column 'anotator' \(did you mean 'annotator'\?\)"):
        table("id,label,anotator\na,cat,ann\n", ("annotator",))


def test_a_cell_may_be_longer_than_pythons_own_limit():
    assert cells(f"id,label,text\na,cat,{'x' * 200_000}\n", ("text",)) == {"a": "cat"}


ID = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1).filter(
    lambda text: text == text.strip() and text.isprintable()
)


@given(ids=st.lists(ID, min_size=1, unique=True), delimiter=st.sampled_from(",;\t|"), bom=st.booleans(),
       quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), end=st.sampled_from(["\n", "\r\n"]))  # fmt: skip
def test_whatever_is_written_as_csv_is_read_again(ids, delimiter, bom, quoting, end):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([["id", "label"], *([i, "cat"] for i in ids)])
    assert cells(out.getvalue().encode("utf-8-sig" if bom else "utf-8")) == dict.fromkeys(ids, "cat")


# --- labels and ids -------------------------------------------------------------------------------------------------


def read(cell, classes=("cat", "dog")):
    labels = Labels(task=CLASSIFICATION, classes=classes)
    return labels.read(cell)[0], labels.notes


@pytest.mark.parametrize(
    ("cell", "label"),
    [("cat", 0), (" dog\u00a0", 1), ("1", 1), (1, 1), ("2", None), (2, None), ("Cat", None), ("-1", None)],
)
def test_names_and_numbers_of_classes(cell, label):
    assert read(cell) == (label, [])


@pytest.mark.parametrize(("text", "label"), [("1.0", 1), ("1.", 1), ("0,0", 0), ("1.000000", 1), ("1.5", None),
                                             ("1.000", None), ("1e0", None), ("2.0", None)])  # fmt: skip
def test_numbers_with_a_point_are_whole_ones_and_said(text, label):
    found, notes = read(text)
    assert found == label
    assert bool(notes) == (label is not None)


def test_numbers_that_are_also_names_are_never_guessed():
    stars = ("1", "2", "3")
    assert read("1", stars) == (0, ["1 labels that are numbers are read as the names of classes"])
    assert read("0", stars) == (None, [])
    label, fault = Labels(task=CLASSIFICATION, classes=stars).read(1)
    assert label is None
    assert "may mean the class called '1', or the class that has this number" in fault
    assert read(1, ("0", "1")) == (1, [])


@pytest.mark.parametrize("cell", ["", "  ", None, "nan", "NaN", "NULL", "None", "<NA>", "#N/A"])
def test_words_for_no_label(cell):
    labels = Labels(task=CLASSIFICATION, classes=["cat", "dog"])
    assert labels.missing(cell)
    assert bool(labels.notes) == bool(cell and cell.strip())


def test_a_class_may_be_called_none():
    assert not Labels(task=CLASSIFICATION, classes=["None", "dog"]).missing("None")


@pytest.mark.parametrize(
    ("cell", "id_type", "id_"),
    [
        ("007", pa.string(), "007"),
        ("007", pa.int64(), 7),
        ("7.0", pa.int64(), 7),
        (7, pa.string(), "7"),
        ("x", pa.int64(), None),
        ("9007199254740993", pa.int64(), 2**53 + 1),
        ("9007199254740992.0", pa.int64(), None),
        ("9007199254740991,00", pa.int64(), 2**53 - 1),
        ("99999999999999999999", pa.int64(), None),
        ("9999999999999999999", pa.int64(), None),
        ("", pa.string(), None),
        ("Mu\u0308ll", pa.string(), "M\u00fcll"),
    ],
)
def test_ids_are_what_the_pool_has(cell, id_type, id_):
    assert read_id(cell, id_type) == id_


def test_floating_point_numbers_that_may_be_their_neighbors_are_no_ids():
    """What pandas makes of a column of ids that lacks one."""
    made = parquet({"id": [float(2**53 + 1), float(2**53 - 1)], "label": ["cat", "dog"]})
    assert [read_id(cell, pa.int64()) for cell in cells(made)] == [None, 2**53 - 1]
    made = parquet({"id": pa.array([2.0**24, 2.0**24 - 1], pa.float32()), "label": ["cat", "dog"]})
    assert [read_id(cell, pa.int64()) for cell in cells(made)] == [None, 2**24 - 1], "2^24 + 1 is 2^24 there"


def test_decimals_and_dates_are_text():
    made = parquet({"id": [Decimal("1.50")], "label": ["cat"]})
    assert cells(made) == {"1.50": "cat"}


@pytest.mark.parametrize(
    "text", ["=1+1", "+x", "-x", "@SUM(A1)", "\t=x", "\r=x", "'=x", "''", "'a", "a", "", "x=1", "'"]
)
def test_a_cell_is_no_formula_and_comes_back_as_it_was(text):
    cell = inert(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert plain(cell) == text
    if text.strip() == text and text:
        assert read_id(cell, pa.string()) == text


def test_quotes_of_peoples_own_stay():
    assert read_id("'tis", pa.string()) == "'tis"


def test_parquet_with_text_that_is_not_utf8_or_a_column_twice_is_refused():
    broken = pa.array(["cat", "dog"])
    broken = pa.Array.from_buffers(pa.string(), 2, [None, broken.buffers()[1], pa.py_buffer(b"c\xfftdog")])
    with pytest.raises(TableError, match="no Parquet file that can be read"):
        table(parquet({"id": ["a", "b"], "label": broken}))
    pq.write_table(pa.table([["a"], ["b"], ["cat"]], names=["id", "id", "label"]), out := io.BytesIO())
    with pytest.raises(TableError, match="column 'id' stands there twice"):
        table(out.getvalue())


@pytest.mark.parametrize("name", ["text", "Text", "TEXT"])
def test_a_delimiter_is_told_by_columns_however_they_are_spelled(name):
    assert delimiter_of(f"{name};Stars, 1-5;Price, EUR\n", [name]) == ";"


def test_lists_in_parquet_are_lists_in_json():
    made = parquet({"id": ["a", "b", "c"], "label": [["cat", 'd"g'], [], None]})
    assert cells(made) == {"a": '["cat", "d\\"g"]', "b": "[]", "c": None}


def test_decimals_of_many_digits_are_numbers():
    made = parquet({"id": pa.array([Decimal(10) ** 30], pa.decimal128(38, 0)), "label": ["cat"]})
    assert cells(made) == {10**30: "cat"}
