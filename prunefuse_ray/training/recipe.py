"""How a network is trained, as pure functions: the learning rate of a step, the loss, what decays."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from prunefuse_ray import config as cfg


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Full batches only; a set smaller than a batch is one batch."""
    return max(1, samples // batch_size)


def passes_per_epoch(recipe: cfg.Recipe, samples: int) -> int:
    """How often an epoch passes over so many labeled samples, so that the training has `min_steps` steps."""
    return max(1, math.ceil(recipe.min_steps / (recipe.epochs * steps_per_epoch(samples, recipe.batch_size))))


def lengthened(recipe: cfg.Recipe, macs: int) -> cfg.Recipe:
    """The recipe with as many steps as its unlabeled samples are to have.

    Args:
        macs: of the network per sample.
    """
    unlabeled = recipe.unlabeled
    if not unlabeled.used:
        return recipe
    steps = unlabeled.steps
    if unlabeled.macs is not None:
        steps = max(1, int(unlabeled.macs / (macs * passes_of_step(recipe, recipe.batch_size))))
    return recipe.model_copy(update={"min_steps": steps})


def passes_of_step(recipe: cfg.Recipe, labeled: int) -> int:
    """Forward passes of a step on so many labeled samples, a backward pass as two: three for each of them; one for the
    guess on each unlabeled one, and three to learn from it where it is sure, which here all are. Of unlabeled samples a
    step has `ratio` times a whole batch, also where there are fewer labels than that."""
    unlabeled = recipe.batch_size * recipe.unlabeled.ratio if recipe.unlabeled.used else 0
    return 3 * labeled + 4 * unlabeled


def samples_per_epoch(recipe: cfg.Recipe, samples: int) -> int:
    """Samples that an epoch trains on, repetitions counted."""
    a_pass = min(samples, steps_per_epoch(samples, recipe.batch_size) * recipe.batch_size)
    return a_pass * passes_per_epoch(recipe, samples)


def batches(recipe: cfg.Recipe, samples: int, generator: torch.Generator) -> list[Tensor]:
    """The batches of an epoch, as numbers of samples (B,): every pass in an order of its own, full batches only."""
    size, steps = recipe.batch_size, steps_per_epoch(samples, recipe.batch_size)
    passes = [torch.randperm(samples, generator=generator) for _ in range(passes_per_epoch(recipe, samples))]
    return [order[i * size : (i + 1) * size] for order in passes for i in range(steps)]


def learning_rate(recipe: cfg.Recipe, step: int, steps_an_epoch: float) -> float:
    """The learning rate of optimizer step `step` (0-based)."""
    epoch = step / steps_an_epoch
    if recipe.schedule == "step":
        drops = 1 if epoch < recipe.warmup_epochs else sum(epoch >= m for m in recipe.milestones)
        return recipe.lr * recipe.step_factor**drops
    if epoch < recipe.warmup_epochs:
        return recipe.lr * min(1.0, (step + 1) / (recipe.warmup_epochs * steps_an_epoch))
    done = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    return recipe.lr * 0.5 * (1.0 + math.cos(math.pi * done))


def distillation_weight(distillation: cfg.Distillation, progress: float) -> float:
    """The weight of the distillation term after a share `progress` of the steps."""
    return distillation.weight * (1.0 - progress if distillation.decay == "linear" else 1.0)


def optimizer(recipe: cfg.Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """The recipe's, over the network's parameters."""
    groups = parameter_groups(network, recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))
    return torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov and recipe.momentum > 0
    )


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights with decay; biases and normalization parameters (fewer than two dimensions) without."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
