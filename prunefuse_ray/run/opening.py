"""Before the first phase: everything that can be checked is checked, then the run directory is made or reopened."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256

from prunefuse_ray import config as cfg
from prunefuse_ray import networks
from prunefuse_ray.config import Config
from prunefuse_ray.config.files import to_tree
from prunefuse_ray.config.pool import check_scaled
from prunefuse_ray.data import draw, inventory
from prunefuse_ray.data.account import LEFT_OUT_FILE, lines
from prunefuse_ray.data.known_labels import check_known_labels, known_count
from prunefuse_ray.data.leaks import check_outside
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.data.prepared import open_prepared, pool_name, run_name
from prunefuse_ray.data.sample_format import Form, form_of
from prunefuse_ray.data.survey import materialize, source_of, survey
from prunefuse_ray.distributed.resources import (
    Resources,
    ScoringPlan,
    TrainingPlan,
    idle_gpus,
    observe,
    plan_scoring,
    plan_training,
)
from prunefuse_ray.errors import ConfigError, LedgerError
from prunefuse_ray.method.selector import (
    dense_network,
    fused_network,
    input_digests,
    make_selector,
    network_spec,
    weights_digest,
)
from prunefuse_ray.method.steps import (
    BASELINE,
    FINETUNE,
    FUSE,
    INIT,
    REPORT,
    SYNC,
    Step,
    budget_notes,
    check_budget,
    check_wanted,
    steps,
)
from prunefuse_ray.run import growth
from prunefuse_ray.run.context import RunContext, kept_samples, unlabeled_forms
from prunefuse_ray.run.environment import changes, environment
from prunefuse_ray.run.ledger import HASHED_HERE, Ledger
from prunefuse_ray.run.leftovers import remove_leftovers
from prunefuse_ray.run.phases.pretrain import decide
from prunefuse_ray.storage import Place, read_input
from prunefuse_ray.tasks import TASKS
from prunefuse_ray.training.augmentation import held_form

logger = logging.getLogger(__name__)

OF_THE_POOL = (draw.IDS_FILE, draw.TWINS_FILE, inventory.HELD_OUT_FILE, inventory.INVENTORY, LEFT_OUT_FILE)
"""What a new run records where there is any: that of one that was killed before it began may be of another pool."""


def open_run(config: Config, ledger: Ledger, runs: int, tell: inventory.Tell = lambda _: None) -> RunContext:
    """Check everything that can be checked before the first phase, then make or reopen the run directory."""
    has = observe()
    begun_before = ledger.exists
    if begun_before:
        ledger.lock()
        ledger.check_config(config)  # again: nobody else changes it now
        remove_leftovers(config, ledger)
        check_files(config, ledger)
        info = growth.seen_info(config, ledger)
        growth.check_unchanged(config, ledger)
        check_inputs(config, ledger)
        begun = ledger.committed(Step(-1, INIT))
        before = begun.metrics.get("environment", {}) if begun else {}
        macs = begun.metrics["macs_per_sample"]["proxy"] if begun else None
        # Label budgets may be others now, but count the labels that were known beforehand.
        taken_in = begun.metrics["inputs"]["pool.known_labels"].get("labels", 0) if begun else 0
        scoring, training = check(config, info, has, runs, known=taken_in, macs=macs)
        ledger.take_budgets(config)
    else:
        if (ledger.root / "sweep.yaml").exists():
            raise LedgerError(f"{ledger.root.path}: is the directory of a sweep; give the run another --run.name")
        if (ledger.root / "commits").written():
            raise LedgerError(
                f"{ledger.root.path}: holds the phases of a run, but its config.yaml is gone: restore it from a copy, "
                "or start under another --run.name"
            )
        plan_training(config.workers, has.part(runs))  # the quickest to refuse comes first
        check_scaled(config.pool)
        check_outside(config.pool, ledger.root, "run.directory")
        found = survey(config.pool, labeled=config.annotation.kind == "oracle", task=config.task)
        info = found.info
        known = check_known_labels(config.pool, config.task, info, found.indexes["path"])
        scoring, training = check(config, info, has, runs, known=known_count(known, found.drawn))
        taken = inventory.checked(inventory.take(found, known), config.pool, tell)
        info = replace(info, rows=info.rows - taken.inventory.twins)
        check_budget(config, info.rows, known_count(known, found.drawn))
        ledger.lock()
        if ledger.exists:
            raise LedgerError(
                f"{ledger.root.path}: another process began this run meanwhile; run the same command again"
            )
        remove_leftovers(config, ledger)  # of one that was killed before there was a run
        ledger.clear(Step(-1, INIT), *OF_THE_POOL)
        tell(lines(taken.inventory.to_json(), ledger.root.uri))
        materialize(found, ledger.root)
        inventory.write(taken, ledger.root)
        growth.record(config.pool, info, ledger.root)
        ledger.create(to_tree(config), info.to_json())
    notes = [] if begun_before else [*budget_notes(config, len(info.classes)), *not_read(config)]
    unused = idle_gpus(config.workers, config.scoring, has)
    for message in (*notes, *filter(None, (unused, training.waits, scoring.waits))):
        logger.warning(message)
    form = form_of(config.pool, info)
    if begun_before and (told := other_memory(config, ledger.read_config(), form, info.rows)):
        logger.warning(told)
    for told in changes(before, environment(config)) if begun_before else ():
        logger.warning(told)
    prepared = open_prepared(
        config.prepared,
        Place.at(config.run.directory),
        form,
        kept_samples(config, info.rows),
        tell,
        name=pool_name(config.pool),
        own=run_name(ledger.root),
        also=unlabeled_forms(config, form),
    )
    pool = source_of(config.pool, ledger.root, "path", task=config.task)
    drawn = bool(config.pool.test_samples)
    test = None if drawn else source_of(config.pool, ledger.root, "test_path", task=config.task)
    validation = None
    if config.pool.validation_path is not None:
        held = source_of(config.pool, ledger.root, "validation_path", task=config.task)
        validation = replace(held, prepared=prepared)
    if info.version is not None:  # of a table: what was written meanwhile is read, by the numbers of the rows before
        growth.check_unchanged(config, ledger)
    context = RunContext(
        config=config,
        ledger=ledger,
        info=info,
        pool=pool,
        test_set=None if test is None else replace(test, prepared=prepared),
        validation=validation,
        prepared=prepared,
        has=has,
        scoring=replace(scoring, check=ledger.check_lease),
        training=replace(training, check=ledger.check_lease),
    )
    context.look_again(pool)
    return context


OF_RULES = ("epsilon", "shrink")
"""Fields of `fusion` that some of the rules here read. Rules of other packages are not loaded to ask them."""


def not_read(config: Config) -> list[str]:
    """What is given, and has no effect beside the rest: arms of a sweep may differ in that."""
    fusion, selector, rounds = config.fusion, config.selection.selector, len(config.selection.budgets)
    notes, fused = list[str](), fusion.target == "fused"
    if (weight := config.distillation.weight) and not config.distilled:
        notes.append(
            f"distillation.weight {weight:g}: a target from scratch has no proxy to learn from; it does without"
        )
    read = networks.FUSION_RULES[fusion.rule].parameters if fused else {}
    unread = [name for name in OF_RULES if name not in read]
    if told := _not_default("fusion", fusion, unread):
        notes.append(f"{told}: " + (f"not read by fusion.rule '{fusion.rule}'" if fused else "nothing is fused"))
    pruning = [name for name in type(config.pruning).model_fields if name != "committee"]
    if selector != "proxy" and (told := _not_default("pruning", config.pruning, pruning)):
        notes.append(f"{told}: selection.selector '{selector}' prunes nothing")
    if fusion.sync_every >= rounds:
        notes.append(
            f"fusion.sync_every {fusion.sync_every}: the run has {rounds} round{'s' * (rounds > 1)}, and no proxy "
            "follows the last one"
        )
    later = ("per_group", "min_distance", "class_balance", "wanted_classes", "dropout_masks")
    if rounds == 1 and (told := _not_default("selection", config.selection, later)):
        notes.append(f"{told}: read by the rounds after the initial set, and selection.budgets has none")
    switched: list[tuple[str, cfg.Coreset | cfg.Pretraining | cfg.Unlabeled, str]] = [
        ("coreset", config.coreset, "by"),
        ("pretraining", config.pretraining, "method"),
        ("training.unlabeled", config.training.unlabeled, "method"),
        ("finetuning.unlabeled", config.finetuning.unlabeled, "method"),
    ]
    for name, section, switch in switched:
        others = [field for field in type(section).model_fields if field != switch]
        if not section.used and (told := _not_default(name, section, others)):
            notes.append(f"{told}: not read while {name}.{switch} is none")
    temperature = _not_default("distillation", config.distillation, ("temperature",))
    if weight and temperature and TASKS[config.task].numbers:
        notes.append(f"{temperature}: not read for task '{config.task}', whose outputs are numbers")
    if not weight and (told := _not_default("distillation", config.distillation, ("temperature", "decay"))):
        notes.append(f"{told}: not read while distillation.weight is 0")
    for name, recipe in (("training", config.training), ("finetuning", config.finetuning)):
        if "resized_crop" not in recipe.augment and (told := _not_default(name, recipe, ("smallest_crop",))):
            notes.append(f"{told}: not read while {name}.augment has no resized_crop")
    waits = _not_default("annotation", config.annotation, ("wait", "accept_partial"))
    if config.annotation.kind == "oracle" and waits:
        notes.append(f"{waits}: nobody is asked while annotation.kind is oracle")
    kept = _not_default("prepared", config.prepared, ("directory", "max_gb"))
    if config.prepared.format == "none" and kept:
        notes.append(f"{kept}: nothing is kept while prepared.format is none")
    return notes


def _not_default(name: str, section: cfg.Section, fields: Iterable[str]) -> str:
    """The fields that have other values than by default, as messages name them."""
    values = {field: getattr(section, field) for field in fields}
    others = [field for field in values if values[field] != type(section).model_fields[field].default]
    return ", ".join(f"{name}.{field} {values[field]}" for field in others)


def other_memory(config: Config, began: Config, form: Form, rows: int) -> str | None:
    """What people should know where a run that learns from unlabeled samples goes on with other memory for them, and
    the pool does not fit into it: as many as fit are shuffled at a time (`data/unlabeled.py`)."""
    recipes = config.training, config.finetuning
    learns = config.pretraining.used or any(recipe.unlabeled.used for recipe in recipes)
    before, now = began.workers.sample_memory_gb, config.workers.sample_memory_gb
    size = rows * max(math.prod(held_form(form, recipe).shape) for recipe in recipes) / 2**30
    if not learns or before == now or size <= min(before, now):
        return None
    return (
        f"workers.sample_memory_gb: {now:g}, and the run began with {before:g}: a pool of {size:.2g} GiB then comes in "
        "other batches of unlabeled samples, so that the same seed may select other samples"
    )


def check_files(config: Config, ledger: Ledger) -> None:
    """LedgerError where what the run recorded is damaged: a commit or a file is gone or has another size, or what was
    recorded of the pool has another content. The content of the others is compared when they are read."""
    # The last phase's files are made anew: by `still_complete`, or where more labels follow.
    done = [step for step in steps(config) if step.phase != REPORT and ledger.committed(step)]
    # What selects follows from what selected before; a target may be missing where label budgets were added.
    chain = [step for step in steps(config) if step.phase not in (FUSE, FINETUNE, SYNC, BASELINE, REPORT)]
    selecting = [step for step in chain if step in done]
    if missing := [step for step in chain[: len(selecting)] if step not in done]:
        raise LedgerError(
            f"{ledger.root.path}: the commit of '{missing[0]}' is gone, but '{selecting[-1]}' came after; restore it "
            "from a copy, or start under another --run.name"
        )
    for step in done:
        for path, fault in ledger.damages(step, hashed=HASHED_HERE if step.phase == INIT else 0).items():
            raise ledger.damaged(step, path, fault)
    if ledger.committed(Step(-1, INIT)):
        ledger.files(Step(-1, INIT), "pool")


RENDERED = ("report.html", "result.json")
"""Files of the phase `report` that `prunefuse report` writes anew."""


def still_complete(config: Config, ledger: Ledger) -> bool:
    """Whether a complete run has all its files. Where only those of its last phase are damaged, which can be made anew,
    it is taken back. LedgerError where others are."""
    *plan, report = steps(config)
    for step in plan:
        if ledger.committed(step) is None and step.phase == BASELINE:
            # It came later than the run, or was asked for later.
            logger.warning(
                "%s: ended without a baseline (report.baseline); it has none until labels are added", ledger.root.path
            )
            continue
        if ledger.committed(step) is None:
            check_files(config, ledger)
        for path, fault in ledger.damages(step, hashed=HASHED_HERE).items():
            raise ledger.damaged(step, path, fault)
    found = ledger.damages(report, hashed=HASHED_HERE)
    found = {p: f for p, f in found.items() if p not in RENDERED or not (ledger.root / p).exists()}
    if not found:
        return True
    logger.warning("%s: damaged, made anew: %s", ledger.root.path, ", ".join(f"{p} ({f})" for p, f in found.items()))
    ledger.lock()
    ledger.uncommit(report)
    ledger.unlock()
    return False


def check(
    config: Config, info: PoolInfo, has: Resources, runs: int = 1, *, known: int = 0, macs: int | None = None
) -> tuple[ScoringPlan, TrainingPlan]:
    """What a run would do with the cluster (or its part of it); refuses what cannot be run. Writes nothing.

    Args:
        known: labels that are known beforehand.
        macs: of the selecting network per sample, where it has been built already.

    Raises:
        ConfigError: a budget beyond the pool.
        NetworkError: a network that cannot be built, pruned or fused.
        PlanError: not enough CPUs or GPUs.
    """
    mine = has.part(runs)
    check_budget(config, info.rows, known)
    check_wanted(config, info.classes)
    per_sample = _selector_macs(config, info) if macs is None else macs
    macs = info.rows * per_sample * config.selection.passes
    scoring = plan_scoring(config.scoring, mine, macs, info.rows)
    return scoring, plan_training(config.workers, mine)


def _selector_macs(config: Config, info: PoolInfo) -> int:
    """MACs of the selecting network per sample. Building and pruning it here once refuses, before anything is
    written, what cannot be built, pruned or fused."""
    spec = network_spec(config, info)
    dense, _ = dense_network(config, spec)
    made = make_selector(config, dense)
    # Tried not only when the labels are paid for; and as it will be then: untrained weights hide what fails.
    later = networks.as_trained(made)
    if config.fusion.target == "fused":
        fused_network(config, dense.network, later)
    selector = made.network
    turned = decide(config, len(info.classes)).method == "rotation"
    if turned and len(set(spec.input_shape[1:])) > 1:
        raise ConfigError(
            f"pretraining.method: '{config.pretraining.method}' turns square images, and these are "
            f"{spec.input_shape[1]} x {spec.input_shape[2]}: use vicreg, or set pool.image_size"
        )
    if config.scoring.features or config.selection.needs_features or config.pretraining.used:
        networks.features_and_logits(later.network.eval(), networks.example_input(spec))
    if config.selection.dropout_masks:
        networks.under_masks(selector, 2, 0, networks.example_input(spec))
    return networks.macs(selector, spec.input_shape)


def check_inputs(config: Config, ledger: Ledger) -> None:
    """LedgerError where a file that the run began with has other contents now. One that is gone is not missed: the
    run directory holds what was taken from it."""
    begun = ledger.committed(Step(-1, INIT))
    recorded = begun.metrics["inputs"] if begun else {}
    for field_, digest in input_digests(config).items():
        if digest != recorded.get(field_, {"sha256": digest})["sha256"]:
            raise LedgerError(
                f"{field_}: the file that it names is not the one that the run began with (its digest differs): "
                "restore it, or start under another --run.name"
            )
    for field_, path in (("network.weights", config.network.weights), ("pool.known_labels", config.pool.known_labels)):
        by_name = field_ == "network.weights" and path is not None and networks.is_name(path)
        if begun is None or path is None or by_name or not Place.at(path).exists():
            continue
        try:
            of_weights = field_ == "network.weights"
            digest = weights_digest(path) if of_weights else sha256(read_input(field_, path)).hexdigest()
        except ConfigError:  # of a folder, or of an index, what it held is gone
            continue
        if digest != begun.metrics["inputs"][field_]["sha256"]:
            raise LedgerError(
                f"{field_}: '{path}' is not the file that the run began with (its digest differs): restore it, or "
                "start under another --run.name"
            )
