"""What every source promises, whichever it is: list, index and read agree."""

import numpy as np
import pyarrow as pa
import pytest

from prunefuse_ray import config as cfg
from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.config.sources import POOL_SOURCES, PoolSource
from prunefuse_ray.data.ids import id_digest
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.index import first_samples, present
from prunefuse_ray.data.labeled_set import load_samples
from prunefuse_ray.data.sources.base import SourceReader, reader_of
from prunefuse_ray.data.stream import rows as rows_here
from prunefuse_ray.data.stream import stream
from prunefuse_ray.data.survey import check_unchanged, source_of, sources, survey
from prunefuse_ray.errors import ConfigError, LedgerError, PoolError
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run import growth
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from tests.support.pools import random_images, rows
from tests.support.sources import COUNT, FORMS, OF_IMAGES, WITH_FILES, in_run, pool_of

GRAY8 = ImageForm(height=8, width=8, channels=1)


@pytest.fixture(autouse=True)
def two_read(monkeypatch):
    """So many tasks at once: more are more processes that have to start."""
    monkeypatch.setattr("prunefuse_ray.data.stream.READING_CPUS", 2)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_the_rows_that_are_streamed_are_those_that_were_indexed(name, tmp_path, local_ray):
    pool = pool_of(name, tmp_path)
    found = survey(pool)
    info, index = found.info, found.indexes["path"]
    root = in_run(found, tmp_path)
    source, test = sources(pool, root)
    table = pa.concat_tables(list(stream(source, label=True).iter_batches(batch_format="pyarrow", batch_size=None)))
    ids = table["id"].to_pylist()
    assert len(ids) == len(set(ids)) == info.rows == index.rows
    assert f"{id_digest(table['id']):016x}" == info.id_digest
    assert set(table["label"].to_pylist()) == set(range(len(info.classes)))
    held_out = rows(stream(test, label=True))
    assert len(held_out) == found.indexes["test_path"].rows
    assert {r["label"] for r in held_out.values()} <= set(range(len(info.classes)))
    first = next(first_samples(index)).to_pylist()
    assert set(first) <= set(table["sample"].to_pylist())
    wanted = pa.array([*ids[:3], "none of them"])
    assert sorted(present(index, wanted).to_pylist()) == sorted(ids[:3])
    assert survey(pool).info == info
    check_unchanged(pool, info)


@pytest.mark.parametrize("name", WITH_FILES)
def test_ids_labels_and_samples_are_those_that_were_written(name, tmp_path, local_ray):
    pool = pool_of(name, tmp_path)
    found = survey(pool)
    assert found.info.sample_size == (8, 8)
    source, test = sources(pool, in_run(found, tmp_path))
    ids = [FORMS[name].id_of(i) for i in range(COUNT)]
    got = rows(stream(source, label=True))
    assert sorted(got) == sorted(ids)
    for i in range(COUNT):
        np.testing.assert_array_equal(GRAY8.decode(got[ids[i]]["sample"]), random_images(COUNT)[i])
        assert got[ids[i]]["label"] == i % 2
    only = pa.array([ids[9], ids[5]])
    wanted = sorted((got[i] for i in only.to_pylist()), key=lambda row: row["id"])
    assert sorted(rows(stream(source, only=only, label=True)).values(), key=lambda row: row["id"]) == wanted
    here = pa.concat_tables(rows_here(source, only=only, label=True))
    assert sorted(here.to_pylist(), key=lambda row: row["id"]) == wanted, "the driver reads what tasks read"
    held_out = load_samples(test, GRAY8)
    expected = {p.tobytes(): i % 2 for i, p in enumerate(random_images(4, seed=1))}
    assert {v.numpy().tobytes(): int(n) for v, n in zip(held_out.values_N, held_out.labels_N, strict=True)} == expected


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_pool_without_labels_is_read_where_people_give_them(name, tmp_path, local_ray):
    pool = pool_of(name, tmp_path, labeled=False)
    found = survey(pool, labeled=False)
    source = source_of(pool, in_run(found, tmp_path), "path", labeled=False)
    assert len(rows(stream(source))) == found.info.rows
    if name in WITH_FILES:
        assert found.info.rows == COUNT
        with pytest.raises(PoolError):
            survey(pool)


@pytest.mark.parametrize("name", WITH_FILES)
def test_a_listing_notices_new_files(name, tmp_path, local_ray):
    pool = pool_of(name, tmp_path)
    info = survey(pool).info
    FORMS[name].write(tmp_path / "pool", random_images(2, seed=3), first=COUNT)
    if name == "huggingface":  # a dataset is what its own list says: more of it is another path
        check_unchanged(pool, info)
        pool = pool.model_copy(update={"path": [pool.path, str(tmp_path / "pool" / "more")]})
    with pytest.raises(LedgerError, match=rf"then {info.files} files, .* now {info.files + 2} files"):
        check_unchanged(pool, info)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_growth_is_taken_or_refused_as_declared(name, tmp_path, local_ray):
    if not POOL_SOURCES[name].may_grow:
        with pytest.raises(ValueError, match=rf"allow_growth is for pool.source .*, not '{name}': set it to false"):
            pool_of(name, tmp_path, allow_growth=True)
        return
    pool = pool_of(name, tmp_path, allow_growth=True)
    config = config_from_tree({"pool": pool.model_dump(), "selection": {"budgets": [2, 4]}})
    found, ledger = survey(pool), Ledger(Place.at(str(tmp_path / "run")))
    in_run(found, tmp_path)
    growth.record(pool, found.info, ledger.root)
    ledger.create({}, found.info.to_json())
    FORMS[name].write(tmp_path / "pool", random_images(4, seed=3), first=COUNT)
    growth.check_unchanged(config, ledger)
    outputs, metrics = growth.grow(config, ledger, found.info)
    ledger.commit(Step(0, "grow"), outputs, metrics)
    assert metrics["samples"] == 4
    assert growth.seen_info(config, ledger) == survey(pool).info
    FORMS[name].write(tmp_path / "pool", random_images(4, seed=4), first=COUNT + 4)  # too late to be seen
    seen = growth.seen_source(config, ledger, sources(pool, ledger.root)[0])
    got = rows(stream(seen, label=True))
    assert sorted(got) == sorted(FORMS[name].id_of(i) for i in range(COUNT + 4))


def test_a_reader_that_is_none_is_said(monkeypatch):
    for reader, said in (("nowhere:X", "cannot import 'nowhere:X'"), (3, "its reader is a int, no SourceReader")):
        source = PoolSource(help="", ids="", labels="", reader=reader, fields=(), needs=())
        monkeypatch.setitem(POOL_SOURCES._loaded, "odd", source)
        pool = cfg.Pool().model_copy(update={"source": "odd"})
        with pytest.raises(ConfigError, match=said):
            reader_of(pool)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_every_reader_can_be_imported(name):
    assert isinstance(reader_of(cfg.Pool().model_copy(update={"source": name})), SourceReader)
