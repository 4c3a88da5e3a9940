"""A whole run that takes seconds."""

from pathlib import Path

from prunefuse_ray.config.files import config_from_tree, merge

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
