"""The phases of a run, a file each: what one reads comes from the ledger, what it produced goes back to it.

In each file the decision (what is to be done, a small value that depends on the configuration and the ledger alone)
stands apart from carrying it out.
"""

from collections.abc import Callable

from prunefuse_ray.method.steps import (
    BASELINE,
    FINETUNE,
    FUSE,
    GROW,
    INIT,
    LABEL,
    LEARN,
    PRETRAIN,
    REPORT,
    REQUEST,
    SCORE,
    SELECT,
    SYNC,
    TRAIN,
    Step,
)
from prunefuse_ray.run.context import Done, RunContext
from prunefuse_ray.run.phases import (
    baseline,
    finetune,
    fuse,
    grow,
    init,
    label,
    learn,
    pretrain,
    report,
    request,
    score,
    select,
    sync,
    train,
)

PHASES: dict[str, Callable[[RunContext, Step], Done]] = {
    LEARN: learn.run,
    INIT: init.run,
    PRETRAIN: pretrain.run,
    SELECT: select.run,
    REQUEST: request.run,
    LABEL: label.run,
    TRAIN: train.run,
    GROW: grow.run,
    SCORE: score.run,
    FUSE: fuse.run,
    FINETUNE: finetune.run,
    SYNC: sync.run,
    BASELINE: baseline.run,
    REPORT: report.run,
}
