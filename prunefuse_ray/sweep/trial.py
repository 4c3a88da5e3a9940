"""One trial of a sweep, as the task that drives it: a run that takes over what another trial has done already."""

from __future__ import annotations

import os
import time
import traceback
from dataclasses import dataclass
from typing import Any

import ray
import ray.train

from prunefuse_ray.config.files import config_from_tree, to_tree
from prunefuse_ray.errors import LedgerError, PruneFuseError, TrainingError, lost_by_ray
from prunefuse_ray.method.steps import Step, steps
from prunefuse_ray.run import loop
from prunefuse_ray.run.ledger import Commit, Ledger
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep.config import sweep_from_tree, trials
from prunefuse_ray.sweep.results import draw_of, pool_key, read_draws, round_row
from prunefuse_ray.sweep.sharing import inputs_keys

POLL = 0.2  # seconds between two looks at what another process does
PATIENCE = 120.0  # seconds that a run waits for the process that held its directory before to be gone


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What a task that drives trials of a sweep needs to know."""

    root: Place
    configs: dict[str, dict[str, Any]]
    """Of the trials that were known beforehand."""
    sweep: dict[str, Any] | None = None
    """Where a search draws more."""
    runs: int
    directory: str
    address: str | None = None
    """RAY_ADDRESS of the sweep's driver: Ray gives it to the driver of a job, and not to its workers."""

    def config_of(self, name: str) -> dict[str, Any]:
        if name in self.configs:
            return self.configs[name]
        assert self.sweep is not None, "a search writes its draws down before it gives out their trials"
        found = trials(sweep_from_tree(self.sweep), read_draws(self.root), since=draw_of(name))
        return next(to_tree(t.config) for t in found if t.name == name)


def drive(name: str, job: TrialJob, desk: Any) -> dict[str, str] | None:
    """Drive one trial to its end, in a task. Returns None, or how it failed; what Ray lost is raised, to be retried."""
    if job.address:  # a run asks by it whether the cluster is others', too, and whether machines may be taken away
        os.environ["RAY_ADDRESS"] = job.address
    if os.path.isdir(job.directory):
        os.chdir(job.directory)  # relative paths mean what they meant where the sweep was started
    try:
        _run(name, job, desk)
    except PruneFuseError as error:
        if isinstance(error, TrainingError) and isinstance(error.__cause__, ray.train.TrainingFailedError):
            raise  # its workers were lost too often, and so it is: its training goes on from a checkpoint
        return {"message": str(error)}
    except Exception as error:
        if lost_by_ray(error) is not None:
            raise
        return {"message": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    finally:
        ray.get(desk.release.remote(name))
    return None


def _run(name: str, job: TrialJob, desk: Any) -> None:
    tree = job.config_of(name)
    config = config_from_tree(tree)
    ledger = Ledger(loop.run_place(config))
    _wait_for(ledger)
    came_back = ledger.exists
    if not came_back:
        _begin(ledger, job.root / "pools" / pool_key(config), tree)
    keys = inputs_keys(config, ledger.read_pool())
    # An earlier try may not have come to tell of what it committed, or told a desk that was lost.
    for step, key in keys.items() if came_back else ():
        if ledger.committed(step):
            desk.finish.remote(key, name)
    *plan, _ = steps(config)
    ends = {step.round: step for step in plan if step.round >= 0}
    last = max(ends)
    if not ledger.committed(ends[last]):  # else only what follows its rounds is missing: no scheduler has a say in that
        for r, end in ends.items():
            if ledger.committed(end):
                desk.post.remote(name, {**round_row(ledger, config, r), "before": True})

    def adopt(ledger: Ledger, step: Step) -> Commit | None:
        while step in keys:
            answer, other = ray.get(desk.claim.remote(keys[step], name))
            if answer == "take" and other != name:
                return ledger.adopt(step, Ledger(job.root / "trials" / other), other)
            if answer != "wait":
                break
            time.sleep(POLL)
        return None

    def listen(event: str, step: Step, commit: Commit | None) -> None:
        if event == "done":
            if step in keys:
                desk.finish.remote(keys[step], name)
            if step in ends.values() and step.round < last:
                desk.post.remote(name, {**round_row(ledger, config, step.round), "before": False})

    loop.run(config, listen, adopt=adopt, runs=job.runs)
    # Told of only now: a scheduler stops trials when a round is over, and this one should lack nothing then.
    desk.post.remote(name, {**round_row(ledger, config, last), "before": False})


def _wait_for(ledger: Ledger) -> None:
    """Until the driver of an earlier attempt, which may take a moment to die, has let go of the run."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            ledger.lock()
            return ledger.unlock()
        except LedgerError:
            if time.monotonic() > deadline:
                raise
            ledger.unlock()
            time.sleep(POLL)


def _begin(ledger: Ledger, pool: Place, tree: dict[str, Any]) -> None:
    """Make the run directory from the sweep's look at the pool."""
    for file in pool.written(recursive=True):
        below = file.path.removeprefix(pool.path + "/")
        if below != "pool.json":
            (ledger.root / below).write_bytes(Place(pool.fs, file.path).read_bytes())
    ledger.create(tree, (pool / "pool.json").read_json())
