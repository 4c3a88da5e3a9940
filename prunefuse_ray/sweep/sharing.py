"""Work that two runs have in common: when a phase of one run is provably that of another.

A phase's *inputs key* is a hash of all that its outcome depends on: the configuration fields that it reads, the pool,
its round, and the keys of the phases whose files it reads. Two phases with the same key write the same files, up to
the last bits of floating-point arithmetic on another machine or with another number of threads; that is what a run
accepts when it is resumed, too. So a run may take over the files of such a phase in place of its own work.

What is shared follows from that: trials of one seed have the initial network and proxy (same network, selector and
pruning), the initial set, its labels and samples (same pool and first budget) and the proxy trained on it (also the
same training recipe) in common, whatever their strategies; a scratch target trained on the same labels is the same
under every selector. Seeds share what the network takes from the pool. Never shared: two pools, the closing report.

The rule errs on the side of working twice: a field matters unless it stands in `_unread`, so that a field that is new
in the configuration separates runs until someone has looked at it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from prunefuse_ray.acquisition.auto import AUTO, LEAP
from prunefuse_ray.config.files import flatten, to_tree
from prunefuse_ray.config.schema import Config
from prunefuse_ray.method.steps import REPORT, Step, base, learns, pretrained_target, start, steps, to_select
from prunefuse_ray.run.ledger import OF_MACHINES, decides

AFTER = ("finetuning.", "coreset.", "fusion.", "distillation.")
"""Read only once the proxy is trained."""
WITH_NETWORKS = ("network.", "pruning.", "selection.selector", "pretraining.", "training.", "scoring.")
"""Not read by what only chooses at random and fetches samples."""
THROUGH_PARENTS = (
    "selection.strategy", "selection.initial", "selection.budgets", "selection.per_group", "selection.min_distance",
    "selection.hold_back", "selection.class_balance", "selection.wanted_classes", "selection.pixel_share",
    "selection.dropout_masks",
)  # fmt: skip
"""They decide which samples are labeled, and reach every later phase by the key of the labels."""
OF_LATER_ROUNDS = (
    "pretraining.",
    "training.",
    "selection.strategy",
    "selection.class_balance",
    "selection.wanted_classes",
    "selection.pixel_share",
    "selection.dropout_masks",
)
"""Not read by what selects the initial set."""
TRAININGS = ("pretrain", "train", "finetune")
"""Only these depend on the number of workers."""
PLANNING = ("fusion.evaluate", "fusion.sync_every")
"""They decide which phases there are, not what one of them does."""


def inputs_keys(config: Config, pool: Mapping[str, Any]) -> dict[Step, str]:
    """Step -> inputs key, for every step of a run that may be shared.

    Args:
        pool: the pool's fingerprint, as in `pool.json`.
    """
    fields = {k: v for k, v in flatten(to_tree(config)).items() if decides(k)}
    keys: dict[Step, str] = {}
    for step in steps(config):
        if step.phase == REPORT:
            continue
        unread = _unread(config, step) + (() if step.phase in TRAININGS else OF_MACHINES)
        inputs: dict[str, Any] = {
            "step": [step.round, step.phase],
            "pool": {k: v for k, v in pool.items() if k != "path"},
            "fields": {k: v for k, v in fields.items() if not k.startswith(unread)},
            "parents": [keys[p] for p in _parents(config, step) if p in keys],
        }
        if step.phase == "pretrain":
            inputs["views"] = [config.training.augment, config.training.smallest_crop]
            inputs["labels"] = config.selection.budgets[0] if config.pretraining.method == "auto" else None
        if step.phase == "score" and step.round >= 0 and config.selection.strategy == AUTO:
            now, then = config.selection.budgets[step.round : step.round + 2]
            inputs["growth"] = max(LEAP, then / now)  # below a leap `auto` does not ask
        if step.phase == "train":
            inputs |= {"hardness": True} if config.coreset.by_hardness else {}
        if step.phase == "select":
            # Runs that share have an oracle, and so every label of the rounds before.
            before = config.selection.budgets[step.round - 1] if step.round else 0
            inputs["chosen"] = to_select(config, step.round, before)
        keys[step] = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]
    return keys


def _parents(config: Config, step: Step) -> list[Step]:
    """The steps whose files `step` reads (the labels of a round stand for those of the rounds before it, too)."""
    r, origin = step.round, base(config, step.round)
    fused = config.fusion.target == "fused"
    match step.phase:
        case "learn":
            return []
        case "init":
            return [Step(-1, "learn")] if learns(config) else []
        case "pretrain":
            return [Step(-1, "init")]
        case "select" if _by_chance(config, step):
            return [Step(r - 1, "label")]
        case "select":
            return [s for s in steps(config) if s.round == r - 1 and s.phase not in ("fuse", "finetune", "sync")]
        case "label":
            return [Step(r, "select")]
        case "train":
            return [Step(r, "label"), start(config, r)[0]]
        case "score" if r < 0:
            return [start(config, 0)[0]]
        case "score":
            return [Step(r, "train"), Step(r, "label")]
        case "baseline":
            return [Step(len(config.selection.budgets) - 1, "label")]
        case "fuse":
            return [Step(r, "train"), origin] if fused else [Step(-1, "pretrain")] * pretrained_target(config)
        case "finetune":
            trained = fused or config.coreset.by_hardness
            return [Step(r, "fuse"), Step(r, "label"), *([Step(r, "train")] if trained else [])]
        case "sync":
            return [Step(r, "finetune")]
        case _:  # not known here: whatever came before it
            plan = steps(config)
            return plan[: plan.index(step)]


def _by_chance(config: Config, step: Step) -> bool:
    return (config.selection.initial if step.round == 0 else config.selection.strategy) == "random"


def _unread(config: Config, step: Step) -> tuple[str, ...]:
    """Prefixes of the fields that `step` does not read, or that reach it by its parents' keys."""
    scratch = config.fusion.target == "scratch"
    target = (*THROUGH_PARENTS, *PLANNING, "pretraining.", "scoring.")
    of_scratch = (
        *target,
        "pruning.",
        "selection.selector",
        "training.",
        "fusion.rule",
        "fusion.epsilon",
        "fusion.shrink",
    )
    match step.phase:
        case "learn":
            others = (f for f in WITH_NETWORKS if f != "network.")
            return (*AFTER, *THROUGH_PARENTS, *others, "network.weights", "run.seed", "selection.", "annotation.")
        case "init":
            pruned = config.selection.selector == "proxy"
            pruning = () if pruned else ("pruning.",)
            return (*AFTER, *THROUGH_PARENTS, "pretraining.", "training.", "scoring.", *pruning)
        case "pretrain":
            return (*AFTER, *THROUGH_PARENTS, "selection.selector", "pruning.", "network.", "training.", "scoring.")
        case "select" if not _by_chance(config, step):
            return (*AFTER, "selection.budgets", *(OF_LATER_ROUNDS if step.round == 0 else ()))
        case "select" | "label":
            return (*AFTER, *WITH_NETWORKS, *THROUGH_PARENTS)
        case "baseline":
            return (*AFTER, *WITH_NETWORKS, *THROUGH_PARENTS)
        case "train":
            return (*AFTER, *THROUGH_PARENTS, "pretraining.", "scoring.")
        case "score":
            return (*AFTER, "selection.budgets", "pretraining.", *(OF_LATER_ROUNDS if step.round < 0 else ()))
        case "fuse":
            return (*(of_scratch if scratch else target), "finetuning.", "coreset.", "distillation.")
        case "finetune":
            return (*of_scratch, "distillation.") if scratch else target
        case _:
            return ()
