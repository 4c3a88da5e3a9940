"""A whole run that takes seconds."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import yaml

from prunefuse_ray.config.files import config_from_tree, merge, to_tree
from tests.support import ROOT

RECIPE = {"epochs": 3, "min_steps": 0, "batch_size": 8, "warmup_epochs": 1, "augment": ["crop"]}


TINY = {
    "pool": {"source": "parquet", "classes": 2, "channels": 1},
    "network": {"architecture": "tests.support.nets:tiny"},
    "selection": {"budgets": [10, 18, 30]},
    "training": RECIPE,
    "finetuning": RECIPE,
    "report": {"baseline": False},
    "scoring": {"batch_size": 8},  # in the driver: what actors do is for test_rounds
}


def tiny(where: Path, directory: Path, **more):
    tree = merge(TINY, {"pool": {"path": str(where / "pool"), "test_path": str(where / "test")}})
    tree = merge(merge(tree, {"run": {"directory": str(directory), "name": "tiny"}}), more)
    if {"text_column", "vector_column"} & tree["pool"].keys():
        del tree["pool"]["channels"]
    return config_from_tree(tree)


class Enough(Exception):
    """Ends a run that has come as far as a test looks."""


def carried_out(config, last, **more):
    """The ledger of a run up to the end of a step: what comes after it says nothing to the test."""
    from prunefuse_ray.run import loop
    from prunefuse_ray.run.ledger import Ledger

    def listen(event, step, _):
        if (event, step) == ("done", last):
            raise Enough

    with contextlib.suppress(Enough):
        loop.run(config, listen, **more)
        raise AssertionError(f"{last} was not carried out: it is none of the run's steps, or was done before")
    return Ledger(loop.run_place(config))


def driven(config, directory: Path, *kill) -> subprocess.CompletedProcess:
    """The run by a driver of its own, on the Ray of this process; `kill`: where it ends itself, as `support.driver`
    has it."""
    import ray

    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(to_tree(config)))
    return subprocess.run(
        [sys.executable, "-m", "tests.support.driver", str(file), *map(str, kill)],
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        capture_output=True, text=True, timeout=240, cwd=ROOT,
    )  # fmt: skip
