"""What drivers that were killed have left in a run directory: which files these are, and their removal."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterable, Sequence

from prunefuse_ray.config import Config
from prunefuse_ray.errors import few
from prunefuse_ray.method.steps import FINETUNE, INIT, LABEL, PRETRAIN, REQUEST, SCORE, SELECT, TRAIN, Step, steps
from prunefuse_ray.run.ledger import Commit, Ledger
from prunefuse_ray.storage import TEMPORARY, Place

logger = logging.getLogger(__name__)

WRITTEN_BY_OTHERS = {
    INIT: ("known/samples",),
    PRETRAIN: ("pretraining",),
    SELECT: ("kept-scores",),
    REQUEST: ("samples", "test-samples"),
    LABEL: ("samples", "test"),
    TRAIN: ("training",),
    SCORE: ("scores", "scores-checkpoint", "labeled", "labeled-checkpoint", "scores-by"),
    FINETUNE: ("finetuning",),
}
"""Directories of a phase into which tasks, actors and trainings write, each file under a name of its own. What people
put into a run directory is not below them."""
NAMED = 5


def leftovers(files: Iterable[str], commits: Sequence[Commit], given_up: Sequence[Step] = ()) -> list[str]:
    """Those files that nothing will read any more: half-written ones, and what the directories of phases that are over
    hold beside what was committed.

    Args:
        files: paths below the run directory.
        commits: every commit of the run.
        given_up: steps that the run has no more.
    """
    owned = {path for commit in commits for path in commit.files}
    closed = tuple(
        posixpath.join(step.directory, name) + "/"
        for step in (*(c.step for c in commits), *given_up)
        for name in WRITTEN_BY_OTHERS.get(step.phase, ())
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
    plan = steps(config)
    # Where label budgets were added or taken back, another round is the last, and has other steps.
    recorded = ledger.read_config() if ledger.exists else config
    fewer, more = sorted(len(c.selection.budgets) for c in (recorded, config))
    others = [s for r in range(fewer - 1, more) for phase in WRITTEN_BY_OTHERS if (s := Step(r, phase)) not in plan]
    commits = [c for step in (*plan, *others) if (c := ledger.committed(step)) is not None]
    found = leftovers(files, commits, others)
    for file in found:
        ledger.check_lease()
        Place(root.fs, posixpath.join(root.path, file)).delete()
    if found:
        said = "%s: removed %d files that a driver left when it was killed: %s"
        logger.warning(said, root.path, len(found), few(found, NAMED))
