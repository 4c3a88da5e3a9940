"""Labels that exist already: read, checked all at once, part of the labeled set from round 0, counted by budgets."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefuse_ray import config as cfg
from prunefuse_ray.data.known_labels import check_known_labels, known_count, read_known
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.data.survey import survey
from prunefuse_ray.errors import ConfigError, LedgerError, PoolError
from prunefuse_ray.run import loop
from prunefuse_ray.tasks.classification import CLASSIFICATION
from tests.support.pools import parquet_pool, random_images, write_pool
from tests.support.runs import tiny

INFO = PoolInfo(
    source="parquet", path="", rows=0, bytes=0, files=0, listing_digest="", id_digest="", id_type="string",
    classes=["dark", "light"], sample_size=(8, 8),
)  # fmt: skip


def write(tmp_path, text):
    (tmp_path / "known.csv").write_text(text)
    return str(tmp_path / "known.csv")


def test_names_and_numbers_from_csv_and_parquet(tmp_path):
    found = read_known(write(tmp_path, "id,label\ns2,light\ns1,0\ns3,1\ns3,light\n"), INFO, CLASSIFICATION).table
    assert found.to_pylist() == [{"id": "s1", "label": 0}, {"id": "s2", "label": 1}, {"id": "s3", "label": 1}]
    pq.write_table(pa.table({"id": ["s1"], "label": pa.array([1], pa.int8())}), tmp_path / "k.parquet")
    assert read_known(str(tmp_path / "k.parquet"), INFO, CLASSIFICATION).table.to_pylist() == [{"id": "s1", "label": 1}]


def test_ids_that_look_like_numbers_stay_what_the_pool_has(tmp_path):
    path = write(tmp_path, "id,label\n007,1\n")
    assert read_known(path, INFO, CLASSIFICATION).table["id"].to_pylist() == ["007"]
    numbered = PoolInfo(**{**vars(INFO), "id_type": "int64"})
    assert read_known(path, numbered, CLASSIFICATION).table["id"].to_pylist() == [7]


def test_all_faults_are_said_at_once(tmp_path):
    path = write(tmp_path, "id,label\ns1,0\ns1,1\ns2,gray\n,1\ns4,2\n")
    with pytest.raises(PoolError) as caught:
        read_known(path, INFO, CLASSIFICATION)
    for said in (
        "'s1': both 'dark' and 'light'",
        "line 4 ('s2'): label 'gray' is not a class",
        "line 5: a row without an id",
        "line 6 ('s4'): label '2' is not",
        "the classes are dark, light",
    ):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("key,label\na,1\n", "no column 'id'; it has key, label"),
        (None, "cannot be read"),
        ("", "is empty; give a header line"),
    ],
)
def test_a_file_that_cannot_be_used_is_said(tmp_path, text, said):
    path = str(tmp_path / "none.csv") if text is None else write(tmp_path, text)
    with pytest.raises(PoolError, match=said):
        read_known(path, INFO, CLASSIFICATION)


def test_what_spreadsheets_write_is_read_and_what_was_done_to_it_is_said(tmp_path):
    text = "\ufeff;id;label;sheet\r\n0; s1;light;x\r\n1;s2;1.0;x\r\n2;s3;;x\r\n3;s4;nan;x\r\n"
    known = read_known(write(tmp_path, text), INFO, CLASSIFICATION)
    assert known.table.to_pylist() == [{"id": "s1", "label": 1}, {"id": "s2", "label": 1}]
    assert known.notes == (
        "columns left aside: sheet",
        "a first column of row numbers without a name is left aside",
        "2 rows without a label are left out",
        "blanks around 1 ids are left out",
        "1 labels such as '1.0' are read as '1'",
        "1 labels 'nan' are read as missing",
    )


def test_ids_that_differ_by_blanks_alone_are_not_guessed(local_ray, tmp_path):
    pool = parquet_pool(tmp_path)
    write_pool(tmp_path / "pool", random_images(8))
    write_pool(tmp_path / "test", random_images(4, seed=1), first_id=900)
    file = next((tmp_path / "pool").iterdir())
    rows = pq.read_table(file)
    ids = rows["id"].to_pylist()
    pq.write_table(rows.set_column(0, "id", pa.array([f" {ids[1]}", *ids[1:]])), file)
    found = survey(pool)
    path = write(tmp_path, f"id,label\n {ids[1]},0\n")
    with pytest.raises(PoolError, match="ids differ by blanks alone"):
        check_known_labels(pool.model_copy(update={"known_labels": path}), "classification", found.info,
                           found.indexes["path"])  # fmt: skip


# --- in a run ---


def known_file(tmp_path, ids, name="known.csv"):
    path = tmp_path / name
    path.write_text("id,label\n" + "".join(f"s{i:04d},{['0', '1'][i % 2]}\n" for i in ids))
    return str(path)


def run_tree(tmp_path, ids, budgets):
    return {"pool": {"known_labels": known_file(tmp_path, ids)}, "selection": {"budgets": budgets}}


@pytest.mark.parametrize("first", [10, pytest.param(14, marks=pytest.mark.slow)])
def test_known_labels_are_counted_and_never_asked_for(local_ray, tiny_pool, tmp_path, first):
    """With a first budget of just the known labels nothing is paid for before the proxy chooses."""
    ids = range(0, 20, 2)
    config = tiny(tiny_pool, tmp_path / "runs", **run_tree(tmp_path, [*ids], [first, 18]))
    loop.run(config)
    root = tmp_path / "runs" / "tiny"
    known = pq.read_table(root / "known/labels.parquet").to_pylist()
    assert [(r["id"], r["label"], r["source"]) for r in known] == [(f"s{i:04d}", 0, "known") for i in ids]
    asked = [pq.read_table(root / f"rounds/{r:03d}/labels.parquet")["id"].to_pylist() for r in (0, 1)]
    assert [len(a) for a in asked] == [first - 10, 18 - first]
    assert not {i for a in asked for i in a} & {r["id"] for r in known}
    scored = {i for f in (root / "rounds/000/scores").glob("*") for i in pq.read_table(f)["id"].to_pylist()}
    assert len(scored) == 120 - first
    assert not scored & {r["id"] for r in known}
    whole = pq.read_table(root / "selected.parquet")
    assert whole.column_names == ["id", "round", "score", "rank"]
    assert whole["id"].to_pylist() == [
        i
        for r in (0, 1)
        for i in pq.read_table(root / f"rounds/{r:03d}/selected.parquet").sort_by("rank")["id"].to_pylist()
    ]
    assert (root / "fused/preprocessing.json").is_file()
    (root / "commits/report.json").unlink()  # as if it had been killed before its end
    known_file(tmp_path, [*ids][:-1])
    with pytest.raises(LedgerError, match=r"pool\.known_labels.* is not the file that the run began with"):
        loop.run(config)


@pytest.mark.parametrize(
    ("ids", "budgets", "error", "said"),
    [
        (range(12), [10, 18], ConfigError, "the first budget is 10 labels, but pool.known_labels has 12"),
        ([1, 500, 501], [10, 18], PoolError, "2 of 3 ids are not in the pool: 's0500'; 's0501'"),
    ],
)
def test_known_labels_that_do_not_fit_are_refused_and_nothing_is_written(
    local_ray, tiny_pool, tmp_path, ids, budgets, error, said
):
    config = tiny(tiny_pool, tmp_path / "runs", **run_tree(tmp_path, ids, budgets))
    with pytest.raises(error) as caught:
        loop.run(config)
    assert said in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_of_more_labels_than_are_held_at_once_none_is_lost(tmp_path, monkeypatch, kind):
    for module in ("label_tables", "known_labels"):
        monkeypatch.setattr(f"prunefuse_ray.data.{module}.AT_ONCE", 2)
    expected = [{"id": f"s{i}", "label": i % 2} for i in range(7)]
    path = write(tmp_path, "id,label\n" + "".join(f"s{i},{i % 2}\n" for i in range(7)))
    if kind == "parquet":
        path = str(tmp_path / "k.parquet")
        pq.write_table(pa.Table.from_pylist(expected), path)
    assert read_known(path, INFO, CLASSIFICATION).table.to_pylist() == expected


@pytest.mark.parametrize("image", [b"\x89PNG\r\n", {"bytes": b"\x89PNG", "path": "x.png"}])
def test_columns_beside_the_labels_are_not_read(tmp_path, image):
    """The pool's own file, of which some rows are labeled."""
    pq.write_table(
        pa.table({"id": ["s1", "s2"], "image": [image] * 2, "label": ["light", None]}), tmp_path / "k.parquet"
    )
    found = read_known(str(tmp_path / "k.parquet"), INFO, CLASSIFICATION)
    assert found.table.to_pylist() == [{"id": "s1", "label": 1}]
    assert found.notes[0] == "columns left aside: image"


def test_labels_of_a_drawn_test_set_are_told_apart_in_either_unicode_form(tmp_path):
    known = read_known(write(tmp_path, "id,label\nMu\u0308ll.png,0\nb,1\n"), INFO, CLASSIFICATION)
    assert known_count(known, pa.array(["Mu\u0308ll.png"])) == known_count(known, pa.array(["M\u00fcll.png"])) == 1


@pytest.mark.parametrize("text", ["id,label\n", "id,label\na,\nb,NA\n"])
def test_a_table_without_labels_is_refused_of_a_new_pool(tmp_path, text):
    path = write(tmp_path, text)
    pool = cfg.Pool(source="parquet", path="a", test_path="b", classes=2, known_labels=path)
    with pytest.raises(PoolError, match="holds no label"):
        check_known_labels(pool, "classification", INFO, SimpleNamespace())
    assert read_known(path, INFO, CLASSIFICATION).table.num_rows == 0, "a run that began so goes on"
