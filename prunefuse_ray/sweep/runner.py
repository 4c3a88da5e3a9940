"""A sweep on Ray Tune: its trials are runs of the main job, side by side, sharing what they have in common.

Tune decides which trials are in flight and which are stopped early, takes a trial up again when its process or node is
lost, and logs. What is durable is not Tune's but the runs' own ledgers: a sweep that is killed goes on when it is
started again, since finished trials are found finished and each other one goes on in the phase it was in.

A trial is two things: a thin actor of Tune's beside the driver, and a task that drives the run. The task stands outside
the trial's placement group. Inside it, every task and actor that the run starts would have to fit the group, and on a
small machine none would.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow.fs as pafs
import ray
import yaml
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from prunefuse_ray import progress
from prunefuse_ray.config.files import differences, to_tree
from prunefuse_ray.config.pool import check_scaled
from prunefuse_ray.config.schema import Config
from prunefuse_ray.data import inventory
from prunefuse_ray.data.account import lines
from prunefuse_ray.data.known_labels import check_known_labels, known_count
from prunefuse_ray.data.leaks import check_outside
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.data.survey import Survey, materialize, survey
from prunefuse_ray.distributed.machine import cores
from prunefuse_ray.distributed.resources import Resources, observe, plan_scoring, plan_training, start_ray
from prunefuse_ray.distributed.shared_directory import check_lasting
from prunefuse_ray.errors import LedgerError, PlanError, PruneFuseError
from prunefuse_ray.method.steps import INIT, Step
from prunefuse_ray.run import growth
from prunefuse_ray.run.ledger import EXECUTION_FIELDS, OF_MACHINES, Ledger
from prunefuse_ray.run.opening import OF_THE_POOL, check, check_inputs
from prunefuse_ray.run.recorded import read_recorded
from prunefuse_ray.storage import Place, be_patient
from prunefuse_ray.sweep.config import GRACE, Sweep, Trial, ends, stops_early, sweep_path, trials
from prunefuse_ray.sweep.desk import Desk
from prunefuse_ray.sweep.loggers import loggers_of
from prunefuse_ray.sweep.results import (
    COMPLETE,
    FAILED,
    STOPPED,
    expected,
    outcome,
    outcome_place,
    pool_key,
    read_draws,
    recorded_trials,
    round_row,
    trials_of,
    wanted,
)
from prunefuse_ray.sweep.search import Draws, check_search, optuna, point_of
from prunefuse_ray.sweep.sharing import inputs_keys
from prunefuse_ray.sweep.trial import POLL, TrialJob, drive
from prunefuse_ray.training.worker_group import OTHER_WORKERS

logger = logging.getLogger(__name__)

SWEEP_EXECUTION_FIELDS = (
    "concurrency",
    "loggers",
    "max_failures",
    "resources",
    "scheduler",
    *(f"base.{f}" for f in EXECUTION_FIELDS),
)
"""What may differ when a sweep is started again."""
GROWING_FIELDS = ("arms", "space", "seeds", "samples", "reference")
"""What may differ, too, as long as every trial that the sweep had is still the same trial."""

Notify = Callable[[str, str, dict[str, Any]], None]
"""Called with ("start" | "round" | how the trial ended, its name, figures)."""


def sweep_place(sweep: Sweep) -> Place:
    return Place.at(sweep_path(sweep))


TUNE = {
    # Only the loggers that were asked for, and none of Tune's tables on the console.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A sweep is durable without Tune's own last checkpoint.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A trial that fails in its first round has no metric. That shall end this trial, and not the sweep.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
"""Tune's environment."""


def run_sweep(sweep: Sweep, notify: Notify = lambda *_: None, tell: inventory.Tell = lambda _: None) -> list[Trial]:
    """Carry out a sweep, or what is missing of it; returns its trials. What became of each: `sweep/results.py`.

    Args:
        tell: is told the account of each pool, before a new sweep begins.

    Raises:
        PruneFuseError: something that the user can put right; no trial was started.
    """
    be_patient(sweep.base.run.store_patience)
    progress.tell(retries=sweep.base.run.retries, patience=sweep.base.run.store_patience)
    root = sweep_place(sweep)
    check_lasting(root)
    check_search(sweep)
    found = trials_of(sweep, root)
    searches = sweep.search != "random"
    # Of a search the ends of its space stand for what it will draw.
    probes = trials(sweep, ends(sweep)) if searches else found
    stopping = stops_early(sweep, probes)
    directory = Ledger(root)
    _check_unchanged_sweep(root, sweep)
    loggers = loggers_of(sweep, root.name)
    start_ray()
    progress.tell(doing="while looking through the pools")
    has = observe()
    todo = [t for t in found if outcome(root, t.name).status not in (COMPLETE, STOPPED)]
    count = expected(sweep, root, len(todo))
    if count:
        _check_unchanged_inputs(root, found)
    # Whether fields go together needs no network; each value does.
    looked = trials(sweep, ends(sweep, together=1)) if searches else todo
    at_once = concurrency(sweep, looked, has, count)
    infos = _survey_pools(root, found, looked, has, at_once, tell)
    directory.lock()
    try:
        if mixed := _check_unchanged_sweep(root, sweep):  # again: nobody else changes it now
            lines = "; ".join(mixed)
            logger.warning("%s: the trials trained so far had other settings (%s): %s", root.path, lines, OTHER_WORKERS)
        _record(root, sweep, looked, infos, tell)
        if count:
            progress.tell(doing="in its trials")
            keys = {t.name: inputs_keys(t.config, infos[pool_key(t.config)][0].to_json()) for t in todo}
            scheduler = _scheduler(sweep, root, found, len(probes[0].config.selection.budgets)) if stopping else None
            _fit(sweep, directory, in_order(todo, keys), scheduler, at_once, notify, loggers)
    finally:
        directory.unlock()
    return trials_of(sweep, root)


# --- before anything starts ---


def _check_unchanged_sweep(root: Place, sweep: Sweep) -> list[str]:
    """What differs and makes other networks, though it may. LedgerError where the directory is another sweep's."""
    place = root / "sweep.yaml"
    if not place.exists():
        if (root / "config.yaml").exists():
            raise LedgerError(f"{root.path}: is the directory of a run; give the sweep another --run.name")
        return []
    old = read_recorded(place, Sweep)
    differ = differences(to_tree(old), to_tree(sweep))
    changed = [d for d in differ if not d.startswith(SWEEP_EXECUTION_FIELDS)]
    if all(d.startswith(GROWING_FIELDS) for d in changed):
        # Also where nothing differs: the order of the fields in `space` makes names and draws.
        changed = _trials_lost(old, sweep, root) or _draws_lost(old, changed)
    if changed:
        lines = "\n  ".join(changed)
        raise LedgerError(
            f"{root.path} was started as another sweep:\n  {lines}\n"
            "Give the same file and options to go on with it, or another --run.name to start afresh"
        )
    return [d for d in differ if d.partition(": ")[0].endswith(OF_MACHINES)]


def _check_unchanged_inputs(root: Place, found: Iterable[Trial]) -> None:
    """LedgerError where known labels, weights or an encoder are not what trials have begun with: those to come would be
    compared with these."""
    seen = set()
    for trial in found:
        ledger, config = Ledger(root / "trials" / trial.name), trial.config
        named = config.network.architecture, config.network.weights, config.pool.known_labels, config.pool.tokenizer
        if named not in seen and ledger.exists and ledger.committed(Step(-1, INIT)):
            seen.add(named)
            check_inputs(config, ledger)


def _draws_lost(old: Sweep, changed: Sequence[str]) -> list[str]:
    """What differs of a space from which values have been drawn by what came out."""
    return [d for d in changed if old.search != "random" and d.startswith("space")]


def _trials_lost(old: Sweep, sweep: Sweep, root: Place) -> list[str]:
    """A line for every trial of the sweep `old`, as it was recorded, that `sweep` has no more or has otherwise."""
    now = {trial.name: trial for trial in trials_of(sweep, root)}
    recorded, lines = recorded_trials(old, root), list[str]()
    if old.draws and old.search == "random":  # which are drawn anew each time
        there = root.fs.get_file_info(pafs.FileSelector((root / "trials").path, allow_not_found=True))
        for name in sorted({info.base_name for info in there} - {trial.name for trial in recorded}):
            if Ledger(root / "trials" / name).exists:  # an earlier version rounded some otherwise
                lines.append(f"trial '{name}' was drawn by another version and is none of today's: go on with that one")
    for was in recorded:
        if was.name not in now:
            lines.append(f"trial '{was.name}' would be gone; a sweep may gain arms, values and seeds, but not lose any")
            continue
        changed = differences(to_tree(was.config), to_tree(now[was.name].config))
        lines += [f"trial '{was.name}': {d}" for d in changed if not d.startswith(EXECUTION_FIELDS)]
    return lines


def _record(
    root: Place,
    sweep: Sweep,
    todo: Iterable[Trial],
    infos: dict[str, tuple[PoolInfo, _New | None]],
    tell: inventory.Tell,
) -> None:
    """Write what the sweep is; the pools first, so that a sweep that exists has them."""
    pools = {pool_key(trial.config): trial.config.pool for trial in todo}
    for key, (info, new) in infos.items():
        if new is not None:
            for name in OF_THE_POOL:  # of a start that was killed, or found the pool changing, before it was recorded
                (root / "pools" / key / name).delete()
            tell(lines(new.taken.inventory.to_json(), (root / "pools" / key).uri))
            materialize(new.found, root / "pools" / key)
            inventory.write(new.taken, root / "pools" / key)
            growth.record(pools[key], info, root / "pools" / key)
            (root / "pools" / key / "pool.json").write_json(info.to_json())
    (root / "sweep.yaml").write_bytes(yaml.safe_dump(to_tree(sweep), sort_keys=False).encode())


@dataclass(frozen=True)
class _New:
    """A pool that the sweep has looked through just now, and has to write down."""

    found: Survey
    taken: inventory.Taken


def _survey_pools(
    root: Place,
    all_: Sequence[Trial],
    todo: Iterable[Trial],
    has: Resources,
    at_once: int,
    tell: inventory.Tell,
) -> dict[str, tuple[PoolInfo, _New | None]]:
    """Look through every pool once, whatever the number of trials, and check that each trial can run on it.

    Returns: key of the pool's fields -> what was found, and what is still to be written of it.
    """
    infos: dict[str, tuple[PoolInfo, _New | None]] = {}
    known: dict[str, int] = {}
    checked: set[str] = set()
    for trial in todo:
        config, key = trial.config, pool_key(trial.config)
        if key not in infos:
            recorded = root / "pools" / key / "pool.json"
            if recorded.exists():
                infos[key] = PoolInfo.from_json(recorded.read_json()), None
                growth.check_unchanged(config, Ledger(root / "pools" / key))
                labels = check_known_labels(config.pool, config.task, infos[key][0])
                drawn = growth.drawn_of(root / "pools" / key, infos[key][0])
            else:
                _check_unchanged_pool(root, all_, config)
                check_scaled(config.pool)
                check_outside(config.pool, root, "run.directory")
                found = survey(config.pool, task=config.task)
                labels = check_known_labels(config.pool, config.task, found.info, found.indexes["path"])
                drawn = found.drawn
                taken = inventory.checked(inventory.take(found, labels), config.pool, tell)
                info = replace(found.info, rows=found.info.rows - taken.inventory.twins)
                infos[key] = info, _New(found, taken)
            known[key] = known_count(labels, drawn)
        relevant = config.model_copy(update={n: getattr(Sweep().base, n) for n in ("run", "training", "finetuning")})
        if (form := relevant.model_dump_json()) not in checked:
            checked.add(form)
            try:
                check(config, infos[key][0], has, at_once, known=known[key])
            except PruneFuseError as error:
                raise type(error)(f"trial '{trial.point}': {error}") from error
    return infos


def _check_unchanged_pool(root: Place, all_: Iterable[Trial], config: Config) -> None:
    """A sweep that an earlier version began may have recorded this pool under another key: then a trial that has begun
    tells what the pool was."""
    for trial in all_:
        ledger = Ledger(root / "trials" / trial.name)
        if trial.config.pool == config.pool and ledger.exists:
            growth.check_unchanged(config, ledger)
            return


def concurrency(sweep: Sweep, looked: Sequence[Trial], has: Resources, count: int) -> int:
    """How many trials at a time: as many as wanted, as long as each one's part of the cluster holds what it needs.

    Where trials train inside their drivers, at most one for each core: small trainings lose more by sharing a core than
    they gain by a second thread.

    Args:
        looked: the trials that are to come, or what stands for them.
        count: how many are to come.
    """
    limit = has.cores or cores() if has.in_process else max(1, int(has.cpus))
    if (each := sweep.resources) is not None:
        grows = has.autoscaler  # it brings a trial at a time what that lacks
        more = {"cpus": grows.units(1, 0)[1], "gpus": grows.units(1, 1)[0]} if grows else {}
        for name, wanted, there in (("cpus", each.cpus, has.cpus), ("gpus", each.gpus, has.gpus)):
            could = more.get(name, 0)
            if wanted > max(there, could):
                grown = f", and the autoscaler could bring it to {could:g}" if grows else ""
                raise PlanError(
                    f"resources.{name}: each trial needs {wanted:g}, but the cluster has {there:g}{grown}: lower it, "
                    "or add nodes"
                )
            limit = min(limit, max(1, int(there // wanted)) if wanted else limit)
    for runs in range(min(limit, sweep.concurrency or limit, count), 1, -1):
        part = has.part(runs)
        try:
            for trial in looked:
                plan_scoring(trial.config.scoring, part, 1.0)
                plan_training(trial.config.workers, part)
            return runs
        except PlanError:
            continue
    return 1


def in_order(todo: Sequence[Trial], keys: dict[str, dict[Step, str]]) -> list[Trial]:
    """Trials that have much in common as far apart as possible: the first is done when the next one could use it."""
    before: Counter[str] = Counter()
    waves = []
    for trial in todo:
        family = keys[trial.name].get(Step(0, "train"), trial.name)
        waves.append(before[family])
        before[family] += 1
    return [trial for _, _, trial in sorted(zip(waves, range(len(todo)), todo, strict=True))]


# --- Ray Tune ---


def _already_done(root: Place, all_: Iterable[Trial]) -> dict[str, str]:
    """Inputs key -> trial, of every step that any trial has committed."""
    done: dict[str, str] = {}
    for trial in all_:
        ledger = Ledger(root / "trials" / trial.name)
        if ledger.exists:
            for step, key in inputs_keys(trial.config, ledger.read_pool()).items():
                if key not in done and ledger.committed(step):
                    done[key] = trial.name
    return done


def _trial(config: dict[str, Any], *, job: TrialJob, desk: Any, placement: dict[str, Any]) -> None:
    """Tune's side of a trial: report each round of the run as it ends."""
    name = config["trial"]["name"]
    # "DEFAULT" takes the task, and with it all that the run starts, out of the trial's placement group.
    driver = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy="DEFAULT", **placement)(drive)
    ref = driver.remote(name, job, desk)
    try:
        ended: list[Any] = []
        while not ended:
            ended, _ = ray.wait([ref], timeout=POLL)
            for row in ray.get(desk.rows.remote(name)):
                # A run that lacks its report alone tells one row: loggers would take it for the first round's.
                tune.report({**row, "training_iteration": row["budgets_passed"]})
        failure = ray.get(ref)
    finally:
        ray.cancel(ref, force=True)  # stopped by the scheduler; of no effect on a task that has ended
    if failure is not None:
        outcome_place(job.root, name).write_json({"status": FAILED, **failure})


class _Events(tune.Callback):
    """Tells the person, and the sweep's directory, what becomes of the trials."""

    def __init__(self, directory: Ledger, desk: Any, notify: Notify) -> None:
        self.directory, self.root, self.desk, self.notify = directory, directory.root, desk, notify

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        """A sweep that another driver has taken over starts no more trials; those under way end with it."""
        if self.directory.taken_over:
            self.directory.check_lease()

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.notify("start", trial.config["trial"]["name"], {})

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        if not result.get("before", True):
            progress.saved()
            self.notify("round", trial.config["trial"]["name"], result)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Lost more often than `max_failures`."""
        name = trial.config["trial"]["name"]
        self.desk.end.remote(name)
        lost = str(trial.get_error() or "its process was lost").strip().splitlines()[-1]
        message = f"given up after {trial.num_failures} losses of its process or node ({lost})"
        outcome_place(self.root, name).write_json({"status": FAILED, "message": message})
        self.notify(FAILED, name, {"message": message})

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        name = trial.config["trial"]["name"]
        self.desk.end.remote(name)
        found = outcome(self.root, name)
        if found.status not in (COMPLETE, FAILED):
            outcome_place(self.root, name).write_json({"status": STOPPED, "message": "behind others at equal labels"})
            found = outcome(self.root, name)
        self.notify(found.status, name, {"message": found.message})


class _Past:
    """A trial of an earlier start, as a scheduler knows one."""

    def __init__(self, name: str) -> None:
        self.trial_id = name


class _Halving(AsyncHyperBandScheduler):
    """Ray's, for trials that an earlier start or try has begun: what they had passed is recorded, and not decided
    again."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if result.get("before") else decision


class _Median(MedianStoppingRule):
    """The same of Ray's. It takes what a trial ended with for one more round: its last one would count twice, and
    without any (it failed in its first) every later comparison would fail."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if not result.get("before"):
            return super().on_trial_result(tune_controller, trial, result)
        # Each round once, and no empty list: the rule looks at the last of every one that there is.
        told = self._results.get(trial, [])
        if self._metric in result and all(r[self._time_attr] != result[self._time_attr] for r in told):
            self._results[trial].append(result)
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Its rounds have been told."""


def _scheduler(sweep: Sweep, root: Place, found: Sequence[Trial], rounds: int) -> TrialScheduler:
    """What stops trials by their rounds, of which each has so many, told of what earlier starts of this sweep
    measured."""
    # The same labels in every trial: `stops_early`.
    by: dict[str, Any] = {"time_attr": "budgets_passed", "metric": sweep.metric, "mode": "max", "grace_period": GRACE}
    scheduler: TrialScheduler
    if sweep.scheduler == "median":
        # A trial that is paused to let others catch up would begin its round anew.
        scheduler = _Median(**by, min_time_slice=math.inf)  # type: ignore[arg-type]
    else:
        scheduler = _Halving(**by, max_t=rounds, reduction_factor=2)
    for trial in found:
        ledger = Ledger(root / "trials" / trial.name)
        if outcome(root, trial.name).status in (COMPLETE, STOPPED) and ledger.exists:
            past: Any = _Past(trial.name)
            scheduler.on_trial_add(None, past)  # type: ignore[arg-type]
            for r in range(len(trial.config.selection.budgets)):
                row = round_row(ledger, trial.config, r)
                if row.get(sweep.metric) is not None:
                    scheduler.on_trial_result(None, past, {**row, "before": True})
    return scheduler


def placement(nodes: Sequence[dict[str, Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Where trials are driven from: (resources of Tune's actor, options of the driving task).

    The actor stands on the head, beside the sweep's driver, without which it is nothing. The task needs no CPU of Ray's
    either; among machines that can be taken away it prefers those that last.
    """
    kinds = {n.get("Labels", {}).get("ray.io/market-type") for n in nodes if n["Alive"]}
    steady = "spot" in kinds and "on-demand" in kinds
    return {"node:__internal_head__": 0.0001}, (
        {"label_selector": {"ray.io/market-type": "on-demand"}} if steady else {}
    )


def _measured(root: Place, sweep: Sweep, trial: Trial) -> float | None:
    """The metric of a trial at the most labels at which it was measured; None of one that failed."""
    ledger = Ledger(root / "trials" / trial.name)
    if not ledger.exists or outcome(root, trial.name).status == FAILED:
        return None
    rows = (round_row(ledger, trial.config, r) for r in reversed(range(len(trial.config.selection.budgets))))
    return next((row[sweep.metric] for row in rows if row.get(sweep.metric) is not None), None)


def _fit(
    sweep: Sweep,
    directory: Ledger,
    ordered: Sequence[Trial],
    scheduler: TrialScheduler | None,
    at_once: int,
    notify: Notify,
    loggers: Sequence[tune.Callback],
) -> None:
    """Hand the trials to Tune."""
    root = directory.root
    resources, task = placement(ray.nodes())
    # With Tune's actors on the head: elsewhere it would go with a spot machine, and every trial lose a try by that.
    lasting = ray.remote(num_cpus=0, resources=resources, max_restarts=-1, max_task_retries=-1)(Desk)
    desk = lasting.remote(_already_done(root, trials_of(sweep, root)))
    configs = {t.name: to_tree(t.config) for t in ordered}
    job = TrialJob(
        root=root,
        configs=configs,
        sweep=to_tree(sweep),
        runs=at_once,
        directory=os.getcwd(),
        address=os.environ.get("RAY_ADDRESS"),
    )
    for trial in ordered:
        outcome_place(root, trial.name).delete()  # what failed before is tried again
    os.environ |= TUNE
    searching = sweep.search != "random"
    search: dict[str, Any] = {}
    if searching:
        drawn = len(read_draws(root))
        search["search_alg"] = Draws(sweep, root, partial(_measured, root, sweep), ordered, optuna(sweep, drawn))
        search["num_samples"] = wanted(sweep, len(ordered), drawn)
    tuner = tune.Tuner(
        tune.with_resources(
            partial(_trial, job=job, desk=desk, placement=task), tune.PlacementGroupFactory([resources])
        ),
        param_space={} if searching else {"trial": tune.grid_search([point_of(t) for t in ordered])},
        tune_config=tune.TuneConfig(
            **search,
            scheduler=scheduler,
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_name_creator=lambda t: t.config["trial"]["name"],
            trial_dirname_creator=lambda t: t.config["trial"]["name"],
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=root.path,
            storage_filesystem=root.fs,
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            callbacks=[_Events(directory, desk, notify), *loggers],
            verbose=0,
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses files of its own loggers, which are off
    tuner.fit()
