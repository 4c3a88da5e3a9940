"""A run on an S3-compatible store (moto's server on loopback): pool and run directory, kills, and a store that fails.

Every driver starts a Ray of its own, so that a kill takes everything but the store.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import yaml

from prunefuse_ray.config.files import to_tree
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from tests.support.runs import driven, tiny
from tests.support.s3 import CREDENTIALS, s3_server

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(importlib.util.find_spec("moto") is None, reason="moto[s3], flask and flask-cors are missing"),
]
ROOT = Path(__file__).parent.parent
SHORT = {"selection": {"budgets": [10, 18]}, "scoring": {"actors": (1, 1)}}


@pytest.fixture(scope="module")
def store():
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def bucket(store, tiny_pool):
    """The query that names the store, in whose bucket the pool lies."""
    for name in ("pool", "test"):
        to = Place.at(f"s3://samples/{name}{store.query}")
        pafs.copy_files(str(tiny_pool / name), to.path, destination_filesystem=to.fs)
    return store.query


def configured(tiny_pool, query, name, **more):
    return tiny(
        tiny_pool, "s3://samples/runs" + query, run={"directory": f"s3://samples/runs{query}", "name": name},
        pool={"path": f"s3://samples/pool{query}", "test_path": f"s3://samples/test{query}"}, **(SHORT | more),
    )  # fmt: skip


def start(config, directory, *kill):
    directory.mkdir(exist_ok=True, parents=True)
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(to_tree(config)))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.driver", str(file), *map(str, kill)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip


def drive(config, directory, *kill, expected=0):
    driver = start(config, directory, *kill)
    output, _ = driver.communicate(timeout=900)
    assert driver.returncode == expected, output[-4000:]
    return output


def claims(root: Place):
    return [Place(root.fs, f.path).read_json() for f in (root / ".drivers").files()]


def outcome(root: Place):
    def tables(pattern):
        return [pq.read_table(f.path, filesystem=root.fs) for f in root.files(recursive=True) if pattern in f.path]

    def rows(pattern):
        return pa.concat_tables([t.select(["id", "score"]) for t in tables(pattern)]).sort_by("id").to_pylist()

    return rows("selected.parquet"), rows("/scores/"), [t["label"].to_pylist() for t in tables("labels.parquet")]


@pytest.mark.slow
def test_a_run_on_s3_survives_kills_and_a_store_that_is_away(store, bucket, tiny_pool, tmp_path):
    undisturbed = start(tiny(tiny_pool, tmp_path / "local", **SHORT), tmp_path / "local")
    config = configured(tiny_pool, bucket, "killed")
    root = Place.at(config.run.directory) / "killed"
    for moment in (("commit", 0, "label"), ("inside", 0, "train")):
        drive(config, tmp_path, *moment, expected=-signal.SIGKILL)
    driver = start(config, tmp_path)
    committed = root / "rounds/000/commits/train.json"
    while driver.poll() is None and not committed.exists():
        time.sleep(0.2)
    with store.misbehaving(503):
        time.sleep(12)
    output, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, output[-4000:]
    assert store.refused, "the store was away while nobody asked"
    output, _ = undisturbed.communicate(timeout=900)
    assert undisturbed.returncode == 0, output[-4000:]
    assert outcome(root) == outcome(Place.at(str(tmp_path / "local" / "tiny")))
    assert {c["released"] for c in claims(root)} == {True}


def test_a_second_driver_on_s3_is_refused(local_ray, bucket, tiny_pool, tmp_path):
    config = configured(tiny_pool, bucket, "twice")
    held = Ledger(Place.at(config.run.directory) / "twice")
    held.lock()
    done = driven(config, tmp_path)
    assert done.returncode == 1
    assert "another process is driving this run" in done.stderr
    with pytest.raises(LedgerError):
        Ledger(held.root).lock()
    held.unlock()


@pytest.mark.slow
def test_no_credential_is_in_any_object(bucket):
    """After the runs above: neither key stands in any file of any run."""
    runs = Place.at(f"s3://samples/runs{bucket}")
    files = runs.files(recursive=True)
    if not files:
        pytest.skip("no run came before it")
    for file in files:
        data = Place(runs.fs, file.path).read_bytes()
        for secret in CREDENTIALS.values():
            assert secret.encode() not in data, file.path


def command(config, directory):
    """The command line, on a configuration; (exit code, what it said)."""
    directory.mkdir(exist_ok=True, parents=True)
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(to_tree(config)))
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE")}
    done = subprocess.run(
        [sys.executable, "-m", "prunefuse_ray", "run", "--config", str(file)],
        env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, cwd=ROOT, timeout=1200,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("fault", [500, 429, "hang", "cut", "half"])
def test_a_store_that_fails_now_and_then_changes_nothing(store, bucket, tiny_pool, tmp_path, fault):
    drive(tiny(tiny_pool, tmp_path / "local", **SHORT), tmp_path / "local")
    config = configured(tiny_pool, bucket, f"now-and-then-{fault}")
    with store.misbehaving(fault, every=29 if fault == "hang" else 7):  # a request that hangs takes seconds
        code, said = command(config, tmp_path)
    assert code == 0, said
    root = Place.at(config.run.directory) / config.run.name
    assert outcome(root) == outcome(Place.at(str(tmp_path / "local" / "tiny")))


@pytest.mark.parametrize("fault", [403, pytest.param(503, marks=pytest.mark.slow)])
def test_a_store_that_fails_for_good_ends_the_run_in_one_message_and_nothing_is_lost(
    store, bucket, tiny_pool, tmp_path, fault
):
    """403: credentials that expire in mid-run."""
    more = {} if fault == 503 else {"scoring": {}}  # in the driver, without actors: in a third of the time
    config = configured(tiny_pool, bucket, f"for-good-{fault}", **more)
    config = config.model_copy(update={"run": config.run.model_copy(update={"store_patience": 5.0})})
    root = Place.at(config.run.directory) / config.run.name
    ended = []
    thread = threading.Thread(target=lambda: ended.append(command(config, tmp_path)))
    thread.start()
    while thread.is_alive() and not (root / "rounds/000/commits/label.json").exists():
        time.sleep(0.1)
    with store.misbehaving(fault):
        thread.join()
    ((code, said),) = ended
    assert code == 2, said
    lines = said.strip().splitlines()
    assert lines[-1].startswith("error: object store: "), said
    assert ("credentials" if fault == 403 else "run.store_patience") in lines[-1]
    assert "Traceback" not in said
    code, said = command(config, tmp_path)
    assert code == 0, said
    assert outcome(root)[0]


@pytest.mark.slow
def test_a_driver_that_was_suspended_beyond_its_lease_finds_the_run_taken_over(bucket, tiny_pool, tmp_path):
    """SIGSTOP for longer than PATIENCE; another takes over and ends the run; SIGCONT: the first records nothing."""
    config = configured(tiny_pool, bucket, "suspended")
    root = Place.at(config.run.directory) / "suspended"
    first = start(config, tmp_path)
    while not (root / "rounds/000/commits/select.json").exists():
        assert first.poll() is None, first.communicate()[0][-4000:]
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGSTOP)
    output = drive(config, tmp_path / "second")
    assert "takes over in" in output
    files = {f.path: f.size for f in root.files(recursive=True)}
    os.kill(first.pid, signal.SIGCONT)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 1, output[-4000:]  # the test's driver shows its exceptions
    assert "another process is driving this run" in output
    assert {f.path: f.size for f in root.files(recursive=True)} == files
    assert len(claims(root)) == 1


@pytest.mark.slow
def test_of_two_drivers_started_at_the_same_instant_one_runs_and_one_says_who(bucket, tiny_pool, tmp_path):
    config = configured(tiny_pool, bucket, "at-once")
    drivers = [start(config, tmp_path / name) for name in ("one", "two")]
    outputs = [driver.communicate(timeout=900)[0] for driver in drivers]
    codes = [driver.returncode for driver in drivers]
    assert sorted(codes) == [0, 1], outputs
    refused = outputs[codes.index(1)]
    assert "another process is driving this run (process" in refused or "began this run meanwhile" in refused
