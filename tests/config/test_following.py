"""Defaults that follow from other fields: one change is enough, it is told, and what was given stays."""

import pytest

from prunefuse_ray import config as cfg
from prunefuse_ray.commands.options import parse_run
from prunefuse_ray.config import following
from prunefuse_ray.config.files import config_from_tree, flatten, overlay, to_tree
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.sweep.config import sweep_from_tree, trials

TEXTS = {"source": "parquet", "path": "p", "test_path": "t", "text_column": "text"}
GROUPS = {"source": "parquet", "path": "p", "test_path": "t", "group_column": "site"}


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    monkeypatch.setattr(following, "_told", set())


@pytest.mark.parametrize(
    ("tree", "field", "value"),
    [
        ({"selection": {"selector": "dense"}}, "fusion.target", "scratch"),
        ({"selection": {"selector": "svp:resnet8"}}, "fusion.target", "scratch"),
        ({"selection": {"strategy": "bald"}}, "pruning.committee", 2),
        ({"selection": {"strategy": "bald"}, "pruning": {"ratio": 0.75}}, "pruning.committee", 4),
        ({"pool": GROUPS}, "selection.per_group", "group"),
        ({"pool": TEXTS}, "network.architecture", "textngrams"),
        ({"pool": TEXTS}, "pool.text_form", "ngrams"),
        ({"pool": TEXTS, "network": {"architecture": "mine:net"}}, "training.augment", []),
        ({"annotation": {"url": "http://localhost:8080"}}, "annotation.kind", "label_studio"),
        ({"training": {"patience": 3}}, "pool.validation_share", 0.1),
        ({"training": {"epochs": 3}}, "training.warmup_epochs", 1.0),
        ({"finetuning": {"epochs": 1}}, "finetuning.warmup_epochs", 0.33),
        ({"training": {"optimizer": "adamw"}}, "training.lr", 1e-3),
    ],
)
def test_one_change_is_enough_and_what_follows_is_told_once(tree, field, value, caplog):
    config = config_from_tree(tree)
    assert flatten(to_tree(config))[field] == value
    assert f"{field} is {value}: " in caplog.text
    caplog.clear()
    config_from_tree(tree)
    assert caplog.text == ""
    assert config_from_tree(to_tree(config)) == config, "what a run recorded follows from nothing"


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"selection": {"selector": "dense"}, "fusion": {"target": "fused"}}, "set fusion.target to scratch"),
        ({"selection": {"selector": "dense", "strategy": "bald"}}, "or selection.dropout_masks to 10"),
        ({"selection": {"strategy": "bald"}, "pruning": {"committee": 1}}, "set pruning.committee to 2 or more"),
        ({"selection": {"strategy": "bald"}, "pruning": {"ratio": 0.7}}, "ratio 0.7 does not make 2"),
        ({"pool": GROUPS, "selection": {"per_group": None}}, "groups need both"),
        ({"training": {"epochs": 3, "warmup_epochs": 3}}, "warmup_epochs 3"),
        ({"fusion": 3, "selection": {"selector": "dense"}}, "fusion: 3 is not valid"),
        ({"selection": {"strategy": ["bald"]}}, "selection.strategy"),
        ({"training": {"epochs": "x"}}, "training.epochs"),
    ],
)
def test_what_was_given_stays_and_is_refused_where_it_contradicts(tree, said):
    with pytest.raises(ConfigError) as caught:
        config_from_tree(tree)
    assert said in str(caught.value)


def test_nothing_follows_in_a_configuration_that_needs_nothing(caplog):
    assert to_tree(config_from_tree({})) == to_tree(cfg.Config())
    config_from_tree({"selection": {"selector": "dense"}, "fusion": {"target": "scratch"}})
    assert caplog.text == ""


def test_the_command_line_and_python_follow_as_files_do():
    assert parse_run(["--selection.selector", "dense"]).fusion.target == "scratch"
    assert parse_run(["--training.epochs", "2"]).training.warmup_epochs == 0.67
    built = cfg.Config(selection=cfg.Selection(selector="dense"), fusion=cfg.Fusion(rule="scaled"))
    assert (built.fusion.target, built.fusion.rule) == ("scratch", "scaled")


def test_texts_have_their_own_network_and_recipe():
    config = config_from_tree({"pool": TEXTS, "training": {"lr": 0.2}})
    assert (config.network.architecture, config.pool.text_form) == ("textngrams", "ngrams")
    assert (config.training.augment, config.training.lr, config.training.weight_decay) == ([], 0.2, 2e-3)
    assert config.finetuning.augment == []
    assert cfg.Config(pool=config.pool).training == config.finetuning


def test_an_encoder_brings_its_tokenizer_its_weights_and_the_recipe_of_fine_tuning():
    config = config_from_tree({"pool": TEXTS, "network": {"architecture": "transformers:some/folder"}})
    assert (config.pool.text_form, config.pool.tokenizer, config.pool.text_length) == ("tokens", "some/folder", 256)
    assert config.network.weights == "some/folder"
    assert (config.training.optimizer, config.training.lr) == ("adamw", 1e-4)
    fresh = config_from_tree({"pool": TEXTS, "network": {"architecture": "transformers:some/folder", "weights": None}})
    assert fresh.network.weights is None


def test_a_network_of_ones_own_reads_bytes_by_the_common_recipe():
    config = config_from_tree({"pool": TEXTS, "network": {"architecture": "my_module:network"}})
    assert config.pool.text_form == "bytes"
    assert config.training == cfg.Config().training.model_copy(update={"augment": []})


def test_a_short_fine_tuning_of_an_encoder_keeps_its_warm_up():
    tree = {"pool": TEXTS, "network": {"architecture": "transformers:some/folder"}, "training": {"epochs": 3}}
    assert config_from_tree(tree).training.warmup_epochs == 0.5


def test_an_optimizer_brings_its_rate_to_arms_and_spaces():
    """Over a completed base, whose rate stands there."""
    arms = {"sgd": {}, "adamw": {"training": {"optimizer": "adamw"}}}
    assert [t.config.training.lr for t in trials(sweep_from_tree({"arms": arms, "seeds": [0]}))] == [0.1, 1e-3]
    space = {"training.optimizer": {"grid": ["adamw", "sgd"]}}
    base = {"training": {"optimizer": "adamw"}}
    found = trials(sweep_from_tree({"base": base, "space": space, "seeds": [0]}))
    assert [t.config.training.lr for t in found] == [1e-3, 0.1]


def test_an_optimizer_that_is_none_is_one_message_in_arms_too():
    with pytest.raises(ConfigError, match="optimizer"):
        trials(sweep_from_tree({"arms": {"a": {"training": {"optimizer": ["sgd", "adamw"]}}}}))
    assert overlay({"training": {"optimizer": "adam"}}, {"training": {"optimizer": "adamw"}})["training"] == {
        "optimizer": "adamw"
    }
