"""The method as a list of steps."""

import pytest

from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.method import steps


def names(config):
    return [f"{s.round}:{s.phase}" for s in steps.steps(config)]


def test_the_steps_are_the_method():
    config = config_from_tree({"selection": {"budgets": [10, 20]}})
    assert names(config) == [
        "-1:init", "0:select", "0:label", "0:train", "0:score",
        "1:select", "1:label", "1:train", "1:fuse", "1:finetune", "-1:baseline", "-1:report",
    ]  # fmt: skip
    bare = {"selection": {"budgets": [10, 20]}, "report": {"baseline": False}}
    assert names(config_from_tree(bare)) == [name for name in names(config) if name != "-1:baseline"]


def test_texts_are_learned_from_first_unless_the_network_is_trained():
    texts = {"pool": {"source": "csv", "path": "a", "test_path": "b", "text_column": "text"}}
    assert names(config_from_tree(texts))[:2] == ["-1:learn", "-1:init"]
    assert names(config_from_tree(texts | {"network": {"weights": "w"}}))[0] == "-1:init"


def test_random_selection_scores_nothing():
    config = config_from_tree({"selection": {"budgets": [10, 20, 30], "strategy": "random"}})
    assert not any(n.endswith("score") for n in names(config))


def test_the_target_is_made_after_every_round_on_request():
    config = config_from_tree({"selection": {"budgets": [10, 20, 30]}, "fusion": {"evaluate": "every"}})
    assert [n for n in names(config) if n.endswith("finetune")] == ["0:finetune", "1:finetune", "2:finetune"]


def test_a_sync_fuses_fine_tunes_and_prunes_every_so_many_rounds():
    config = config_from_tree({"selection": {"budgets": [1, 2, 3, 4, 5]}, "fusion": {"sync_every": 2}})
    assert [n for n in names(config) if n.split(":")[1] in ("fuse", "finetune", "sync")] == [
        "1:fuse", "1:finetune", "1:sync", "3:fuse", "3:finetune", "3:sync", "4:fuse", "4:finetune",
    ]  # fmt: skip
    origins = [str(steps.base(config, r)) for r in range(5)]
    assert origins == ["init", "init", "round 1, sync", "round 1, sync", "round 3, sync"]


def test_budgets_count_the_initial_set():
    config = config_from_tree({"selection": {"budgets": [10, 18, 30]}})
    assert [steps.to_select(config, r, labels) for r, labels in ((0, 0), (1, 10), (2, 18))] == [10, 8, 12]
    assert steps.to_select(config, 2, 11) == 19, "what an earlier round left open is made up"


def test_people_are_asked_and_a_growing_pool_is_looked_at_before_it_is_scored():
    config = config_from_tree(
        {
            "pool": {"source": "parquet", "path": "a", "test_path": "b", "classes": 2, "allow_growth": True},
            "annotation": {"kind": "files"},
            "selection": {"budgets": [10, 20]},
        }
    )
    assert names(config)[1:8] == [
        "0:select", "0:request", "0:label", "0:train", "0:grow", "0:score", "1:select",
    ]  # fmt: skip
    assert "1:grow" not in names(config)
    steps.check_budget(config, 10)
    with pytest.raises(ConfigError, match=r"the first budget is 10 labels, but the pool has 9"):
        steps.check_budget(config, 9)


def test_seeds_differ_between_trainings_and_runs():
    seeds = {
        steps.round_seed(config_from_tree({"run": {"seed": s}}), r, p)
        for s in range(3) for r in range(9) for p in ("train", "finetune")
    }  # fmt: skip
    assert len(seeds) == 3 * 9 * 2


def test_a_budget_beyond_the_pool_is_refused():
    config = config_from_tree({"selection": {"budgets": [10, 20]}})
    steps.check_budget(config, 20)
    with pytest.raises(ConfigError, match=r"selection\.budgets: the last budget is 20 labels, but the pool has 19"):
        steps.check_budget(config, 19)
