"""Defaults that follow from what is written: nothing is refused that nobody wrote."""

import pytest

from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.config.schema import Config

TEXTS = {"source": "parquet", "path": "a", "test_path": "b", "classes": 2, "text_column": "text"}


def test_texts_have_their_own_network_and_recipe():
    config = config_from_tree({"pool": TEXTS, "training": {"lr": 0.2}})
    assert (config.network.architecture, config.pool.text_form) == ("textngrams", "ngrams")
    assert (config.training.augment, config.training.lr, config.training.weight_decay) == ([], 0.2, 2e-3)
    assert config.finetuning.augment == []
    assert Config(pool=config.pool).training == config.finetuning


def test_a_network_of_ones_own_reads_bytes_by_the_common_recipe():
    config = config_from_tree({"pool": TEXTS, "network": {"architecture": "my_module:network"}})
    assert config.pool.text_form == "bytes"
    assert config.training == Config().training.model_copy(update={"augment": []})


@pytest.mark.parametrize("epochs", [1, 2, "3"])
@pytest.mark.parametrize("pool", [{}, TEXTS])
def test_a_short_training_warms_up_shortly(epochs, pool):
    config = config_from_tree({"pool": pool, "training": {"epochs": epochs}})
    assert 0 < config.training.warmup_epochs < 1
    assert config.finetuning == config_from_tree({"pool": pool}).finetuning


def test_what_selects_without_pruning_has_a_target_from_scratch():
    assert config_from_tree({"selection": {"selector": "dense"}}).fusion.target == "scratch"
    assert Config().fusion.target == "fused"
