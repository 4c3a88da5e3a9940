"""CSV and JSON Lines: what is read, and how each kind of damage is named."""

import json

import pytest

from prunefuse_ray import config as cfg
from prunefuse_ray.cli import main
from prunefuse_ray.data.inventory import take
from prunefuse_ray.data.sources.tables import vector_of
from prunefuse_ray.data.stream import stream
from prunefuse_ray.data.survey import materialize, sources, survey
from prunefuse_ray.errors import PoolError
from prunefuse_ray.storage import Place
from tests.support.pools import rows

NAMES = ["bad", "good"]
OTHERS = {"fine": "well", "0.5": "0.75", "a1": "t1", "a2": "t2"}
"""What of the pool stands otherwise in the test set."""


def written(where, name, content):
    for part in ("pool", "test"):
        (where / part).mkdir(exist_ok=True)
        told = content
        for mine, theirs in OTHERS.items() if part == "test" else ():
            told = told.replace(mine, theirs)
        (where / part / name).write_bytes(told.encode())


def found(where, source, **more):
    tree = {"source": source, "path": str(where / "pool"), "test_path": str(where / "test"), "classes": NAMES}
    pool = cfg.Pool.model_validate({"text_column": "text", **tree, **more})
    result = survey(pool)
    materialize(result, Place.at(str(where / "run")))
    return result.info, rows(stream(sources(pool, Place.at(str(where / "run")))[0], label=True))


def test_csv_of_any_dialect_with_ids_of_rows(tmp_path, local_ray):
    written(tmp_path, "a.csv", 'text;label\r\n"fine; ""really""\r\nso";good\r\n\r\n;1\r\n')
    info, seen = found(tmp_path, "csv", text_length=9, text_form="bytes")
    assert (info.rows, info.id_type, info.sample_size) == (2, "string", (9,))
    assert {i: (r["sample"], r["label"]) for i, r in seen.items()} == {
        "a.csv:0": ('fine; "really"\r\nso', 1), "a.csv:1": ("", 1),
    }  # fmt: skip


def test_json_lines_with_ids_of_their_own(tmp_path, local_ray):
    lines = [{"key": "a1", "text": "fine", "label": "good"}, {"key": "a2", "text": 3, "label": 0}]
    written(tmp_path, "a.jsonl", "\ufeff" + "\n\n".join(map(json.dumps, lines)))
    _, seen = found(tmp_path, "jsonl", id_column="key")
    assert {i: (r["sample"], r["label"]) for i, r in seen.items()} == {"a1": ("fine", 1), "a2": (None, 0)}


def test_a_number_that_is_the_name_of_another_class_is_refused(tmp_path, local_ray):
    """As CSV it would be the name."""
    line = {"key": "a1", "text": "fine", "label": 1}
    written(tmp_path, "a.jsonl", json.dumps(line))
    with pytest.raises(PoolError, match=r"1, which may be the number of a class or the name of another .*id 'a1'"):
        found(tmp_path, "jsonl", id_column="key", classes=["1", "2", "3"])
    _, seen = found(tmp_path, "jsonl", id_column="key", classes=["0", "1", "2"])
    assert seen["a1"]["label"] == 1
    written(tmp_path, "a.jsonl", json.dumps({**line, "label": "1"}))
    _, seen = found(tmp_path, "jsonl", id_column="key", classes=["1", "2", "3"])
    assert seen["a1"]["label"] == 0


def test_utf_16_is_read_where_it_says_so(tmp_path, local_ray):
    for part, text in (("pool", "fine"), ("test", "well")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.tsv").write_bytes(f"text\tlabel\n{text}\tgood\n".encode("utf-16"))
    _, seen = found(tmp_path, "csv")
    assert seen["a.tsv:0"]["sample"] == "fine"


@pytest.mark.parametrize(
    ("source", "name", "content"),
    [
        ("csv", "v.csv", 'embedding,label\n"[0.5, 1, 2]",good\n0.5 -1 1e2,bad\nnothing,bad\n'),
        ("jsonl", "v.jsonl",
         '{"embedding": [0.5, 1, 2], "label": 1}\n{"embedding": [0.5, -1, 1e2], "label": 0}\n'
         '{"embedding": "nothing", "label": 0}'),
    ],
)  # fmt: skip
def test_vectors(tmp_path, local_ray, source, name, content):
    written(tmp_path, name, content)
    info, seen = found(tmp_path, source, text_column=None, vector_column="embedding")
    assert info.sample_size == (3,)
    samples = [r["sample"] for r in seen.values()]
    assert [None if s is None else list(s) for s in samples] == [[0.5, 1, 2], [0.5, -1, 100], None]


@pytest.mark.parametrize(
    ("source", "name", "content", "said"),
    [
        ("csv", "a.csv", "text,label\nfine,good\nfine,good,1\n", "a.csv', line 3: 3 cells, but the header has 2"),
        ("csv", "a.csv", 'text,label\n"fine,good\n', "a.csv', line 2: unexpected end"),
        ("csv", "a.csv", "texts,label\nfine,good\n", "has no column 'text'.* it has texts, label"),
        ("csv", "a.csv", "text,label\nfine,grand\n", r"none of the 2 classes, e.g. 'grand' \(id 'a.csv:0'\)"),
        ("csv", "a.csv", "PK\x03\x04", "a spreadsheet"),
        ("csv", "a.csv", "", "holds no samples"),
        ("jsonl", "a.jsonl", '{"text": "fine", "label": 1}\n{"text": "fi', "line 2: no JSON"),
        ("jsonl", "a.jsonl", "[1]", "line 1: a list, expected an object"),
        ("jsonl", "a.jsonl", '{"text": "fine"}', "has no column 'label'"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path, local_ray, source, name, content, said):
    written(tmp_path, name, content)
    with pytest.raises(PoolError, match=said):
        found(tmp_path, source)


def test_a_field_that_first_rows_lack_is_a_column(tmp_path, local_ray):
    """Exporters write no field that has no value; a field of no row is refused."""
    lines = [{"id": "a1", "label": "bad"}, {"id": "a2", "text": "fine", "label": "good"}]
    written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    _, seen = found(tmp_path, "jsonl", id_column="id")
    assert {i: r["sample"] for i, r in seen.items()} == {"a1": None, "a2": "fine"}


def test_bytes_that_are_not_utf_8_are_refused_and_so_are_ids_that_come_twice(tmp_path, local_ray):
    written(tmp_path, "a.csv", "id,text,label\na1,fine,good\na1,fine,good\n")
    with pytest.raises(PoolError, match=r"column 'id' has duplicate ids, e\.g\. 'a1'"):
        found(tmp_path, "csv", id_column="id")
    (tmp_path / "pool/a.csv").write_bytes("text,label\nfähig,good\n".encode("latin-1"))
    with pytest.raises(PoolError, match="is not UTF-8 from about line"):
        found(tmp_path, "csv")


@pytest.mark.parametrize(
    ("cell", "vector"),
    [
        ("1,5", [1, 5]),
        ("[1, 5, 2]", [1, 5, 2]),
        ("1,5, 2,7", [1, 5, 2, 7]),
        ("1.5;5", [1.5, 5]),
        ("1.5 5", [1.5, 5]),
        ("1 , 5", [1, 5]),
        ("0,5;0,25", None),
        ("1;0,25", None),
        ("0,5;1", None),
        ("0,5 0,25", None),
        ("[0,5\t0,25]", None),
    ],
)
def test_commas_that_may_stand_for_points_make_no_vector(cell, vector):
    """Read as separators they would make twice as many numbers, and other ones."""
    assert vector_of(cell) == vector


def test_texts_or_vectors_have_to_be_named():
    with pytest.raises(ValueError, match="text_column is missing: source 'csv' needs it, or vector_column"):
        cfg.Pool.model_validate({"source": "csv", "path": "a", "test_path": "b"})


HALF = "\\ud83d"
"""Half of a surrogate pair, as JSON spells it: cut in the middle of an emoji, for example."""


def test_half_a_character_in_a_text_is_replaced_and_counted(tmp_path, local_ray):
    lines = [
        f'{{"id": "a1", "text": "fine {HALF}", "label": 1}}',
        '{"id": "a2", "text": "fine \\ud83d\\ude00", "label": 0}',
    ]
    written(tmp_path, "a.jsonl", "\n".join(lines))
    _, seen = found(tmp_path, "jsonl", id_column="id", text_form="bytes", text_length=12)
    texts = {i: r["sample"] for i, r in seen.items()}
    assert texts == {"a1": "fine \ufffd", "a2": "fine \U0001f600"}


@pytest.mark.parametrize(
    ("row", "column"), [(f'"id": "a{HALF}", "label": 1', "id"), (f'"id": "a1", "label": "good{HALF}"', "label")]
)
def test_half_a_character_in_a_name_is_refused_with_its_place(tmp_path, local_ray, row, column):
    written(tmp_path, "a.jsonl", f'{{"id": "a2", "text": "fine", "label": 1}}\n{{"text": "bad", {row}}}\n')
    with pytest.raises(PoolError, match=rf"a\.jsonl', line 2: .*\\ud83d' in column '{column}' has half of a surrogate"):
        found(tmp_path, "jsonl", id_column="id")


def test_half_a_character_in_a_class_that_is_guessed_can_be_shown(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine", "label": "good{HALF}"}}\n{{"text": "no", "label": "bad"}}\n')
    assert main(["inspect", str(tmp_path / "a.jsonl"), "--pool.text_column", "text"]) == 2
    assert "has half of a surrogate pair" in capsys.readouterr().err


def test_rows_of_empty_cells_are_counted_and_leave_the_others_their_numbers(tmp_path, local_ray):
    written(tmp_path, "a.csv", "text,label\nfine,good\n,\n\nfine too,1\n")
    _, seen = found(tmp_path, "csv")
    assert sorted(seen) == ["a.csv:0", "a.csv:2"]
    tree = {"source": "csv", "path": str(tmp_path / "pool"), "test_path": str(tmp_path / "test"), "classes": NAMES}
    index = survey(cfg.Pool.model_validate({**tree, "text_column": "text"})).indexes["path"]
    assert dict(index.left_out.counts) == {"row of empty cells": 1}


def test_a_number_beyond_all_numbers_is_no_vector():
    assert vector_of([10**400]) is None


def test_excels_word_on_the_delimiter_is_no_header(tmp_path, local_ray):
    written(tmp_path, "a.csv", "sep=;\r\ntext;label\r\nfine;good\r\n")
    _, seen = found(tmp_path, "csv")
    assert list(seen) == ["a.csv:0"]


@pytest.mark.parametrize(
    ("name", "empty", "content"),
    [
        ("a.jsonl", "", '{"text": "x", "label": ["bad", "good"]}\n'),
        ("a.csv", "text,label\n", "text,label\nx,bad;good\n"),
    ],
)
def test_a_file_without_rows_is_none_of_any_task(tmp_path, local_ray, name, empty, content):
    written(tmp_path, name, content)
    (tmp_path / "pool" / f"b{name[1:]}").write_text(empty)
    tree = {"source": name.removeprefix("a."), "path": str(tmp_path / "pool"), "text_column": "text", "classes": NAMES}
    pool = cfg.UntestedPool.model_validate(tree)
    found = survey(pool, task="multi_label")
    assert found.info.rows == 1
    assert take(found).inventory.sets["path"].looked == 1
    (tmp_path / "pool" / name).write_text(empty)
    with pytest.raises(PoolError, match="holds no samples"):
        survey(pool, task="multi_label")
