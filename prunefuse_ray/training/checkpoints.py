"""Where a training stands, on storage: weights, momentum, the best epoch, progress. Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import ray.train
import ray.train.collective
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from prunefuse_ray import config as cfg
from prunefuse_ray import progress
from prunefuse_ray.progress import temporary
from prunefuse_ray.storage import Place

logger = logging.getLogger(__name__)

FILE = "state.safetensors"
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""What Ray Train notes of the checkpoints that it has stored."""


@dataclass
class State:
    """Where a training stands: after `epoch` whole epochs and `step` steps of the next one."""

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    step: int = 0
    loss: float = 0.0
    """Sum of the losses of those steps' samples, on this worker."""
    seen: int = 0
    """How many samples those were."""
    best: dict[str, float] | None = None
    """The epoch of highest merit on the validation set so far, of several that of the lowest loss, and both figures.
    since: the first epoch of this merit. 0.1 kept neither `since` nor the loss."""
    guessed: int = 0
    """Unlabeled samples that those steps looked at, of all workers."""
    sure: int = 0
    """How many of them they learned from."""
    mean_guess_C: list[float] = field(default_factory=list)
    """The mean guess on unlabeled samples (`semi_supervised.Guesser`)."""
    workers: list[int] = field(default_factory=list)
    """How many workers took part, one number after the other."""

    def go_on(self, workers: int) -> None:
        if self.workers[-1:] != [workers]:
            self.workers.append(workers)

    @property
    def name(self) -> str:
        """Names in the order of progress, so that the last one is the newest."""
        return f"epoch-{self.epoch:04d}-step-{self.step:06d}"

    def improves(self, merit: float, loss: float) -> bool:
        """Whether the epoch that is done is the best so far; then `best` is that. On a small validation set many epochs
        reach the same accuracy, the first of them at a high learning rate: the loss tells them apart."""
        before = self.best
        merit, loss = (-math.inf if math.isnan(merit) else merit), (math.inf if math.isnan(loss) else loss)
        if before is None or math.isnan(before["merit"]) or merit > before["merit"]:
            self.best = {"epoch": self.epoch, "merit": merit, "loss": loss, "since": self.epoch}
        elif merit == before["merit"] and loss < before.get("loss", math.inf):
            self.best = {**before, "epoch": self.epoch, "loss": loss, "since": before.get("since", before["epoch"])}
        return self.best is not before

    def finished(self, recipe: cfg.Recipe) -> bool:
        """Whether all epochs are done, or none of the last `patience` had a higher merit on the validation set."""
        best = self.best
        waited = recipe.patience and best and self.epoch - best.get("since", best["epoch"]) >= recipe.patience
        return self.epoch == recipe.epochs or bool(waited)


Weights: TypeAlias = dict[str, Tensor]


MOMENTS = {"momentum_buffer": "momentum", "exp_avg": "mean", "exp_avg_sq": "square", "step": "step"}
"""What optimizers keep of every parameter (SGD the first, AdamW the others) -> how it is named in a checkpoint."""


def weights_of(network: nn.Module) -> Weights:
    """A copy of the weights on the CPU."""
    return {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in network.state_dict().items()}


def save_state(
    directory: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
    kept: Weights | None = None,
    training: str = "",
) -> None:
    """Weights, momentum and progress as safetensors and JSON.

    Args:
        kept: what else the training has to find again.
        training: tells this training from all others.
    """
    tensors = {f"network.{k}": v for k, v in weights_of(network).items()}
    tensors |= kept or {}
    for name, parameter in network.named_parameters():
        for key, prefix in MOMENTS.items():
            if (value := optimizer.state.get(parameter, {}).get(key)) is not None:
                tensors[f"{prefix}.{name}"] = value.detach().cpu().contiguous()
    metadata = {"state": json.dumps(vars(state)), "training": training}
    metadata["sha256"] = _digest(tensors, metadata)
    safetensors.torch.save_file(tensors, directory / FILE, metadata=metadata)


class DamagedCheckpoint(Exception):
    """A file that is no checkpoint of this training, or not what was written."""


def _digest(tensors: Weights, metadata: dict[str, str]) -> str:
    sha256 = hashlib.sha256(f"{metadata['state']} {metadata['training']}".encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _read(place: Place, training: str) -> tuple[State, Weights]:
    """A saved state, and all its tensors. DamagedCheckpoint where it is not what `save_state` wrote for the same
    training."""
    with tempfile.TemporaryDirectory(dir=temporary()) as directory:
        local = Path(directory) / FILE
        local.write_bytes(place.read_bytes())
        try:
            with safetensors.safe_open(local, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                metadata = file.metadata() or {}
        except (safetensors.SafetensorError, OSError, UnicodeError) as error:
            raise DamagedCheckpoint(str(error)) from error
    if "sha256" in metadata:  # 0.1 wrote none
        if metadata.get("training") != training:
            raise DamagedCheckpoint("it is of another training")
        if metadata["sha256"] != _digest(tensors, metadata):
            raise DamagedCheckpoint("its digest differs")
    try:
        return State(**json.loads(metadata["state"])), tensors
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpoint(f"it has no state ({error})") from error


def under(prefix: str, tensors: Weights) -> Weights:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _persist(local: Path, where: Place, name: str) -> None:
    """Twin, for local mode, of what `ray.train.report` does with a checkpoint: store it whole, drop the one before."""
    with nullcontext() if where.local else progress.waiting():  # on a slow line minutes, in which nothing else moves
        (where / name / FILE).write_bytes((local / FILE).read_bytes())
    progress.saved()
    for old in stored(where):
        if old != where / name / FILE:
            old.delete()


def stored(where: Place) -> list[Place]:
    """All checkpoints of a training, whole or not, by Ray Train and by the driver itself; the newest first."""
    found = [Place(where.fs, f.path) for f in where.files(recursive=True)]
    return [place for place in reversed(found) if place.name == FILE]


def newest(where: Place, training: str) -> tuple[Place, State, Weights] | None:
    """The newest checkpoint that is whole, and what it holds. Ray Train copies files into their place: a kill leaves
    half of one, beside the one before it."""
    places = stored(where)
    for number, place in enumerate(places, start=1):
        try:
            return place, *_read(place, training)
        except DamagedCheckpoint as error:
            then = "the one before it is taken" if number < len(places) else "this training begins anew"
            logger.warning("%s: the checkpoint is damaged (%s); %s", place.path, error, then)
    return None


def tidy(where: Place, training: str) -> None:
    """Before a training goes on: of its checkpoints the `newest` alone is left, whoever stored it.

    Nor what Ray Train noted of those that it stored: cut off by a kill, or of checkpoints that the driver has replaced
    meanwhile, this note would end every worker group before it begins.
    """
    found = newest(where, training)
    for place in stored(where):
        if found is None or place != found[0]:
            place.delete()
    (where / SNAPSHOT).delete()


def restore(
    network: nn.Module, optimizer: torch.optim.Optimizer, where: Place, training: str, rank: int
) -> tuple[State, Weights] | None:
    """Put the state of the `newest` checkpoint back into `network` and `optimizer`; also returns all its tensors. None
    where the training begins. Rank 0 decides for all workers which one that is."""
    found = newest(where, training) if rank == 0 else None
    path = ray.train.collective.broadcast_from_rank_zero(None if found is None else found[0].path)
    if path is None:
        return None
    state, tensors = _read(Place(where.fs, path), training) if found is None else found[1:]
    network.load_state_dict(under("network.", tensors))
    for name, parameter in network.named_parameters():
        for key, prefix in MOMENTS.items():
            if (value := tensors.get(f"{prefix}.{name}")) is not None:
                # AdamW counts its steps on the CPU, wherever the parameters are.
                optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
    return state, tensors


def registered(state: State) -> bool:
    """Whether Ray Train has this state's checkpoint: given the same one again, it would delete it as the one before."""
    checkpoint = ray.train.get_checkpoint()
    return checkpoint is not None and Path(checkpoint.path).name == state.name


def save(
    rank: int,
    metrics: dict[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
    storage: Place | None,
    *,
    kept: Weights | None = None,
    training: str,
) -> None:
    """Report progress with its checkpoint (`save_state`). Rank 0 stores what all workers share; the others meet it at
    the barrier."""
    if rank > 0:
        ray.train.report({})
        return
    with tempfile.TemporaryDirectory(dir=temporary()) as directory:
        save_state(Path(directory), network, optimizer, state, kept, training)
        _report(metrics, Path(directory), state.name, storage)


def _report(metrics: dict[str, Any], directory: Path, name: str, storage: Place | None) -> None:
    """Ray Train stores the checkpoint, or in local mode this does."""
    if storage is not None:
        _persist(directory, storage, name)
        ray.train.report(metrics)
    else:
        checkpoint = ray.train.Checkpoint.from_directory(directory)
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
