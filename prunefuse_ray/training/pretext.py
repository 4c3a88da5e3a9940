"""What a network can learn from samples alone: the tasks of pre-training, each with its head, views and loss.

To add one: write a `Pretext` and name it in PRETEXTS and in `config.Pretraining.method`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.nn import functional

from prunefuse_ray.training.strong_view import DRAWS, strong_view


class Pretext(ABC):
    """A task that needs no label. Stateless."""

    passes: ClassVar[int]
    """Times that the network sees a sample in one step."""

    @abstractmethod
    def head(self, features: int) -> nn.Module:
        """What reads the network's features (N, D), and is thrown away afterwards."""

    @abstractmethod
    def views(self, weak: Sequence[Tensor], uniform_KN: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is shown of samples, uint8 (passes * N, H, W, C), and what it is to say of it, if anything.

        Args:
            weak: for each pass a weak view of the samples of its own, uint8 (N, H, W, C).
            uniform_KN: (draws, N) random numbers in [0, 1).
        """

    @property
    @abstractmethod
    def draws(self) -> int:
        """Random numbers of one sample."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, world: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of a worker's part of a batch, such that its mean over workers is that of the batch; and what
        else is told of it.

        Args:
            outputs: the head's, (passes * N, K).
            world: number of workers.
        """


class Rotation(Pretext):
    """Which of four ways a square sample is turned. Gidaris, Singh, Komodakis 2018 (arXiv 1803.07728)."""

    passes = 1
    draws = 1

    def head(self, features: int) -> nn.Module:
        return nn.Linear(features, 4)

    def views(self, weak: Sequence[Tensor], uniform_KN: Tensor) -> tuple[Tensor, Tensor]:
        (values_N,) = weak
        turns_N = (4 * uniform_KN[0].to(values_N.device)).long()
        turned = values_N.clone()
        for turn in range(1, 4):
            mine = turns_N == turn
            turned[mine] = torch.rot90(values_N[mine], turn, (1, 2))
        return turned, turns_N

    def loss(self, outputs: Tensor, targets: Tensor, world: int) -> tuple[Tensor, dict[str, Tensor]]:
        right = (outputs.argmax(1) == targets).float().mean()
        return functional.cross_entropy(outputs, targets), {"right": right}


class VICReg(Pretext):
    """Features of two views of a sample alike, of different samples spread, of different kinds unrelated. Bardes,
    Ponce, LeCun 2022 (arXiv 2105.04906), section 4.1, with its weights in their ratio and a projector for small
    networks."""

    passes = 2
    draws = 2 * DRAWS
    width = 256
    """Of the projector's layers."""
    invariance, variance, covariance = 1.0, 1.0, 0.04

    def head(self, features: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(features, self.width, bias=False),
            nn.BatchNorm1d(self.width),
            nn.ReLU(),
            nn.Linear(self.width, self.width),
        )

    def views(self, weak: Sequence[Tensor], uniform_KN: Tensor) -> tuple[Tensor, Tensor]:
        views = [strong_view(values_N, some) for values_N, some in zip(weak, uniform_KN.split(DRAWS), strict=True)]
        return torch.cat(views), torch.empty(0, dtype=torch.int64)

    def loss(self, outputs: Tensor, targets: Tensor, world: int) -> tuple[Tensor, dict[str, Tensor]]:
        first_NK, second_NK = outputs.chunk(2)
        if world > 1:  # variances are those of the whole batch; the gather hands gradients back to where they belong
            first_NK, second_NK = (
                torch.cat(torch.distributed.nn.functional.all_gather(each.contiguous()))
                for each in (first_NK, second_NK)
            )
        alike = functional.mse_loss(first_NK, second_NK)
        spread = torch.stack(
            [functional.relu(1 - (each.var(0) + 1e-4).sqrt()).mean() for each in (first_NK, second_NK)]
        )
        related = torch.stack([_off_diagonal(each) for each in (first_NK, second_NK)])
        loss = self.invariance * alike + self.variance * spread.mean() + self.covariance * related.sum()
        return loss, {"invariance": alike, "variance": spread.mean(), "covariance": related.sum()}


def _off_diagonal(features_NK: Tensor) -> Tensor:
    """The mean square, over features, of what each has in common with the others."""
    covariance_KK = features_NK.T.cov()
    return (covariance_KK.square().sum() - covariance_KK.diagonal().square().sum()) / len(covariance_KK)


PRETEXTS: dict[str, Pretext] = {"rotation": Rotation(), "vicreg": VICReg()}
