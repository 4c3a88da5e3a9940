"""The PruneFuse loop: reads the ledger, finds the first step without a commit, does it, records it.

Resuming is running again: the loop knows nothing of what happened before but what the ledger tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prunefuse_ray import networks
from prunefuse_ray.config import Config
from prunefuse_ray.config_files import to_tree
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.known import check_present, read_known
from prunefuse_ray.ledger import Commit, Ledger, Step
from prunefuse_ray.phases import PHASES, Work, check_inputs, dense_network, make_selector, network_spec
from prunefuse_ray.plan import REPORT, check_budget, check_known, steps
from prunefuse_ray.pool import PoolInfo
from prunefuse_ray.resources import observe, plan_scoring, plan_training, start_ray
from prunefuse_ray.storage import Place
from prunefuse_ray.survey import check_unchanged, materialise, source_of, sources, survey

Listener = Callable[[str, Step, Commit | None], None]
"""Called with ("start" | "done", step, its commit once done)."""


def run_place(config: Config) -> Place:
    return Place.at(config.run.directory) / config.run.name


def run(config: Config, listen: Listener = lambda *_: None) -> Ledger:
    """Carry out a run, or what is missing of it, and return its ledger.

    Raises:
        PruneFuseError: something that the user can put right; nothing was written, or nothing was lost.
    """
    ledger = Ledger(run_place(config))
    if ledger.exists:
        ledger.check_config(to_tree(config))
        if ledger.committed(Step(-1, REPORT)):
            return ledger
    start_ray()
    work = _open(config, ledger)
    try:
        for step in steps(config):
            if ledger.committed(step) is None:
                _carry_out(work, step, listen)
    finally:
        ledger.unlock()
    return ledger


def _open(config: Config, ledger: Ledger) -> Work:
    """Check everything that can be checked before the first phase, then make or reopen the run directory."""
    has = observe()
    training = plan_training(config.workers, has)
    if ledger.exists:
        ledger.lock()
        info = PoolInfo.from_json(ledger.read_pool())
        check_unchanged(config.pool, info)
        check_inputs(config, ledger)
        scoring = plan_scoring(config.scoring, has, info.rows * _selector_macs(config, info))
    else:
        found = survey(config.pool)
        info = found.info
        check_budget(config, info.rows)
        if config.pool.known_labels is not None:
            known = read_known(config.pool.known_labels, info)
            check_known(config, known.table.num_rows)
            check_present(known, found, config.pool)
        scoring = plan_scoring(config.scoring, has, info.rows * _selector_macs(config, info))
        ledger.lock()
        materialise(found, ledger.root)
        ledger.create(to_tree(config), info.to_json())
    pool, test = sources(config.pool, ledger.root)
    given = config.pool.validation_path is not None
    return Work(
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


def _selector_macs(config: Config, info: PoolInfo) -> int:
    """MACs of the selecting network per sample. Building and pruning it here once refuses, before anything is
    written, what cannot be built or pruned."""
    spec = network_spec(config, info)
    try:
        dense, _ = dense_network(config, spec)
        return networks.macs(make_selector(config, dense).network, spec.input_shape)
    except networks.NetworkError as error:
        raise ConfigError(f"network, pruning: {error}") from error


def _carry_out(work: Work, step: Step, listen: Listener) -> None:
    listen("start", step, None)
    started = time.perf_counter()
    done = PHASES[step.phase](work, step)
    metrics = {**done.metrics, "seconds": time.perf_counter() - started}
    commit = work.ledger.commit(step, done.outputs, metrics, done.written)
    if step.round >= 0:
        _write_metrics(work, step.round)
    work.ledger.clear(step, *done.leftovers)
    listen("done", step, commit)


def _write_metrics(work: Work, round_: int) -> None:
    """`metrics.json` of a round: the figures of its committed phases, gathered for readers."""
    phases = {}
    for step in steps(work.config):
        commit = work.ledger.committed(step) if step.round == round_ else None
        if commit is not None:
            phases[step.phase] = commit.metrics
    work.ledger.write_json(
        f"rounds/{round_:03d}/metrics.json",
        {
            "round": round_,
            "labels": work.config.selection.budgets[round_],
            "phases": phases,
            "cluster": work.has.to_json(),
        },
    )
