"""Tables of Delta Lake and Iceberg: the rows that their own libraries read, at the version that they read."""

import base64
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import EqualTo
from pyiceberg.manifest import DataFileContent, FileFormat
from pyiceberg.table import DataScan, StaticTable
from pyiceberg.utils.config import Config
from pyroaring import BitMap64

from prunefuse_ray import config as cfg
from prunefuse_ray.config.files import config_from_tree, to_tree
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.labeled_set import load_samples
from prunefuse_ray.data.prepared import decoded
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import reader_of
from prunefuse_ray.data.stream import rows as rows_here
from prunefuse_ray.data.stream import stream
from prunefuse_ray.data.survey import sources, survey
from prunefuse_ray.data.vectors import VectorForm
from prunefuse_ray.errors import LedgerError, PoolError
from prunefuse_ray.run import growth
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from tests.support.pools import random_images, rows
from tests.support.sources import COUNT, TEST, hint_version, pool_of, table_of, write_delta, write_iceberg, write_tables

GRAY8 = ImageForm(height=8, width=8, channels=1)
FORMATS = ["delta", "iceberg"]


def truth(pool) -> dict[str, int]:
    """id -> label as the format's own library reads the table."""
    if pool.source == "delta":
        table = pa.table(DeltaTable(pool.path, version=pool.version).to_pyarrow_table())
    else:
        table = StaticTable.from_metadata(pool.path).scan(snapshot_id=pool.version).to_arrow()
    return dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))


def read(pool) -> dict[str, int]:
    """The same as a run reads it, each way that it has: streamed, by the driver, decoded, and some ids alone."""
    found = survey(pool)
    source = sources(pool, Place.at("unused"))[0]
    streamed = {i: r["label"] for i, r in rows(stream(source, label=True)).items()}
    assert found.info.rows == len(streamed)
    here = pa.concat_tables(rows_here(source, label=True))
    assert dict(zip(here["id"].to_pylist(), here["label"].to_pylist(), strict=True)) == streamed
    chunks = [chunk.rows for chunk in decoded(source, GRAY8, label=True)]
    assert {i: n for c in chunks for i, n in zip(*(c[k].to_pylist() for k in ("id", "label")), strict=True)} == streamed
    wanted = pa.array([*sorted(streamed)[1::3], "s0003"])
    some = pa.concat_tables(list(rows_here(source, only=wanted)))["id"].to_pylist()
    assert sorted(some) == sorted(set(wanted.to_pylist()) & streamed.keys())
    assert len(load_samples(source, GRAY8)) == len(streamed)
    return streamed


def iceberg(root):
    """The table that `write_iceberg` wrote, to be changed further."""
    return SqlCatalog("x", uri=f"sqlite:///{root.parent}/{root.name}.db").load_table("db.t")


def delete(pool, tmp_path, id_, name="pool"):
    """Delete a row as the library does it: by another file in place of the one that has the row."""
    if pool.source == "delta":
        DeltaTable(pool.path).delete(f"id = '{id_}'")
    else:
        table = iceberg(tmp_path / name)
        table.delete(EqualTo("id", id_))
        hint_version(table, tmp_path / name)


@pytest.mark.parametrize("name", FORMATS)
def test_deleted_rows_are_gone_and_a_pinned_version_has_them(name, tmp_path, local_ray):
    pool = pool_of(name, tmp_path)
    before = survey(pool).info
    delete(pool, tmp_path, "s0003")
    assert len(read(pool)) == COUNT - 1
    assert read(pool) == truth(pool)
    pinned = pool.model_copy(update={"version": int(before.version)})
    assert read(pinned) == truth(pinned)
    assert survey(pinned).info == before


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_goes_on_with_the_version_that_it_recorded(name, tmp_path, local_ray):
    pool = pool_of(name, tmp_path)
    config = config_from_tree({"pool": pool.model_dump()})
    ledger, info = Ledger(Place.at(str(tmp_path / "run"))), survey(pool).info
    growth.record(pool, info, ledger.root)
    ledger.create(to_tree(config), info.to_json())
    delete(pool, tmp_path, "s0003")
    with pytest.raises(
        LedgerError, match=rf"removed: .*go on with what the run has read by --pool.version {info.version}"
    ):
        growth.check_unchanged(config, ledger)
    pinned = config_from_tree({"pool": pool.model_dump() | {"version": int(info.version)}})
    ledger.check_config(pinned)
    growth.check_unchanged(pinned, ledger)
    other = config_from_tree({"pool": pool.model_dump() | {"version": 4711}})
    with pytest.raises(LedgerError, match=r"pool\.version: None -> 4711"):
        ledger.check_config(other)


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("delta", 99, r"pool\.path: the Delta table .* cannot be opened at version 99"),
        ("delta", "gold", r"pool\.version 'gold': a Delta table's versions are numbers"),
        ("iceberg", 99, r"pool\.version 99: the Iceberg table .* has no such snapshot, branch or tag; it has \d+"),
        ("iceberg", "gold", r"pool\.version gold: .* it has \d+, \d+, main"),
    ],
)
def test_a_version_that_is_not_there_is_said(name, version, said, tmp_path):
    with pytest.raises(PoolError, match=said):
        survey(pool_of(name, tmp_path, version=version))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"path": "nowhere"}, r"nowhere"),
        ({"path": ["a", "b"]}, r"give one table"),
        ({"id_column": "key"}, r"pool\.id_column: .* has no column 'key'; it has id, image, label; null makes ids"),
        ({"label_column": "lable"}, r"pool\.label_column: .* no column 'lable' \(did you mean 'label'\?\)"),
    ],
)
def test_what_a_table_does_not_have_is_said(name, field, said, tmp_path):
    with pytest.raises(PoolError, match=said):
        survey(pool_of(name, tmp_path).model_copy(update=field))


def test_a_table_without_rows_is_said(tmp_path):
    pool = pool_of("delta", tmp_path)
    DeltaTable(pool.path).delete()
    with pytest.raises(PoolError, match=r"the Delta table '.*' has no rows at version 2"):
        survey(pool)
    pool = pool_of("iceberg", tmp_path / "i")
    table = iceberg(tmp_path / "i/pool")
    table.delete("id != ''")
    hint_version(table, tmp_path / "i/pool")
    with pytest.raises(PoolError, match=r"the Iceberg table '.*' has no rows at version \d+"):
        survey(pool)


def test_a_folder_of_a_table_is_not_read_as_parquet_files(tmp_path):
    """Files that the table's newest version does not have any more lie there, too."""
    for name in FORMATS:
        pool = pool_of(name, tmp_path / name)
        with pytest.raises(PoolError, match=rf"pool\.path: '.*' is a table of {name}.*set pool\.source to {name}"):
            survey(pool.model_copy(update={"source": "parquet"}))


@pytest.mark.parametrize("column", ["list", "fixed", "struct"])
@pytest.mark.parametrize("name", FORMATS)
def test_files_that_a_library_wrote_anew_still_belong_to_the_others(name, column, tmp_path, local_ray):
    """Deleting rewrites a file, with types of its own for the same values (bytes as views, lists of any length)."""
    if (name, column) == ("iceberg", "fixed"):
        pytest.skip("Iceberg has no lists of one length")
    vectors = [[float(i), 1.0] for i in range(COUNT)]
    table = table_of(random_images(COUNT))
    images = [{"bytes": b, "path": "x"} for b in table["image"].to_pylist()]
    given = {
        "list": pa.array(vectors, pa.list_(pa.float32())),
        "fixed": pa.array(vectors, pa.list_(pa.float32(), 2)),
        "struct": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    }[column]
    pool = pool_of(name, tmp_path)
    both = table.append_column("given", given)
    for where, first in (("pool", 0), ("test", TEST)):
        ids = pa.array([f"s{i + first:04d}" for i in range(COUNT)])
        write_tables(name, tmp_path / f"{where}2", [t.set_column(0, "id", i) for t, i in
                     ((both.slice(0, 8), ids[:8]), (both.slice(8), ids[8:]))])  # fmt: skip
    delete(pool.model_copy(update={"path": str(tmp_path / "pool2")}), tmp_path, "s0003", "pool2")
    field = "image_column" if column == "struct" else "vector_column"
    pool = pool.model_copy(
        update={"path": str(tmp_path / "pool2"), "test_path": str(tmp_path / "test2"), field: "given"}
    )
    found = survey(pool)
    source = sources(pool, Place.at("unused"))[0]
    form = GRAY8 if column == "struct" else VectorForm(length=2)
    values = load_samples(source, form)
    assert found.info.rows == len(values) == COUNT - 1
    streamed = rows(stream(source))
    for i in (0, 9):
        assert streamed[f"s{i:04d}"]["sample"] == (images[i]["bytes"] if column == "struct" else vectors[i])


# --- Delta Lake ---


def z85(data: bytes) -> str:
    """https://rfc.zeromq.org/spec/32"""
    python = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    zeromq = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    padded = data + b"\0" * (-len(data) % 4)
    return base64.b85encode(padded).decode().translate(str.maketrans(python, zeromq))


def add_deletion_vector(root, deleted):
    """A commit that deletes rows of the first file by a vector, as Spark writes it (PROTOCOL.md, Deletion Vectors)."""
    log = root / "_delta_log"
    actions = [json.loads(line) for file in sorted(log.glob("*.json")) for line in file.read_text().splitlines()]
    add = next(a["add"] for a in actions if "add" in a)
    data = (1681511377).to_bytes(4, "little") + BitMap64(deleted).serialize()
    vector = {"storageType": "i", "pathOrInlineDv": z85(data), "sizeInBytes": len(data), "cardinality": len(deleted)}
    features = {"minReaderVersion": 3, "minWriterVersion": 7,
                "readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}  # fmt: skip
    gone = {"path": add["path"], "deletionTimestamp": 1, "dataChange": True}
    commit = [{"protocol": features}, {"remove": gone}, {"add": add | {"deletionVector": vector}}]
    number = len(list(log.glob("*.json")))
    (log / f"{number:020d}.json").write_text("\n".join(map(json.dumps, commit)))


def test_deletion_vectors_are_respected_and_noticed(tmp_path, local_ray):
    pool = pool_of("delta", tmp_path)
    info = survey(pool).info
    config, ledger = config_from_tree({"pool": pool.model_dump()}), Ledger(Place.at(str(tmp_path / "run")))
    growth.record(pool, info, ledger.root)
    ledger.create(to_tree(config), info.to_json())
    add_deletion_vector(tmp_path / "pool", [0, 3, 7])
    with pytest.raises(LedgerError, match=r"changed: part-.*parquet.*--pool.version 1"):
        growth.check_unchanged(config, ledger)
    left = read(pool)
    assert len(left) == COUNT - 3
    with_rows = read(pool.model_copy(update={"id_column": None}))
    assert sorted(i.rpartition(":")[2] for i in with_rows) == sorted("1245601234567")
    pinned = pool.model_copy(update={"version": 1})
    assert read(pinned).keys() - left.keys() <= truth(pinned).keys()


@pytest.mark.parametrize("partitions", [None, ["site"]])
@pytest.mark.parametrize("spelling", ["{}/plain", "{}/with blank", "{}/ü#?", "{}/link", "file://{}/plain", "{}/./p/"])
def test_deletion_vectors_are_found_however_the_table_is_called(tmp_path, spelling, partitions):
    """Their files are named as URIs, in which a blank is %20, and below the folder that a link leads to."""
    name = spelling.removesuffix("/").rpartition("/")[2].replace("link", "plain")
    table = table_of(random_images(8)).append_column("site", pa.array(["a b/ü%"] * 8))
    write_deltalake(str(tmp_path / name), table, partition_by=partitions)
    add_deletion_vector(tmp_path / name, [0, 3, 7])
    (tmp_path / "link").symlink_to(tmp_path / name)
    pool = pool_of("delta", tmp_path).model_copy(update={"path": spelling.format(tmp_path)})
    listing = reader_of(pool).listing(SampleSet(pool))
    assert {file: rows.tolist() for file, rows in listing.of_table.deleted.items()} == {listing.paths[0]: [0, 3, 7]}
    assert Place.at(listing.paths[0]).exists()


def test_partitions_of_any_name_are_read_and_their_columns_refused(tmp_path, local_ray):
    pool = pool_of("delta", tmp_path)
    table = table_of(random_images(6))
    sites = pa.array(["x y", "ü", "%", None, "a/b", "x y"])
    write_deltalake(tmp_path / "p", table.append_column("site", sites), partition_by=["site"])
    pool = pool.model_copy(update={"path": str(tmp_path / "p")})
    assert read(pool) == truth(pool)
    with pytest.raises(PoolError, match=r"the Delta table is partitioned by 'site', whose values stand in its log"):
        survey(pool.model_copy(update={"group_column": "site"}))


def test_features_of_a_table_that_change_what_its_files_mean_are_refused(tmp_path):
    pool = pool_of("delta", tmp_path)
    first = sorted((tmp_path / "pool/_delta_log").glob("*.json"))[0]
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    for line in lines:
        if "metaData" in line:
            line["metaData"]["configuration"]["delta.columnMapping.mode"] = "name"
            schema = json.loads(line["metaData"]["schemaString"])
            for n, field in enumerate(schema["fields"]):
                field["metadata"] = {"delta.columnMapping.id": n, "delta.columnMapping.physicalName": f"col-{n}"}
            line["metaData"]["schemaString"] = json.dumps(schema)
        if "protocol" in line:
            line["protocol"] = {"minReaderVersion": 2, "minWriterVersion": 5}
    first.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(
        PoolError, match=r"uses column mapping \(mode name\), by which its files call columns otherwise"
    ):
        survey(pool)


@pytest.mark.parametrize("name", FORMATS)
def test_a_column_that_older_files_lack_is_said_with_the_file(name, tmp_path, local_ray):
    pool = pool_of(name, tmp_path)
    more = table_of(random_images(2), first=100)
    more = more.append_column("grade", more["label"])
    if name == "delta":
        write_deltalake(pool.path, more, mode="append", schema_mode="merge")
    else:
        table = iceberg(tmp_path / "pool")
        with table.update_schema() as update:
            update.union_by_name(more.schema)
        table.append(more)
        hint_version(table, tmp_path / "pool")
    assert read(pool) == truth(pool)
    with pytest.raises(
        PoolError,
        match=r"parquet': column 'grade' is (missing, before integers|integers, before missing)|no column 'grade'",
    ):
        survey(pool.model_copy(update={"label_column": "grade"}))


# --- Iceberg ---


def test_a_column_that_took_the_name_of_another_is_not_mistaken_for_it(tmp_path, local_ray):
    pool = pool_of("iceberg", tmp_path)
    info = survey(pool).info
    table = iceberg(tmp_path / "pool")
    with table.update_schema() as update:
        update.rename_column("label", "old")
    with table.update_schema() as update:
        update.add_column("label", table.schema().find_type("old"))
    table = iceberg(tmp_path / "pool")
    table.append(table_of(random_images(2), first=100).append_column("old", pa.array([0, 0])))
    hint_version(table, tmp_path / "pool")
    said = (
        r"its column 'label' is another one than the table's 'label', which was renamed; rewrite the table's data files"
    )
    with pytest.raises(PoolError, match=said):
        survey(pool)
    pinned = pool.model_copy(update={"version": int(info.version)})
    assert read(pinned) == truth(pinned), "before the change"


def with_deletes(monkeypatch, file):
    """Let the first data file of a table have a delete file, which PyIceberg reads and does not write."""
    plan = DataScan.plan_files

    def planned(scan):
        tasks = sorted(plan(scan), key=lambda task: task.file.file_path)
        tasks[0].delete_files.add(file)
        return tasks

    monkeypatch.setattr(DataScan, "plan_files", planned)


class Deletes:
    def __init__(self, file_path, content=DataFileContent.POSITION_DELETES, file_format=FileFormat.PARQUET):
        self.file_path, self.content, self.file_format = file_path, content, file_format


def test_position_deletes_are_respected(tmp_path, local_ray, monkeypatch):
    pool = pool_of("iceberg", tmp_path)
    first, second = sorted(t.file.file_path for t in StaticTable.from_metadata(pool.path).scan().plan_files())
    before = read(pool)
    positions = pa.table({"file_path": [first, first, second], "pos": pa.array([6, 0, 1])})
    pq.write_table(positions, tmp_path / "deletes.parquet")
    gone = pq.read_table(first.removeprefix("file://"))["id"].take([0, 6]).to_pylist()
    with_deletes(monkeypatch, Deletes((tmp_path / "deletes.parquet").as_uri()))
    assert read(pool) == {i: n for i, n in before.items() if i not in gone}


@pytest.mark.parametrize(
    ("content", "form"),
    [(DataFileContent.EQUALITY_DELETES, FileFormat.PARQUET), (DataFileContent.POSITION_DELETES, FileFormat.PUFFIN)],
)
def test_other_deletes_are_refused(content, form, tmp_path, monkeypatch):
    pool = pool_of("iceberg", tmp_path)
    with_deletes(monkeypatch, Deletes("x", content, form))
    with pytest.raises(
        PoolError, match=rf"rows deleted by {content.name.split('_')[0].lower()} deletes in .*rewrite its"
    ):
        survey(pool)


def test_a_table_is_found_by_its_catalog_by_a_tag_and_by_its_metadata_file(tmp_path, local_ray, monkeypatch):
    pool = pool_of("iceberg", tmp_path)
    monkeypatch.setenv("PYICEBERG_CATALOG__X__URI", f"sqlite:///{tmp_path}/pool.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__X__TYPE", "sql")
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # it reads the environment when it is imported
    assert read(pool.model_copy(update={"path": "x.db.t"})) == truth(pool)
    table = iceberg(tmp_path / "pool")
    table.manage_snapshots().create_tag(table.snapshots()[0].snapshot_id, "gold").commit()
    hint_version(table, tmp_path / "pool")
    tagged = pool.model_copy(update={"version": "gold"})
    assert len(read(tagged)) == COUNT // 2
    (tmp_path / "pool/metadata/version-hint.text").unlink()
    with pytest.raises(
        PoolError, match=r"names no version of an Iceberg table .*give its newest metadata/\*\.metadata"
    ):
        survey(pool)
    named = pool.model_copy(update={"path": table.metadata_location})
    assert survey(named).info.rows == COUNT
    with pytest.raises(PoolError, match=r"'t' is no Iceberg table: give catalog\.namespace\.table"):
        survey(pool.model_copy(update={"path": "t"}))


def test_files_beside_the_table_are_read_where_they_lie(tmp_path, local_ray):
    """As a table has them that took over existing files."""
    pool = pool_of("iceberg", tmp_path)
    pq.write_table(table_of(random_images(2), first=100), tmp_path / "old.parquet")
    table = iceberg(tmp_path / "pool")
    table.add_files([(tmp_path / "old.parquet").as_uri()])
    hint_version(table, tmp_path / "pool")
    assert read(pool) == truth(pool)
    assert len(read(pool)) == COUNT + 2


def test_growth_takes_commits_that_add_files_and_no_others(tmp_path, local_ray):
    pool = pool_of("iceberg", tmp_path, allow_growth=True)
    config = config_from_tree({"pool": pool.model_dump(), "selection": {"budgets": [2, 4]}})
    info, ledger = survey(pool).info, Ledger(Place.at(str(tmp_path / "run")))
    growth.record(pool, info, ledger.root)
    ledger.create(to_tree(config), info.to_json())
    write_iceberg(tmp_path / "pool", random_images(4, seed=3), first=COUNT)
    _, metrics = growth.grow(config, ledger, info)
    assert metrics["samples"] == 4
    delete(pool, tmp_path, "s0003")
    with pytest.raises(LedgerError, match=r"removed: data/.*parquet.*restore these files"):
        growth.grow(config, ledger, info)
    with pytest.raises(ValueError, match="version and allow_growth are both set"):
        pool_of("delta", tmp_path / "d", allow_growth=True, version=3)


def test_a_missing_library_is_said_with_its_extra(tmp_path, monkeypatch):
    for name, module in (("delta", "deltalake"), ("iceberg", "pyiceberg.table")):
        pool = pool_of(name, tmp_path / name)
        with monkeypatch.context() as gone:
            gone.setitem(__import__("sys").modules, module, None)
            with pytest.raises(PoolError, match=rf"need the {name} extra .*pip install 'prunefuse-ray\[{name}\]'"):
                survey(pool)


def test_the_same_rows_in_a_table_and_in_parquet_files_are_the_same_pool(tmp_path, local_ray):
    found = survey(pool_of("delta", tmp_path)).info
    plain = survey(pool_of("parquet", tmp_path / "plain")).info
    assert (found.id_digest, found.rows, found.classes) == (plain.id_digest, plain.rows, plain.classes)
    assert isinstance(pool_of("delta", tmp_path / "2"), cfg.Pool)


def test_a_delta_table_written_again_is_another_pool(tmp_path, local_ray):
    pool = pool_of("delta", tmp_path)
    info = survey(pool).info
    write_deltalake(pool.path, table_of(random_images(4)), mode="overwrite")
    write_delta(tmp_path / "pool", random_images(4), first=50)
    assert survey(pool).info.rows == 8
    assert survey(pool.model_copy(update={"version": int(info.version)})).info == info


@pytest.mark.parametrize("name", FORMATS)
def test_a_table_below_the_folder_is_not_read_as_parquet_files(name, tmp_path):
    pool = pool_of(name, tmp_path)
    (tmp_path / "lake").mkdir()
    (tmp_path / "pool").rename(tmp_path / "lake/eu")
    above = pool.model_copy(update={"source": "parquet", "path": str(tmp_path / "lake"), "id_column": None})
    with pytest.raises(PoolError, match=rf"pool\.path: 'eu' in it is a table of {name}"):
        survey(above)


@pytest.mark.parametrize(
    ("folder", "spelling"),
    [("what?/in", "{}/what?/in"), ("with blank", "file://{}/with%20blank"), ("50 %", "file://{}/50%20%25")],
)
def test_delta_tables_lie_wherever_a_folder_may(tmp_path, folder, spelling):
    write_deltalake(str(tmp_path / folder), table_of(random_images(8)))
    given = {"source": "delta", "path": spelling.format(tmp_path), "test_samples": 2, "classes": 2}
    pool = cfg.Pool.model_validate(given)
    listing = reader_of(pool).listing(SampleSet(pool))
    assert listing.paths
    assert all(Place.at(path).exists() for path in listing.paths)


def test_a_long_deletion_vector_takes_no_object_for_each_row(tmp_path):
    rows = 1_000_000
    write_deltalake(tmp_path / "t", pa.table({"id": range(rows), "image": pa.nulls(rows, pa.binary())}))
    add_deletion_vector(tmp_path / "t", [0, rows - 1])
    pool = cfg.Pool(source="delta", path=str(tmp_path / "t"), test_path=str(tmp_path / "t"), classes=2)
    tracemalloc.start()
    listing = reader_of(pool).listing(SampleSet(pool, labeled=False))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [gone.tolist() for gone in listing.of_table.deleted.values()] == [[0, rows - 1]]
    assert peak < 6 * 2**20, "a list of booleans takes 8 bytes for each"
