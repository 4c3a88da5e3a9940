"""The network of vectors: one hidden layer beside the vector itself."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

HIDDEN, LINEAR = 256, 128
SCALE = 4.0
"""Length of a standardized vector of any number of numbers, about: the same recipe suits all."""


class MLP(nn.Module):
    """A perceptron with one hidden layer, of which a part is linear: a probe of the vector, for which few labels
    suffice. Vectors are standardized by mean and deviation of the pool (`take`).

    (N, D, 1, 1), a vector as an image of one pixel -> logits (N, classes).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, *, classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        length = math.prod(input_shape)
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("deviation", torch.ones(length))
        self.hidden = nn.Linear(length, HIDDEN)
        self.linear = nn.Linear(length, LINEAR)
        self.classifier = nn.Linear(HIDDEN + LINEAR, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.flatten(1) - self.mean) / self.deviation
        x = (x * (SCALE / math.sqrt(x.shape[1]))).to(self.hidden.weight.dtype)
        return self.classifier(torch.cat([torch.relu(self.hidden(x)), self.linear(x)], 1))

    def take(self, statistics: Mapping[str, Tensor]) -> None:
        """What `statistics` found in a pool."""
        self.mean.copy_(statistics["mean"])
        self.deviation.copy_(statistics["deviation"])


def statistics(vectors: Tensor) -> dict[str, Tensor]:
    """Mean and standard deviation of every number over vectors (N, D, 1, 1); of one that is always the same, 1."""
    found = vectors.flatten(1).double()
    deviation = found.std(0, correction=0)
    return {"mean": found.mean(0).float(), "deviation": torch.where(deviation > 0, deviation, 1.0).float()}
