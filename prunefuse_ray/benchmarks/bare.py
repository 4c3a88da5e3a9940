"""The work of a run's phases as one would write it without a framework: loops over tensors, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from prunefuse_ray import networks
from prunefuse_ray.config.networks import Distillation
from prunefuse_ray.config.training import Recipe
from prunefuse_ray.tasks.classification import CLASSIFICATION
from prunefuse_ray.training.augmentation import augment, draw
from prunefuse_ray.training.recipe import batches, distillation_weight, learning_rate, parameter_groups

if TYPE_CHECKING:  # these need Ray, and a training does not
    from prunefuse_ray.benchmarks.paper import Data
    from prunefuse_ray.data.labeled_set import Samples
    from prunefuse_ray.data.pool import Source
    from prunefuse_ray.data.sample_format import Form

BATCH = 64


def train(
    network: nn.Module,
    samples: Samples | Data,
    test: Samples | Data | None,
    form: Form,
    recipe: Recipe,
    teacher: nn.Module | None = None,
    distillation: Distillation | None = None,
) -> float:
    """Train `network` in place with the recipe's arithmetic, where the samples lie; returns the test accuracy (0
    without a test set)."""
    device = samples.values_N.device
    optimizer = torch.optim.SGD(
        parameter_groups(network, recipe.weight_decay), lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov
    )
    bf16 = recipe.precision != "fp32" and networks.fast_bf16(device)
    generator = torch.Generator().manual_seed(0)
    networks.channels_last(network).train()
    for epoch in range(recipe.epochs):
        order = batches(recipe, len(samples), generator)
        steps = len(order)
        for i, rows in enumerate(order):
            x = form.inputs(augment(samples.values_N[rows], draw(len(rows), generator), recipe.augment))
            x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, epoch * steps + i, steps)
            weight = distillation_weight(distillation, (epoch + i / steps) / recipe.epochs) if distillation else 0.0
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = network(x)
                with torch.no_grad():
                    taught = teacher(x).float() if teacher is not None and weight > 0 else None
            temperature = distillation.temperature if distillation else 1.0
            loss = CLASSIFICATION.loss_sum(
                logits.float(),
                samples.labels_N[rows],
                smoothing=recipe.label_smoothing,
                teacher=taught,
                weight=weight,
                temperature=temperature,
            )
            (loss / len(rows)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return evaluate(network, test, form, bf16) if test is not None else 0.0


@torch.inference_mode()
def evaluate(network: nn.Module, test: Samples | Data, form: Form, bf16: bool) -> float:
    """Accuracy on the test set."""
    model, right = networks.inference_form(network), 0
    for start in range(0, len(test), BATCH):
        rows = slice(start, start + BATCH)
        with torch.autocast(test.values_N.device.type, torch.bfloat16, enabled=bf16):
            right += int((model(form.inputs(test.values_N[rows])).argmax(1) == test.labels_N[rows]).sum())
    return right / len(test)


@torch.inference_mode()
def score(network: nn.Module, pool: Source, form: Form, strategy: str, file: str) -> None:
    """Read, decode and score a pool; one file of (id, score)."""
    from prunefuse_ray.data.reading import canonical
    from prunefuse_ray.data.sample_format import decode_column

    model = networks.inference_form(network)
    ids, scores = [], []
    for rows in canonical(pool):
        decoded_N, _ = decode_column(rows["sample"], form)
        for start in range(0, len(decoded_N), 64):
            logits = model(form.inputs(torch.from_numpy(decoded_N[start : start + 64])))
            score = CLASSIFICATION.strategies[strategy].score
            assert score is not None
            scores.append(score(CLASSIFICATION.probabilities(logits.float().numpy())))
        ids.append(rows["id"].combine_chunks())
    pq.write_table(pa.table({"id": pa.concat_arrays(ids), "score": np.concatenate(scores)}), file)
