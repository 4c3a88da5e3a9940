"""One small local Ray for the tests that need one."""

import atexit
import os
import random
import secrets
import shutil
import tempfile

# One thread a process: the suite runs in two of them, and threads that wait for each other would lose that.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the developer's shell has would change what commands print, or lead them to other clusters and stores.
os.environ.pop("NO_COLOR", None)
os.environ.pop("FORCE_COLOR", None)
os.environ.pop("TTY_COMPATIBLE", None)
os.environ.pop("COLUMNS", None)
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("AWS_PROFILE", None)
os.environ.pop("AWS_ENDPOINT_URL", None)
os.environ.pop("AWS_ENDPOINT_URL_S3", None)
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
os.environ["RAY_AUTH_MODE"] = "token"  # read when Ray is imported, which is below
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="prunefuse-tests-cache-")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
import pytest
import torch
from hypothesis import settings

from prunefuse_ray.distributed import remote
from prunefuse_ray.distributed.resources import configure_data
from tests.support import ROOT
from tests.support.pools import parquet_pool, random_images, write_pool

atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
settings.register_profile("untimed", deadline=None)  # no test depends on how fast the machine is just now
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def seeded():
    """A test that draws without a seed of its own draws the same each time, alone or after others."""
    random.seed(0)
    np.random.seed(0)
    # `torch.manual_seed` formats the stack for each kind of device that is not there: longer than many a test.
    torch.random.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(params=["here", pytest.param("tasks", marks=pytest.mark.slow)])
def either_way(request, monkeypatch):
    """Small files read by this process, as they are, and by tasks, as if they were large."""
    if request.param == "tasks":
        monkeypatch.setattr(remote, "WORTH_A_TASK", -1)


def _start(directory: str) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=5,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=300 * 2**20,
        _temp_dir=directory,
    )


@pytest.fixture(scope="session")
def local_ray():
    """Ray with four logical CPUs: two scoring actors and their stream, on any machine."""
    import ray

    # A short path, since Ray's sockets lie below it: pytest's own folders hold the name of the user.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        with pytest.MonkeyPatch.context() as patch:
            # Each is a Python that has to start, before `init` returns or beside the tests; nothing here asks them.
            for name in ("start_monitor", "start_api_server", "start_log_monitor"):
                patch.setattr(f"ray._private.node.Node.{name}", lambda *_, **__: None)
            try:
                _start(directory)
            except Exception:  # a Ray that takes longer than half a minute gives up; beside other work it may
                ray.shutdown()
                _start(directory)
        configure_data()
        yield
        ray.shutdown()


@pytest.fixture
def made(tmp_path, local_ray):
    """A Parquet pool of 40 samples in 3 files and a test set of 6."""
    pixels = random_images(40)
    ids = write_pool(tmp_path / "pool", pixels, files=3)
    write_pool(tmp_path / "test", random_images(6, seed=1), first_id=900)
    return parquet_pool(tmp_path), pixels, ids


@pytest.fixture(scope="module")
def tiny_pool(tmp_path_factory):
    where = tmp_path_factory.mktemp("tiny")
    write_pool(where / "pool", random_images(120), files=6)
    write_pool(where / "test", random_images(40, seed=1), first_id=900)
    return where


def pytest_collection_modifyitems(items):
    """The longest files first, so that none of them runs alone at the end. pytest-xdist would begin with those of most
    tests: hence `--no-loadscope-reorder` in the Makefile."""
    longest = [
        "sweep/test_runner",
        "networks/test_architectures",  # the first three of these begin together, and one Ray starts faster than three
        "config/test_fuzz",
        "run/test_loop",
        "run/test_supervisor",  # these five take long by their kill tests alone
        "test_killed_drivers",
        "test_errors",
        "test_object_stores",
        "test_closed_doors",
        "data/sources/test_base",
        "run/test_phases",
        "api/test_steps",
        "selection/test_set_selection",
        "test_damage",
        "run/test_select_phase",
        "scoring/test_score_pool",
        "run/test_labeling",
        "run/test_learning_from_the_pool",
        "data/sources/test_lake",
        "training/test_trainer",
        "run/test_segmentation",
        "sweep/test_config",
        "report/test_page",
        "run/test_regression",
        "fuzz/test_fuzz",
        "distributed/test_resources",
        "run/test_estimate",
        "run/test_drawn_set",
        "run/test_committee",
        "inference/test_exports",
        "networks/fusion/test_every_rule",
        "run/test_texts_and_vectors",
        "networks/test_third_party",
    ]

    def place(item) -> int:
        name = item.path.relative_to(ROOT / "tests").with_suffix("").as_posix()
        return longest.index(name) if name in longest else len(longest)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Late(LoadFileScheduling):
        """A worker gets its next file with the last test of the one before: a test may take minutes, and meanwhile
        another worker may have time for the file. (pytest-xdist needs to know one test ahead.)"""

        def _reschedule(self, node):
            if not self.workqueue or self._pending_of(self.assigned_work[node]) <= 1:
                super()._reschedule(node)

    return Late(config, log)
