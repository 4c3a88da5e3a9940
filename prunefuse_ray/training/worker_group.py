"""Ray Train as this project runs it: a training function inside the driver, or over a group of workers, and what
becomes of those."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from prunefuse_ray import progress
from prunefuse_ray.distributed.resources import TrainingPlan
from prunefuse_ray.errors import PlanError, PruneFuseError, TrainingError, shortened
from prunefuse_ray.storage import Place
from prunefuse_ray.training.checkpoints import Weights, newest, tidy

logger = logging.getLogger(__name__)

OTHER_WORKERS = (
    "another number of workers trains another network, so the same seed may select other samples (workers.count "
    "with two equal numbers keeps it fixed)"
)
ANNOUNCED = "announced"
"""In what a worker reports: the end of a machine of its group was announced. Ray Train starts the group anew then."""
LOOKS = 1.0
"""Seconds between two looks for workers that were lost."""
FOUND_BY_RAY = (
    ("node has died", "its machine is gone"),
    ("low on memory", "its machine was short of memory"),
    ("worker process has died", "its process was killed or crashed"),
)
"""What Ray writes of an actor that died, and what that means."""


def _on_its_cpus(function: Callable[[dict[str, Any]], None], cpus: int, config: dict[str, Any]) -> None:
    """A training function in a worker, with a thread for each of its CPUs. Ray sees to that only where OMP_NUM_THREADS
    is not set, and its launcher (`ray up`) starts Ray in a shell that sets it to 1."""
    torch.set_num_threads(cpus)
    function(config)


def fit(
    function: Callable[[dict[str, Any]], None], config: dict[str, Any], plan: TrainingPlan, where: Place
) -> tuple[Weights, dict[str, Any]]:
    """Run a training function by a plan; the tensors of its last checkpoint, and what it reported last: with
    `lost_workers`, where there were any.

    Args:
        function: is given `config`, with `gpu`, with `where` it finds its checkpoints, and in `storage` where it has to
            store them itself (None: Ray Train does), after a call of `check`.
        config: holds a `job`, whose name tells its checkpoints from others.
    """
    plan.check()
    if plan.in_process and plan.gpu and not torch.cuda.is_available():
        raise PlanError(
            "workers.gpu: Ray sees a GPU on this machine, but torch cannot use it (torch.cuda.is_available() is "
            "false): install a torch for its CUDA driver, or set workers.gpu to false"
        )
    tidy(where, training := config["job"].name)
    own = {"storage": where, "check": plan.check} if plan.in_process else {"storage": None, "check": bool}
    train = function if plan.in_process else partial(_on_its_cpus, function, plan.cpus)
    with _losses(plan) as (callbacks, lost):
        trainer = _Trainer(
            # As a part of the function: Ray Train stores that once, and a `train_loop_config` several times per worker.
            partial(train, {**config, **own, "where": where, "gpu": plan.gpu}),
            scaling_config=ScalingConfig(
                num_workers=plan.workers[1] if plan.workers[0] == plan.workers[1] else plan.workers,  # type: ignore[arg-type]
                use_gpu=plan.gpu,
                resources_per_worker=None if plan.in_process else {"CPU": plan.cpus} | ({"GPU": 1} if plan.gpu else {}),
                label_selector=plan.placement,  # type: ignore[call-arg]
            ),
            run_config=RunConfig(
                name=where.name,
                storage_path=where.path.rpartition("/")[0],
                storage_filesystem=where.fs,
                failure_config=FailureConfig(max_failures=plan.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                callbacks=callbacks,  # type: ignore[arg-type]
            ),
        )
        result = _fitted(trainer, plan)
    if plan.in_process and plan.gpu:
        gc.collect()
        torch.cuda.empty_cache()  # what torch only keeps for itself is taken from the actors that score on this GPU
    plan.check()
    final = newest(where, training)
    assert final is not None
    assert result.metrics is not None
    if len(several := result.metrics["workers"]) > 1:
        logger.warning("a training had %s workers: %s", ", then ".join(map(str, several)), OTHER_WORKERS)
    return final[2], result.metrics | ({"lost_workers": lost} if lost else {})


def over_workers(values: npt.NDArray[np.float64], world: int) -> npt.NDArray[np.float64]:
    """The sum over all workers of a group, on each of them."""
    if world == 1:
        return values
    total = torch.from_numpy(values).to(ray.train.torch.get_device())
    torch.distributed.all_reduce(total)
    return total.cpu().numpy()


class _Trainer(TorchTrainer):
    """Ray's handler of SIGINT would stay after the training, and end this process with 0; an interrupt comes here."""

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller

    def _create_default_callbacks(self) -> Any:
        """Without those that start a process each for nothing: here no dataset is given to a training, and where Ray
        ends with this process (it does not for a trial of a sweep) nobody has to clear placement groups."""
        unused = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if progress.supervised() else set())
        found = super()._create_default_callbacks()  # type: ignore[misc]
        return [one for one in found if type(one).__name__ not in unused]


def _fitted(trainer: _Trainer, plan: TrainingPlan) -> ray.train.Result:
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:  # of a worker group; inside the driver errors come as they are
        failures = getattr(error, "worker_failures", {})
        for failure in failures.values():
            if isinstance(failure, PruneFuseError | torch.OutOfMemoryError):
                raise failure from None
        lost = any(isinstance(_failure(one), ray.exceptions.RayError) for one in failures.values())
        if lost and not progress.supervised():  # a supervisor starts the driver again
            raise TrainingError(
                f"workers.max_failures: a training lost workers more often than the {plan.max_failures} times that it "
                f"may, at last {ends(failures)}; its checkpoint is kept: run the same command again, with a larger "
                "number or -1 (any number)"
            ) from error
        raise
    except KeyboardInterrupt:
        if trainer.controller is not None:  # else its workers would train on for as long as this process lives
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(trainer.controller.abort.remote(), timeout=5)
        raise
    finally:
        progress.trained(0.0)


class _Losses(UserCallback):
    """Notes workers that ended too early, in Ray Train's controller: another process on the machine of the driver."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.told: set[object] = set()

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if any(reported.get(ANNOUNCED) for reported in metrics):
            self._note("a machine (its end was announced)")

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        # While the deadline of an announced preemption is waited for, the same worker is found dead at each look.
        actors = {getattr(_failure(error), "actor_id", None) for error in worker_exceptions.values()} - {None}
        if actors and actors <= self.told:
            return
        self.told |= actors
        self._note(ends(worker_exceptions))

    def _note(self, lost: str) -> None:
        # Whole lines, since the driver reads at the same time. An error here would end the training.
        with contextlib.suppress(OSError), open(self.path, "ab", buffering=0) as file:
            file.write(json.dumps(lost).encode() + b"\n")


@contextlib.contextmanager
def _losses(plan: TrainingPlan) -> Iterator[tuple[list[UserCallback], list[str]]]:
    """What has to be called back to notice losses of workers. Within it, each is told as a warning when it happens, and
    put into the list."""
    lost: list[str] = []
    if plan.in_process:
        yield [], lost
        return
    done = threading.Event()

    def follow(path: Path) -> None:
        with path.open() as file:
            last = False
            while not last:
                last = done.wait(LOOKS)
                for line in file:
                    lost.append(json.loads(line))
                    logger.warning(
                        "a training lost %s; its workers start again from the last checkpoint, as far as "
                        "workers.max_failures (%d) allows", lost[-1], plan.max_failures,
                    )  # fmt: skip

    with tempfile.TemporaryDirectory(dir=progress.temporary()) as directory:
        path = Path(directory) / "lost.jsonl"
        path.touch()
        thread = threading.Thread(target=follow, args=[path], name="lost workers", daemon=True)
        thread.start()
        try:
            yield [_Losses(str(path))], lost
        finally:
            done.set()
            thread.join()


def ends(failures: Mapping[int, Exception]) -> str:
    """How workers ended, for people: those that Ray found dead, else those that raised an error, as the others of a
    group do then.

    Args:
        failures: rank -> its error.
    """
    found = {rank: _failure(error) for rank, error in sorted(failures.items())}
    dead = {rank: error for rank, error in found.items() if isinstance(error, ray.exceptions.RayError)}
    return ", ".join(f"worker {rank} ({_end(error)})" for rank, error in (dead or found).items())


def _failure(error: Exception) -> Exception:
    """What a look at a worker failed with."""
    found: Exception = getattr(error, "health_check_failure", error)
    return found


def _end(error: Exception) -> str:
    if getattr(error, "preempted", False):
        return "its machine was taken back"
    text = str(error)
    for words, meaning in FOUND_BY_RAY:
        if words in text:
            return meaning
    return shortened(f"{type(error).__name__}: {text.strip().splitlines()[0] if text.strip() else 'no message'}")
