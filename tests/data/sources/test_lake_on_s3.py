"""Tables of data lakes on an object store: written there by their own libraries, read as from a folder."""

import importlib.util
import json
import os
import subprocess
import sys

import lance
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import EqualTo

from prunefuse_ray.config.files import to_tree
from tests.support import ROOT
from tests.support.pools import random_images
from tests.support.runs import tiny
from tests.support.s3 import s3_server
from tests.support.sources import COUNT, TEST, halves

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("moto") is None, reason="moto[s3], flask and flask-cors are missing"),
]


@pytest.fixture(scope="module")
def store():
    with s3_server() as server:
        yield server


def write(name, store, where, tables, gone=None) -> str:
    """The tables as commits of one, on the store or in a folder, and a row deleted; returns where it is."""
    uri, options, query = str(where), {}, ""
    properties = {"warehouse": where.parent.as_uri()}
    if store is not None:
        uri, query, endpoint = f"s3://samples/{name}/{where.name}", store.query, f"http://127.0.0.1:{store.server_port}"
        options = {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
        properties = {"warehouse": "s3://samples/iceberg", "s3.endpoint": endpoint, "s3.region": "us-east-1"}
    if name == "lance":
        for table in tables:
            lance.write_dataset(table, uri, mode="append", storage_options=options)
        if gone:
            lance.dataset(uri, storage_options=options).delete(f"id = '{gone}'")
    elif name == "delta":
        for table in tables:
            write_deltalake(uri, table, mode="append", storage_options=options)
        if gone:
            DeltaTable(uri, storage_options=options).delete(f"id = '{gone}'")
    else:
        catalog = SqlCatalog("x", uri=f"sqlite:///{where}.db", **properties)
        catalog.create_namespace("db")
        written = catalog.create_table("db.t", tables[0].schema, location=uri if store else where.as_uri())
        for table in tables:
            written.append(table)
        if gone:
            written.delete(EqualTo("id", gone))
        return written.metadata_location.removeprefix("file://") + query
    return uri + query


def carry_out(name, where, path, test):
    """A run of two rounds on the table, in a process of its own; what it selected."""
    pool = {"source": name, "path": path, "test_path": test}
    config = tiny(where, where / "runs", selection={"budgets": [6, 12]}, pool=pool)
    file = where / "config.yaml"
    file.write_text(yaml.safe_dump(to_tree(config)))
    command = [sys.executable, "-m", "tests.support.driver", str(file)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((where / "runs/tiny/pool.json").read_text())["rows"] == COUNT - 1
    return pq.read_table(where / "runs/tiny/selected.parquet").to_pylist()


@pytest.mark.parametrize("name", ["delta", "iceberg", "lance"])
def test_a_run_on_a_table_on_a_store_is_that_on_one_in_a_folder(name, store, tmp_path):
    found = {}
    for at in (store, None):
        where = tmp_path / ("folder" if at is None else "store")
        where.mkdir()
        pool = write(name, at, where / "pool", halves(random_images(COUNT)), gone="s0003")
        test = write(name, at, where / "test", halves(random_images(4, seed=1), first=TEST))
        found[at] = carry_out(name, where, pool, test)
    assert found[store] == found[None]
    assert len(found[None]) == 12
    assert "s0003" not in {row["id"] for row in found[None]}
