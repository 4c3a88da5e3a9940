"""What drivers that were killed have left in a run directory: which files these are, and their removal."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterable, Sequence

from prunefuse_ray.config import Config
from prunefuse_ray.errors import few
from prunefuse_ray.method.steps import FINETUNE, INIT, LABEL, PRETRAIN, REQUEST, SCORE, TRAIN, steps
from prunefuse_ray.run.ledger import Commit, Ledger
from prunefuse_ray.storage import TEMPORARY, Place

logger = logging.getLogger(__name__)

WRITTEN_BY_OTHERS = {
    INIT: ("known/samples",),
    PRETRAIN: ("pretraining",),
    REQUEST: ("samples", "test-samples"),
    LABEL: ("samples", "test"),
    TRAIN: ("training",),
    SCORE: ("scores", "scores-checkpoint", "labeled", "labeled-checkpoint"),
    FINETUNE: ("finetuning",),
}
"""Directories of a phase into which tasks, actors and trainings write, each file under a name of its own. What people
put into a run directory is not below them."""
NAMED = 5


def leftovers(files: Iterable[str], commits: Sequence[Commit]) -> list[str]:
    """Those files that nothing will read any more: half-written ones, and what the directories of committed phases hold
    beside what was committed.

    Args:
        files: paths below the run directory.
        commits: every commit of the run.
    """
    owned = {path for commit in commits for path in commit.files}
    closed = tuple(
        posixpath.join(c.step.directory, name) + "/"
        for c in commits
        for name in WRITTEN_BY_OTHERS.get(c.step.phase, ())
    )
    return [
        f
        for f in files
        if TEMPORARY.fullmatch(posixpath.basename(f)) or (f.startswith(closed) and closed and f not in owned)
    ]


def remove_leftovers(config: Config, ledger: Ledger) -> None:
    """Remove and name them. Only for the driver of the run, before it begins to write."""
    root = ledger.root
    files = [f.path.removeprefix(root.path + "/") for f in root.files(recursive=True)]
    commits = [c for step in steps(config) if (c := ledger.committed(step)) is not None]
    found = leftovers(files, commits)
    for file in found:
        Place(root.fs, posixpath.join(root.path, file)).delete()
    if found:
        said = "%s: removed %d files that a driver left when it was killed: %s"
        logger.warning(said, root.path, len(found), few(found, NAMED))
