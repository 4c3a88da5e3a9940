"""The kinds of input, and how one case of them is drawn."""

import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from random import Random

from tests.fuzz import arrow, configs, folders, images, labels, parquet, pools, tars

KINDS: dict[str, tuple[Callable[[Random, Path], str], int]] = {
    "labels": (labels.case, 30),
    "images": (images.case, 25),
    "folders": (folders.case, 10),
    "parquet": (parquet.case, 10),
    "tars": (tars.case, 10),
    "arrow": (arrow.case, 5),
    "configs": (configs.case, 10),
    "pools": (pools.case, 1),
}
"""Name -> what makes a case of it and says how it ended, and how often it comes."""


def run_case(seed: int, number: int, skip: Collection[str] = ()) -> tuple[str, str]:
    """(kind, how it ended) of one case. Whatever it raises is a violation."""
    rng = Random(f"{seed}-{number}")
    kind = rng.choices([*KINDS], [weight for _, weight in KINDS.values()])[0]
    if kind in skip:
        return kind, "skipped"
    where = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        return kind, KINDS[kind][0](rng, where)
    finally:
        shutil.rmtree(where, ignore_errors=True)
