"""One small local Ray for the tests that need one."""

import os
import secrets
from pathlib import Path

# One thread a process: the suite runs in two of them, and threads that wait for each other would lose that.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from prunefuse_ray import config as cfg
from prunefuse_ray import spread
from prunefuse_ray.config_files import config_from_tree, merge
from prunefuse_ray.images import encode_png
from prunefuse_ray.resources import configure_data

settings.register_profile("untimed", deadline=None)  # no test depends on how fast the machine is just now
settings.load_profile("untimed")


@pytest.fixture(params=["here", "tasks"])
def either_way(request, monkeypatch):
    """Small files read by this process, as they are, and by tasks, as if they were large."""
    if request.param == "tasks":
        monkeypatch.setattr(spread, "WORTH_A_TASK", -1)


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory):
    """Ray with four logical CPUs: two scoring actors and their stream, on any machine."""
    import ray

    ray.init(
        address="local",
        num_cpus=5,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=300 * 2**20,
        _temp_dir=str(tmp_path_factory.mktemp("ray")),
    )
    configure_data()
    yield
    ray.shutdown()


def pictures(n: int, *, size: int = 8, channels: int = 1, seed: int = 0) -> np.ndarray:
    """n random pictures (n, size, size, channels), whose brightness tells their class (i mod 2)."""
    rng = np.random.default_rng(seed)
    base = np.where(np.arange(n) % 2, 170, 60)[:, None, None, None]
    return np.clip(base + rng.normal(0, 25, (n, size, size, channels)), 0, 255).astype(np.uint8)


def write_pool(directory, pixels, *, files: int = 1, first_id: int = 0, label=None, **columns) -> list[str]:
    """A Parquet pool of PNGs with ids s0000, s0001, ... and labels i mod 2; returns the ids."""
    directory.mkdir(parents=True, exist_ok=True)
    n = len(pixels)
    ids = [f"s{first_id + i:04d}" for i in range(n)]
    table = pa.table(
        {
            "id": columns.get("id", ids),
            "image": columns.get("image", pa.array([encode_png(p) for p in pixels], pa.binary())),
            "label": pa.array([i % 2 for i in range(n)] if label is None else label, pa.int64()),
        }
    )
    step = -(-n // files)
    for f in range(files):
        pq.write_table(table.slice(f * step, step), directory / f"part-{f}.parquet")
    return ids


def parquet_pool(tmp_path, **more) -> cfg.Pool:
    return cfg.Pool(
        source="parquet", path=str(tmp_path / "pool"), test_path=str(tmp_path / "test"), classes=2, channels=1, **more
    )


@pytest.fixture
def made(tmp_path, local_ray):
    """A Parquet pool of 40 samples in 3 files and a test set of 6."""
    pixels = pictures(40)
    ids = write_pool(tmp_path / "pool", pixels, files=3)
    write_pool(tmp_path / "test", pictures(6, seed=1), first_id=900)
    return parquet_pool(tmp_path), pixels, ids


def rows(dataset) -> dict:
    table = pa.concat_tables(list(dataset.iter_batches(batch_format="pyarrow", batch_size=None)))
    return {r["id"]: r for r in table.to_pylist()}


RECIPE = {"epochs": 3, "min_steps": 0, "batch_size": 8, "warmup_epochs": 1, "augment": ["crop"]}
TINY = {
    "pool": {"source": "parquet", "classes": 2, "channels": 1},
    "network": {"architecture": "tests.nets:tiny"},
    "selection": {"budgets": [10, 18, 30]},
    "training": RECIPE,
    "finetuning": RECIPE,
    "scoring": {"batch_size": 8},  # in the driver: what actors do is for test_rounds
}


@pytest.fixture(scope="module")
def tiny_pool(tmp_path_factory):
    where = tmp_path_factory.mktemp("tiny")
    write_pool(where / "pool", pictures(120), files=6)
    write_pool(where / "test", pictures(40, seed=1), first_id=900)
    return where


def tiny(where: Path, directory: Path, **more):
    tree = merge(TINY, {"pool": {"path": str(where / "pool"), "test_path": str(where / "test")}})
    return config_from_tree(merge(merge(tree, {"run": {"directory": str(directory), "name": "tiny"}}), more))


def pytest_collection_modifyitems(items):
    """The longest files first, so that none of them runs alone at the end."""
    longest = ["rounds", "training", "choosing", "sweep", "phases", "cli", "labeling", "known"]
    names = [f"test_{name}.py" for name in longest]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else len(names))
