"""What is told before a run begins."""

import pytest
import torch
from torch import nn

from prunefuse_ray import networks
from prunefuse_ray.cli import main
from prunefuse_ray.config.files import config_from_tree, to_tree
from prunefuse_ray.data.pool import PoolInfo
from prunefuse_ray.errors import ConfigError, LedgerError
from prunefuse_ray.run import loop, opening
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.opening import OF_RULES, _selector_macs, not_read
from prunefuse_ray.storage import Place
from tests.support.sources import pool_of

DENSE = {"selection": {"selector": "dense"}, "fusion": {"target": "scratch"}}
NUMBERS = {"source": "csv", "path": "a", "test_path": "b", "text_column": "text", "label_column": "y"}


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({}, []),
        ({"fusion": {"epsilon": 0.3}}, ["fusion.epsilon 0.3: not read by fusion.rule 'keep'"]),
        ({"fusion": {"rule": "scaled", "epsilon": 0.3}}, []),
        (
            {"fusion": {"rule": "scaled", "epsilon": 0.3, "shrink": 0.4}},
            ["fusion.shrink 0.4: not read by fusion.rule 'scaled'"],
        ),
        ({"fusion": {"target": "scratch", "shrink": 0.4}}, ["fusion.shrink 0.4: nothing is fused"]),
        ({"fusion": {"epsilon": 0.1, "shrink": 0.5}}, []),
        (DENSE, []),
        ({**DENSE, "pruning": {"ratio": 0.5, "steps": 1}}, []),
        (
            {**DENSE, "pruning": {"ratio": 0.8, "importance": "random", "steps": 5, "round_to": 8}},
            [
                "pruning.ratio 0.8, pruning.importance random, pruning.steps 5, pruning.round_to 8: "
                "selection.selector 'dense' prunes nothing"
            ],
        ),
        (
            {"selection": {"selector": "svp:resnet8"}, "pruning": {"ratio": 0.8}},
            ["pruning.ratio 0.8: selection.selector 'svp:resnet8' prunes nothing"],
        ),
        ({"pruning": {"ratio": 0.8, "steps": 5}}, []),
        ({"pruning": {"committee": 4}}, []),
        ({"selection": {"budgets": [10, 20, 30]}, "fusion": {"sync_every": 2}}, []),
        ({"coreset": {"share": 0.3}}, ["coreset.share 0.3: not read while coreset.by is none"]),
        (
            {"training": {"unlabeled": {"steps": 9}}},
            ["training.unlabeled.steps 9: not read while training.unlabeled.method is none"],
        ),
        (
            {"distillation": {"temperature": 2.0}},
            ["distillation.temperature 2.0: not read while distillation.weight is 0"],
        ),
        ({"coreset": {"by": "random", "share": 0.3}}, []),
        (
            {"task": "regression", "pool": NUMBERS, "distillation": {"weight": 0.5, "temperature": 8.0}},
            ["distillation.temperature 8.0: not read for task 'regression', whose outputs are numbers"],
        ),
        (
            {"selection": {"budgets": [10, 20, 30]}, "fusion": {"sync_every": 3}},
            ["fusion.sync_every 3: the run has 3 rounds, and no proxy follows the last one"],
        ),
        (
            {"selection": {"budgets": [10]}, "fusion": {"sync_every": 1}},
            ["fusion.sync_every 1: the run has 1 round, and no proxy follows the last one"],
        ),
    ],
    ids=str,
)
def test_what_has_no_effect_is_told(tree, told):
    assert not_read(config_from_tree(tree)) == told


def test_rules_of_other_packages_are_not_loaded_to_tell_what_is_not_read(monkeypatch):
    """One that cannot be loaded would end the runs of those who do not ask for it."""
    monkeypatch.setattr(networks.FUSION_RULES, "values", lambda: pytest.fail("all rules were loaded"))
    assert not_read(config_from_tree({})) == []
    monkeypatch.undo()
    own = [rule for rule in networks.FUSION_RULES.values() if type(rule).__module__.startswith("prunefuse_ray.")]
    assert set(OF_RULES) == {name for rule in own for name in rule.parameters}


INFO = PoolInfo(
    source="digits", path="", rows=1_000, bytes=1, files=1, listing_digest="", id_digest="", id_type="string",
    classes=["a", "b"], sample_size=(8, 8),
)  # fmt: skip


class Learned(nn.Module):
    """Its logits are multiplied by a number that it learns, and that begins at one."""

    def __init__(self, num_classes, input_shape):
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(input_shape[0], 8, 3), nn.Linear(8, num_classes)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * self.classifier(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"pruning": {"committee": 2}}, r"pruning\.committee: \S+ cannot hold one"),
        ({"selection": {"strategy": "k_centers"}}, r"last operation is an nn\.Linear"),
    ],
)
def test_what_only_training_brings_to_light_is_refused_before_a_label_is_paid_for(tree, said):
    config = config_from_tree({"network": {"architecture": f"{__name__}:Learned"}, **tree})
    with pytest.raises(networks.NetworkError, match=said):
        _selector_macs(config, INFO)


class Normalized(nn.Module):
    """Its first statistics are those of the data: the same for all members of a committee."""

    def __init__(self, num_classes, input_shape):
        super().__init__()
        channels = input_shape[0]
        self.norm, self.conv = nn.BatchNorm2d(channels, affine=False), nn.Conv2d(channels, 8, 3)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.classifier(self.conv(self.norm(x)).relu().mean((2, 3)))


def test_statistics_that_members_share_stay_shared():
    config = config_from_tree({"network": {"architecture": f"{__name__}:Normalized"}, "pruning": {"committee": 2}})
    assert _selector_macs(config, INFO) > 0


def test_a_table_that_is_written_while_a_run_begins_is_refused(local_ray, tmp_path, monkeypatch):
    lance = pytest.importorskip("lance")
    pool, really = pool_of("lance", tmp_path), opening.open_prepared

    def meanwhile(*given, **more):
        row = lance.dataset(pool.path).to_table(filter="id = 's0003'")
        lance.dataset(pool.path).delete("id = 's0003'")
        lance.write_dataset(row, pool.path, mode="append")
        return really(*given, **more)

    monkeypatch.setattr(opening, "open_prepared", meanwhile)
    tree = {"pool": pool.model_dump(exclude_unset=True), "run": {"directory": str(tmp_path / "runs"), "name": "r"},
            "network": {"architecture": "resnet8"}, "selection": {"budgets": [2, 4]}}  # fmt: skip
    with pytest.raises(LedgerError, match="has changed since the run began"):
        loop.run(config_from_tree(tree))


def test_what_the_initial_set_does_not_read_is_told_where_it_is_all():
    given = {"per_group": "predicted"}
    assert not_read(config_from_tree({"selection": {"budgets": [50, 100], **given}})) == []
    assert not_read(config_from_tree({"selection": {"budgets": [50], **given}})) == [
        "selection.per_group predicted: read by the rounds after the initial set, and selection.budgets has none"
    ]


@pytest.mark.parametrize(
    "tree",
    [
        {"training": {"smallest_crop": 0.3}},
        {"annotation": {"wait": 60}},
        {"prepared": {"format": "none", "max_gb": 5}},
    ],
)
def test_what_nothing_reads_is_said(tree):
    (told,) = not_read(config_from_tree(tree))
    assert told.startswith(next(iter(tree)))


def test_a_new_run_is_refused_that_would_scale_pixels_twice(local_ray, tmp_path):
    """One that has begun so may go on: it could change nothing."""
    given = {"pool": {"mean": [123.7], "std": [58.4]}, "run": {"directory": str(tmp_path), "name": "one"}}
    config = config_from_tree(given)
    with pytest.raises(ConfigError, match="divide both by 255"):
        loop.run(config)
    assert main(["plan", "--pool.mean", "[123.7]", "--pool.std", "[58.4]"]) == 2
    begun = Ledger(Place.at(str(tmp_path / "begun")))
    begun.create(to_tree(config), {})
    begun.check_config(config)
    assert begun.read_config().pool.mean == [123.7]
