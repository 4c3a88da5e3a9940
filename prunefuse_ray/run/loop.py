"""The PruneFuse loop: reads the ledger, finds the first step without a commit, does it, records it.

Resuming is running again: the loop knows nothing of what happened before but what the ledger tells.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from itertools import takewhile

from prunefuse_ray import networks
from prunefuse_ray.config.files import to_tree
from prunefuse_ray.config.schema import Config
from prunefuse_ray.data.known_labels import check_present, read_known
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.data.survey import materialise, source_of, sources, survey
from prunefuse_ray.distributed.resources import (
    Resources,
    ScoringPlan,
    TrainingPlan,
    importing,
    observe,
    plan_scoring,
    plan_training,
    start_ray,
)
from prunefuse_ray.distributed.shared_directory import SharedDirectory
from prunefuse_ray.errors import ConfigError, LabelsWaiting, LedgerError
from prunefuse_ray.method.selector import dense_network, fused_network, make_selector, network_spec
from prunefuse_ray.method.steps import GROW, INIT, REPORT, Step, check_budget, check_known, steps
from prunefuse_ray.run import growth
from prunefuse_ray.run.events import Telemetry
from prunefuse_ray.run.labeling import annotator_of
from prunefuse_ray.run.ledger import Commit, Ledger, label_count
from prunefuse_ray.run.phases import PHASES, Work, check_inputs
from prunefuse_ray.storage import Place

logger = logging.getLogger(__name__)

Listener = Callable[[str, Step, Commit | None], None]
"""Called with ("start" | "done", step, its commit once done)."""

Adopt = Callable[[Ledger, Step], Commit | None]
"""Asked before a step is carried out: commits it from elsewhere, or says None."""


def run_place(config: Config) -> Place:
    return Place.at(config.run.directory) / config.run.name


def run(config: Config, listen: Listener = lambda *_: None, *, adopt: Adopt = lambda *_: None, runs: int = 1) -> Ledger:
    """Carry out a run, or what is missing of it, and return its ledger.

    Args:
        runs: how many runs share the cluster; each plans with its part of it.

    Raises:
        PruneFuseError: something that the user can put right; nothing was written, or nothing was lost.
    """
    ledger = Ledger(run_place(config))
    if ledger.exists:
        ledger.check_config(to_tree(config))
        if ledger.committed(Step(-1, REPORT)):
            return ledger
    annotator_of(config.annotation)  # says what it lacks before anything starts
    # What a new run needs first: seconds of imports that need not wait for Ray's processes to start.
    with importing("torch_pruning", *(["sklearn.datasets"] if config.pool.source == "digits" else [])):
        start_ray()
    shared = SharedDirectory(ledger.root)
    shared.check()
    try:
        work = _open(config, ledger, runs)
        telemetry = Telemetry(ledger, config.run.name)
        telemetry.record("run_started", cluster=work.has.to_json())
        try:
            if done := list(takewhile(ledger.committed, steps(config))):
                _note(work, done[-1])  # a kill may have come between its commit and its note
            for step in steps(config):
                if ledger.committed(step) is None:
                    shared.check()  # of the nodes that have joined meanwhile
                    telemetry.started(step)
                    listen("start", step, None)
                    commit = adopt(ledger, step) or _carry_out(work, step)
                    _note(work, step)
                    telemetry.done(commit)
                    listen("done", step, commit)
        except LabelsWaiting as waiting:
            telemetry.record("run_waits", message=str(waiting))
            raise
        except Exception as error:
            with contextlib.suppress(OSError):  # the store itself may be what failed
                telemetry.record("run_failed", error=type(error).__name__, message=str(error)[:1000])
            raise
        telemetry.record("run_done")
    finally:
        ledger.unlock()
    return ledger


def _open(config: Config, ledger: Ledger, runs: int) -> Work:
    """Check everything that can be checked before the first phase, then make or reopen the run directory."""
    has = observe()
    if ledger.exists:
        ledger.lock()
        ledger.check_config(to_tree(config))  # again: nobody else changes it now
        ledger.take_budgets(to_tree(config))
        info = growth.seen_info(config, ledger)
        growth.check_unchanged(config, ledger)
        check_inputs(config, ledger)
        begun = ledger.committed(Step(-1, INIT))
        macs = begun.metrics["macs_per_sample"]["proxy"] if begun else None
        scoring, training = check(config, info, has, runs, macs)
    else:
        plan_training(config.workers, has.part(runs))  # the quickest to refuse comes first
        found = survey(config.pool, labeled=config.annotation.kind == "oracle")
        info = found.info
        scoring, training = check(config, info, has, runs)
        if config.pool.known_labels is not None:
            known = read_known(config.pool.known_labels, info)
            check_known(config, known.table.num_rows)
            check_present(known, found, config.pool)
        ledger.lock()
        if ledger.exists:
            raise LedgerError(
                f"{ledger.root.path}: another process began this run meanwhile; give the same command again"
            )
        materialise(found, ledger.root)
        growth.record(config.pool, info, ledger.root)
        ledger.create(to_tree(config), info.to_json())
    for message in filter(None, (training.waits, scoring.waits)):
        logger.warning(message)
    pool, test = sources(config.pool, ledger.root)
    given = config.pool.validation_path is not None
    work = Work(
        config=config,
        ledger=ledger,
        info=info,
        pool=pool,
        test=test,
        validation=source_of(config.pool, ledger.root, "validation_path") if given else None,
        has=has,
        scoring=scoring,
        training=training,
    )
    work.look_again(pool)
    return work


def check(
    config: Config, info: PoolInfo, has: Resources, runs: int = 1, macs: int | None = None
) -> tuple[ScoringPlan, TrainingPlan]:
    """What a run would do with the cluster (or its part of it); refuses what cannot be run. Writes nothing.

    Args:
        macs: of the selecting network per sample, where it has been built already.

    Raises:
        ConfigError: a budget beyond the pool, or a network that cannot be built, pruned or fused.
        PlanError: not enough CPUs or GPUs.
    """
    mine = has.part(runs)
    check_budget(config, info.rows)
    per_sample = _selector_macs(config, info) if macs is None else macs
    scoring = plan_scoring(config.scoring, mine, info.rows * per_sample, info.rows)
    return scoring, plan_training(config.workers, mine)


def _selector_macs(config: Config, info: PoolInfo) -> int:
    """MACs of the selecting network per sample. Building and pruning it here once refuses, before anything is
    written, what cannot be built, pruned or fused."""
    spec = network_spec(config, info)
    try:
        dense, _ = dense_network(config, spec)
        made = make_selector(config, dense)
        if config.fusion.target == "fused":
            fused_network(config, dense.network, made)  # not only when the labels are paid for
        selector = made.network
        if config.scoring.features or config.selection.needs_features:
            networks.features_and_logits(selector.eval(), networks.example_input(spec))
        return networks.macs(selector, spec.input_shape)
    except networks.NetworkError as error:
        raise ConfigError(f"network, pruning, fusion: {error}") from error


def _carry_out(work: Work, step: Step) -> Commit:
    started = time.perf_counter()
    done = PHASES[step.phase](work, step)
    metrics = {**done.metrics, "seconds": time.perf_counter() - started}
    commit = work.ledger.commit(step, done.outputs, metrics, done.written)
    work.ledger.clear(step, *done.leftovers)
    if step.phase == GROW:
        work.look_again(sources(work.config.pool, work.ledger.root)[0])
    return commit


def _note(work: Work, last: Step) -> None:
    """`metrics.json` of a round: the figures of its committed phases, gathered for readers."""
    phases, round_ = {}, last.round
    if round_ < 0:
        return
    for step in steps(work.config):
        commit = work.ledger.committed(step) if step.round == round_ else None
        if commit is not None:
            phases[step.phase] = commit.metrics
    work.ledger.write_json(
        f"rounds/{round_:03d}/metrics.json",
        {
            "round": round_,
            "labels": label_count(work.config, work.ledger, round_),
            "phases": phases,
            "cluster": work.has.to_json(),
        },
    )
