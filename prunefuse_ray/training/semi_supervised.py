"""Learning from samples without labels, beside labeled ones: weak views, guesses, strong views.

FixMatch (Sohn et al. 2020, arXiv 2001.07685) with distribution alignment (Berthelot et al. 2020, arXiv 1911.09785).
Only samples of whose label the network is sure get a strong view and a backward pass: for the others both would be
multiplied by zero. Guesses are made with the running statistics of batch norms and without dropout, so that a guess
does not depend on what shares its batch, nor on the number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunefuse_ray import config as cfg
from prunefuse_ray.data.sample_format import Form
from prunefuse_ray.data.unlabeled import PoolBatches
from prunefuse_ray.tasks import Task
from prunefuse_ray.training.augmentation import draw, network_inputs, weak_view
from prunefuse_ray.training.strong_view import DRAWS, strong_view
from prunefuse_ray.training.worker_group import over_workers

Shares = npt.NDArray[np.float64]
MOMENTUM = 0.99
"""Of the mean guess: about that of the last hundred batches."""
SALT = 2
"""Apart from the draws for labeled samples and for pre-training."""


def aligned(p_NC: Shares, mean_C: Shares, prior_C: Shares) -> Shares:
    """Guesses brought from the shares that classes have among them to those that they should have."""
    scaled_NC = p_NC * (prior_C / np.maximum(mean_C, 1e-6))
    return scaled_NC / scaled_NC.sum(1, keepdims=True)


def step_generator(seed: int, salt: int, step: int) -> torch.Generator:
    """The random numbers of one step, for all workers: those of any other step are of no account."""
    state = int(np.random.SeedSequence([seed, salt, step]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state % 2**63)


@dataclass(frozen=True, kw_only=True)
class Guessed:
    """What a worker's part of a step's unlabeled samples gives to learn from."""

    values_N: Tensor
    """Strong views, uint8, of the samples of whose label the network is sure."""
    labels_N: Tensor
    mean_C: list[float]
    """The mean guess so far, of all workers, before it is aligned."""
    sure: int
    """Samples of the step of whose label the network is sure, of all workers."""


class Guesser:
    """Makes the unlabeled part of each step's batch. All members of a committee learn what their consensus is sure
    of."""

    def __init__(
        self, recipe: cfg.Recipe, form: Form, pool: PoolBatches, prior_C: Shares, seed: int, rank: int, world: int
    ) -> None:
        """
        Args:
            prior_C: shares of the classes that guesses are brought to.
        """
        self.recipe, self.form, self.pool, self.prior_C = recipe, form, pool, prior_C
        self.seed, self.rank, self.world = seed, rank, world

    def guess(self, network: nn.Module, task: Task, step: int, mean_C: list[float], arithmetic: Any) -> Guessed:
        """The unlabeled samples of a step.

        Args:
            network: as the workers share it; it is left in training mode.
            mean_C: the mean guess of the steps before; empty before the first, when it is the prior: the first guesses
                are those of batch norms and a classifier that know nothing yet (as in ReMixMatch, arXiv 1911.09785).
            arithmetic: context of the forward pass.
        """
        generator = step_generator(self.seed, SALT, step)
        weak, again = draw(self.pool.batch, generator), draw(self.pool.batch, generator)
        uniform_KB = torch.rand(DRAWS, self.pool.batch, generator=generator)
        own = slice(self.rank, None, self.world)
        values_N = self.pool.values(self.pool.places(step)[own]).to(next(network.parameters()).device)
        p_NC = self._probabilities(network, task, weak_view(values_N, weak[own], self.recipe, self.form), arithmetic)
        batch_C = over_workers(p_NC.sum(0), self.world) / self.pool.batch
        mean = MOMENTUM * np.array(mean_C or self.prior_C) + (1 - MOMENTUM) * batch_C
        guess_N, sure_N = task.guesses(aligned(p_NC, mean, self.prior_C) if self.recipe.unlabeled.alignment else p_NC)
        sure = torch.from_numpy(sure_N >= self.recipe.unlabeled.threshold).nonzero().flatten()
        views_N = weak_view(values_N[sure], again[own][sure], self.recipe, self.form)
        if len(sure):
            views_N = strong_view(views_N, uniform_KB[:, own][:, sure])
        (everywhere,) = over_workers(np.array([len(sure)], np.float64), self.world)
        return Guessed(
            values_N=views_N, labels_N=torch.from_numpy(guess_N)[sure], mean_C=mean.tolist(), sure=int(everywhere)
        )

    @torch.no_grad()
    def _probabilities(self, network: nn.Module, task: Task, values_N: Tensor, arithmetic: Any) -> Shares:
        network.eval()
        with arithmetic:
            outputs = task.consensus(network(network_inputs(self.form, values_N)))
        network.train()
        return task.probabilities(outputs.float().cpu().numpy())
