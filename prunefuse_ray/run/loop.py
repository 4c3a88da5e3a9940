"""The PruneFuse loop: reads the ledger, finds the first step without a commit, does it, records it.

Resuming is running again: the loop knows nothing of what happened before but what the ledger tells.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from itertools import takewhile

import prunefuse_ray
from prunefuse_ray import progress
from prunefuse_ray.config import Config
from prunefuse_ray.config.sources import POOL_SOURCES
from prunefuse_ray.data.inventory import Tell
from prunefuse_ray.data.survey import source_of
from prunefuse_ray.distributed.resources import importing, start_ray
from prunefuse_ray.distributed.shared_directory import SharedDirectory
from prunefuse_ray.errors import LabelsWaiting, LedgerError
from prunefuse_ray.method.steps import GROW, LABEL, Step, steps
from prunefuse_ray.run.context import RunContext
from prunefuse_ray.run.events import Telemetry
from prunefuse_ray.run.labeling import annotator_of, changed_answers
from prunefuse_ray.run.ledger import Commit, Ledger, labels_so_far, phases_of
from prunefuse_ray.run.opening import open_run, still_complete
from prunefuse_ray.run.phases import PHASES
from prunefuse_ray.run.phases.report import LABELS_FILE, all_labels
from prunefuse_ray.run.tracking import Tracking, check_trackers
from prunefuse_ray.storage import Place, be_patient
from prunefuse_ray.tasks import TASKS

logger = logging.getLogger(__name__)

Listener = Callable[[str, Step, Commit | None], None]
"""Called with ("start" | "done", step, its commit once done)."""

Adopt = Callable[[Ledger, Step], Commit | None]
"""Asked before a step is carried out: commits it from elsewhere, or says None."""


def run_place(config: Config) -> Place:
    return Place.at(config.run.directory) / config.run.name


def run(
    config: Config,
    listen: Listener = lambda *_: None,
    *,
    adopt: Adopt = lambda *_: None,
    runs: int = 1,
    tell: Tell = lambda _: None,
) -> Ledger:
    """Carry out a run, or what is missing of it, and return its ledger.

    Args:
        runs: how many runs share the cluster; each plans with its part of it.
        tell: is told the account of the pool, before a new run begins.

    Raises:
        PruneFuseError: something that the user can put right; nothing was written, or nothing was lost.
    """
    be_patient(config.run.store_patience)
    progress.tell(retries=config.run.retries, patience=config.run.store_patience)
    ledger = Ledger(run_place(config))
    if ledger.exists:
        ledger.check_config(config)
        for changed in changed_answers(config, ledger):
            logger.warning(changed)
        if ledger.complete(config) and still_complete(config, ledger):
            return ledger
    check_trackers(config)
    annotator_of(config.annotation)  # says what it lacks before anything starts
    # What a new run needs first: seconds of imports that need not wait for Ray's processes to start.
    with importing("torch_pruning", *POOL_SOURCES[config.pool.source].imports):
        start_ray()
    shared = SharedDirectory(ledger.root)
    shared.check()
    progress.tell(doing="while looking through the pool")
    try:
        context = open_run(config, ledger, runs, tell)
        telemetry = Telemetry(ledger, config.run.name, TASKS[config.task].metric)
        tracking = Tracking(config, ledger)  # what it refuses comes first: else the run would look as if it went on
        telemetry.record("run_started", version=prunefuse_ray.__version__, cluster=context.has.to_json())
        try:
            if done := list(takewhile(ledger.committed, steps(config))):
                _note(context, done[-1])  # a kill may have come between its commit and its note
            for step in steps(config):
                if ledger.committed(step) is None:
                    shared.check()  # of the nodes that have joined meanwhile
                    progress.tell(doing=step.doing)
                    telemetry.started(step)
                    listen("start", step, None)
                    commit = adopt(ledger, step) or _carry_out(context, step)
                    _note(context, step)
                    telemetry.done(commit)
                    tracking.done(step)
                    listen("done", step, commit)
        except KeyboardInterrupt:
            with contextlib.suppress(OSError, LedgerError):
                telemetry.record("run_interrupted")
            tracking.close("paused")
            raise
        except LabelsWaiting as waiting:
            with contextlib.suppress(OSError, LedgerError):  # that labels are awaited is what has to be said
                telemetry.record("run_waits", message=str(waiting))
            tracking.close("paused")
            raise
        except Exception as error:
            with contextlib.suppress(OSError, LedgerError):  # the store may be what failed, or the run another's now
                telemetry.record("run_failed", error=type(error).__name__, message=str(error)[:1000])
            tracking.close("failed")
            raise
        telemetry.record("run_done")
        tracking.close("done")
    except OSError as error:
        error.add_note(f"run directory {ledger.root.path}")
        raise
    finally:
        ledger.unlock()
    return ledger


def _carry_out(context: RunContext, step: Step) -> Commit:
    started, waited = time.perf_counter(), progress.waited()
    done = PHASES[step.phase](context, step)
    seconds = time.perf_counter() - started - (progress.waited() - waited)  # without waiting for people
    # A training or a scoring pass that was taken up again knows what its earlier starts took.
    metrics = {**done.metrics, "seconds": max(seconds, done.metrics.get("seconds", 0.0))}
    commit = context.ledger.commit(step, done.outputs, metrics, done.written)
    context.ledger.clear(step, *done.leftovers)
    if step.phase == GROW:
        context.look_again(source_of(context.config.pool, context.ledger.root, "path", task=context.config.task))
    return commit


def _note(context: RunContext, last: Step) -> None:
    """`metrics.json` of a round: the figures of its committed phases, gathered for readers; and all labels so far, with
    which another run can begin whatever becomes of this one."""
    phases, round_ = {}, last.round
    if round_ < 0:
        return
    for step in phases_of(context.config, context.ledger, round_):
        if (commit := context.ledger.committed(step)) is not None:
            phases[step.phase] = commit.metrics
    context.ledger.write_json(
        f"rounds/{round_:03d}/metrics.json",
        {
            "round": round_,
            "labels": labels_so_far(context.config, context.ledger, round_),
            "phases": phases,
            "cluster": context.has.to_json(),
        },
    )
    if last.phase == LABEL and not context.task.pixels:  # masks are many bytes: they are written at the end
        context.ledger.write_file(LABELS_FILE, all_labels(context, round_))
