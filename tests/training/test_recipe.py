"""The training recipe against values worked out by hand."""

import itertools

import numpy as np
import pytest
import torch

from prunefuse_ray import networks
from prunefuse_ray.config.networks import Distillation
from prunefuse_ray.config.training import Recipe
from prunefuse_ray.training.recipe import (
    batches,
    distillation_weight,
    learning_rate,
    parameter_groups,
    samples_per_epoch,
)

SPEC = networks.NetworkSpec(architecture="tests.support.nets:tiny", classes=2, input_shape=(1, 8, 8))


def test_cosine_warms_up_and_ends_near_zero():
    recipe = Recipe(epochs=10, lr=0.4, warmup_epochs=2)
    rates = [learning_rate(recipe, s, 5) for s in range(50)]
    np.testing.assert_allclose(rates[:10], 0.4 * np.arange(1, 11) / 10)
    assert rates[10] == pytest.approx(0.4)
    assert rates[30] == pytest.approx(0.2)  # half way through the cosine
    assert 0 < rates[-1] < 0.4 * 0.01
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize("warmup", [0.1, 0.5, 1.5])
def test_a_warm_up_of_part_of_an_epoch_stays_below_the_peak(warmup):
    recipe = Recipe(epochs=10, lr=0.4, warmup_epochs=warmup)
    assert max(learning_rate(recipe, s, 3) for s in range(30)) == pytest.approx(0.4)


def test_the_step_schedule_of_the_paper():
    """1 + 90 + 45 + 45 epochs at .01, .1, .01, .001."""
    recipe = Recipe(epochs=181, lr=0.1, schedule="step", warmup_epochs=1, milestones=[91, 136])
    assert [learning_rate(recipe, e * 7, 7) for e in (0, 1, 90, 91, 135, 136, 180)] == pytest.approx(
        [0.01, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


@pytest.mark.parametrize(
    ("samples", "passes", "sizes"),
    [
        (20, 10, [20]),  # fewer than a batch: one batch of all, 30 epochs of 10 steps
        (50, 10, [32]),
        (100, 4, [32, 32, 32]),  # 30 x 3 x 3 steps would be 270
        (1000, 1, [32] * 31),  # enough as it is
    ],
)
def test_few_samples_are_passed_over_until_there_are_enough_steps(samples, passes, sizes):
    recipe = Recipe(epochs=30, batch_size=32, min_steps=300)
    epoch = batches(recipe, samples, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in epoch] == sizes * passes
    assert samples_per_epoch(recipe, samples) == sum(sizes) * passes
    for start in range(0, len(epoch), len(sizes)):  # no sample twice within a pass
        order = torch.cat(epoch[start : start + len(sizes)])
        assert len(order.unique()) == len(order) == sum(sizes)
    assert passes == 1 or not torch.equal(epoch[0], epoch[len(sizes)])
    assert len(batches(recipe.model_copy(update={"min_steps": 0}), samples, torch.Generator())) == len(sizes)


def test_the_distillation_weight_decays_on_request():
    assert [distillation_weight(Distillation(weight=0.6, decay="linear"), p) for p in (0, 0.5, 1)] == [0.6, 0.3, 0.0]
    assert distillation_weight(Distillation(weight=0.6, decay="none"), 0.9) == 0.6


def test_only_weights_decay():
    groups = parameter_groups(networks.build(SPEC, seed=0), 0.01)
    assert [p.ndim >= 2 for p in groups[0]["params"]] == [True] * 3
    assert all(p.ndim == 1 for p in groups[1]["params"])
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.01, 0.0)
