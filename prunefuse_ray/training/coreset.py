"""A core-set of the labeled samples, by how hard the network that selects found them while it was trained.

The target network is fine-tuned on these alone: a share of its multiply-accumulates (Selection via Proxy: Coleman, C.,
et al., ICLR 2020, arXiv 1906.11829). What a sample's hardness is, from the steps of a training, at no pass of its own:

- `forgetting`: how often it was classified wrongly after it had been classified rightly; one that never was right
  counts more than any other. Toneva, M., et al., "An Empirical Study of Example Forgetting during Deep Neural Network
  Learning", ICLR 2019 (arXiv 1812.05159).
- `el2n`: the length of the error vector (probabilities minus the one-hot label) early in training. Paul, M., Ganguli,
  S., Dziugaite, G., "Deep Learning on a Data Diet", NeurIPS 2021 (arXiv 2107.07075), which takes the mean over ten
  networks at one epoch; here it is the mean over the first EARLY of one network's epochs. There it stands for GraNd,
  the norm of the loss's gradient.

The hardest are kept. Below about a third of the samples that is worse than chance (Zheng, H., et al., ICLR 2023, arXiv
2210.15809).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from prunefuse_ray import config as cfg
from prunefuse_ray.acquisition import random_scores
from prunefuse_ray.acquisition.draws import CORE_SET
from prunefuse_ray.data.ids import ids_to_numpy

EARLY = 0.2
"""Share of the epochs, at least one."""


class Hardness:
    """What a training has found of each of its labeled samples so far, the same on all workers."""

    def __init__(self, samples: int, device: torch.device) -> None:
        def per_sample(kind: torch.dtype) -> Tensor:
            return torch.zeros(samples, dtype=kind, device=device)

        self.seen_N, self.right_N, self.ever_N = (per_sample(kind) for kind in (torch.int32, torch.bool, torch.bool))
        self.forgotten_N, self.early_N, self.errors_N = (
            per_sample(kind) for kind in (torch.int32, torch.int32, torch.float32)
        )

    @torch.no_grad()
    def see(self, rows: Tensor, outputs: Tensor, targets: Tensor, rank: int, world: int, *, early: bool) -> None:
        """Take in one step.

        Args:
            rows: places of the whole batch (B,); outputs (N, C) and targets (N,) are those of `rows[rank::world]`.
            early: the step is one of the first EARLY.
        """
        p_NC = outputs.softmax(1)
        error_N = (p_NC - torch.nn.functional.one_hot(targets, p_NC.shape[1])).norm(dim=1)
        found_2B = torch.zeros(2, len(rows), device=outputs.device)
        found_2B[0, rank::world], found_2B[1, rank::world] = (p_NC.argmax(1) == targets).float(), error_N
        if world > 1:
            torch.distributed.all_reduce(found_2B)
        rows, right_B = rows.to(outputs.device), found_2B[0] > 0
        self.forgotten_N[rows] += (self.right_N[rows] & ~right_B).int()
        self.seen_N[rows] += 1
        self.right_N[rows] = right_B
        self.ever_N[rows] |= right_B
        if early:
            self.early_N[rows] += 1
            self.errors_N[rows] += found_2B[1]

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {name: value.cpu() for name, value in vars(self).items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for name, value in tensors.items():
            getattr(self, name).copy_(value)


def hardness_table(ids: pa.Array, tensors: dict[str, Tensor]) -> pa.Table:
    """(id, forgetting, el2n), higher is harder, in the order of `ids`, from `Hardness.tensors`. A sample that no step
    saw (full batches leave some out) is as hard as the usual one."""
    seen_N, early_N = (tensors[name].numpy() for name in ("seen_N", "early_N"))
    never_N = ~tensors["ever_N"].numpy()
    forgetting_N = np.where(never_N, seen_N.max(initial=0) + 1, tensors["forgotten_N"].numpy()).astype(np.float32)
    el2n_N = tensors["errors_N"].numpy() / np.maximum(early_N, 1).astype(np.float32)
    for value_N, there_N in ((forgetting_N, seen_N > 0), (el2n_N, early_N > 0)):
        value_N[~there_N] = np.median(value_N[there_N]) if there_N.any() else 0.0
    return pa.table({"id": ids, "forgetting": forgetting_N, "el2n": el2n_N})


def coreset(labels: pa.Table, found: pa.Table | None, settings: cfg.Coreset, seed: int) -> pa.Table:
    """The labels (id, label) of a core-set: `settings.share` of them, the hardest; ties by chance.

    Args:
        found: `hardness_table` of these samples; None: `settings.by` is random.
    """
    ids = labels["id"].combine_chunks()
    drawn_N = random_scores(ids_to_numpy(ids), seed, CORE_SET)
    scores_N = np.zeros(len(ids), np.float32)
    if found is not None:
        place = pc.index_in(ids, value_set=found["id"].combine_chunks())
        scores_N = found[settings.by].take(place).to_numpy()
    kept = np.lexsort([drawn_N, -scores_N])[: settings.kept(len(ids))]
    return labels.take(pa.array(np.sort(kept)))
