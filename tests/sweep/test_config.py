"""Sweep files: what they mean, and what is refused before anything starts."""

import math

import numpy as np
import pytest
import yaml

from prunefuse_ray.commands.options import parse_sweep
from prunefuse_ray.config.files import PRESETS, to_tree
from prunefuse_ray.errors import ConfigError, LedgerError
from prunefuse_ray.run.opening import not_read
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep.config import Axis, load_sweep, stops_early, sweep_from_tree, sweep_path, trials
from prunefuse_ray.sweep.results import read_sweep

SWEEPS = sorted(p for p in PRESETS.glob("*.yaml") if "base" in yaml.safe_load(p.read_text()))


FILES = {"source": "parquet", "path": "p", "test_path": "t", "classes": 2}


SCRATCH = {"fusion": {"target": "scratch"}}


def written(tmp_path, tree):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def names(sweep):
    return [t.name for t in trials(sweep)]


def test_a_grid_is_the_product_of_its_axes_and_seeds():
    space = {"pruning.ratio": {"grid": [0.5, 0.8]}, "selection.strategy": {"grid": ["margin", "entropy"]}}
    found = trials(sweep_from_tree({"space": space, "seeds": [0, 7]}))
    got = [(t.config.pruning.ratio, t.config.selection.strategy, t.config.run.seed) for t in found]
    assert got == [(p, s, seed) for p in (0.5, 0.8) for s in ("margin", "entropy") for seed in (0, 7)]
    assert found[1].name == "ratio-0.5_strategy-margin_seed-7"
    assert found[0].point == found[1].point == "ratio-0.5_strategy-margin"
    assert found[0].config.run.directory == "runs/digits/trials"


def test_values_are_those_of_the_configuration():
    """YAML reads 1e-3 as text. The name stays as it was written: sweeps that were begun find their trials by it."""
    found = trials(sweep_from_tree({"space": {"training.lr": {"grid": ["1e-3", 0.01]}}, "seeds": [0]}))
    assert [t.values for t in found] == [{"training.lr": 0.001}, {"training.lr": 0.01}]
    assert found[0].name == "lr-1e-3_seed-0"


def test_arms_are_combinations_and_not_products():
    arms = {
        "fuse": {"pruning": {"ratio": 0.8}},
        "dense": {"selection": {"selector": "dense"}, "fusion": {"target": "scratch"}},
    }
    found = trials(sweep_from_tree({"arms": arms, "seeds": [0]}))
    assert [(t.name, t.config.selection.selector, t.config.pruning.ratio) for t in found] == [
        ("fuse_seed-0", "proxy", 0.8),
        ("dense_seed-0", "dense", 0.5),
    ]


def test_the_size_of_a_committee_settles_its_ratio(tmp_path):
    """The base spells its ratio out, and nobody can take that back."""
    arms = {"one": {"pruning": {"ratio": 0.6}}, "four": {"pruning": {"committee": 4}}}
    found = trials(sweep_from_tree({"base": {"pruning": {"ratio": 0.8}}, "arms": arms, "seeds": [0]}))
    assert [t.config.pruning.ratio for t in found] == [0.6, 0.75]
    found = trials(sweep_from_tree({"space": {"pruning.committee": {"grid": [1, 2, 4]}}, "seeds": [0]}))
    assert [t.config.pruning.ratio for t in found] == [0.5, 0.5, 0.75]
    found = trials(sweep_from_tree({"base": {"pruning": {"ratio": 0.8}}, "arms": {"a": {"pruning": {"committee": 1}}}}))
    assert found[0].config.pruning.ratio == 0.8, "one proxy has the ratio that it is given"
    file = written(tmp_path, {"base": {"preset": "cifar10_small", "pruning": {"committee": 4}}})
    assert load_sweep(file, {}, {}).base.pruning.ratio == 0.75
    assert load_sweep(file, {"pruning": {"committee": "8"}}, {}).base.pruning.ratio == 0.875
    with pytest.raises(ConfigError, match=r"ratio 0\.6 does not make 4 disjoint proxies: leave it out"):
        trials(sweep_from_tree({"arms": {"a": arms["one"]}, "space": {"pruning.committee": {"grid": [4]}}}))


def test_an_encoder_brings_its_own_weights_and_tokenizer():
    """Those of the base's encoder would fit one of the same size, and nobody would notice."""

    def found(base, *arms):
        tree = {"pool": {**FILES, "text_column": "text"}, **base}
        sweep = sweep_from_tree({"base": tree, "arms": dict(zip("ab", arms, strict=True)), "seeds": [0]})
        return [(t.config.network.weights, t.config.pool.tokenizer) for t in trials(sweep)]

    one, other = ({"network": {"architecture": f"transformers:{name}"}} for name in ("one", "other"))
    assert found(one, {}, other) == [("one", "one"), ("other", "other")]
    fresh = {"network": {**one["network"], "weights": None}}
    assert found(fresh, {}, other) == [(None, "one"), (None, "other")], "null: random weights"
    named = {"network": {**other["network"], "weights": "mine"}, "pool": {"tokenizer": "mine"}}
    assert found(one, {}, named) == [("one", "one"), ("mine", "mine")]
    read = {**other, "pool": {"text_form": "tokens", "tokenizer": "other"}}
    assert found({}, {}, read) == [(None, None), ("other", "other")]


def test_arms_may_run_on_different_resources():
    arms = {"a": {"workers": {"cpus": 1}}, "b": {"workers": {"cpus": 2}, **SCRATCH}}
    assert [t.config.workers.cpus for t in trials(sweep_from_tree({"arms": arms, "seeds": [0]}))] == [1, 2]


def test_the_number_of_workers_can_be_compared():
    """Unlike the CPUs of each it decides what comes out."""
    arms = {"a": {}, "b": {"workers": {"count": [2, 2]}}}
    assert [t.config.workers.count for t in trials(sweep_from_tree({"arms": arms, "seeds": [0]}))] == [(1, 1), (2, 2)]


def test_draws_are_the_same_every_time_and_inside_their_bounds():
    space = {
        "training.lr": {"loguniform": [0.001, 0.1]},
        "distillation.weight": {"uniform": [0.1, 0.9]},
        "training.batch_size": {"choice": [16, 32]},
    }
    sweep = sweep_from_tree({"space": space, "seeds": [0], "samples": 200})
    first = trials(sweep)
    assert first[:20] == trials(sweep.model_copy(update={"samples": 20}))
    rates = [t.config.training.lr for t in first]
    assert len(set(rates)) > 190
    assert all(0.001 <= r <= 0.1 for r in rates)
    below = sum(r < 0.01 for r in rates) / 200  # half of a log-uniform draw lies below the geometric mean
    assert math.isclose(below, 0.5, abs_tol=0.12)
    assert {t.config.training.batch_size for t in first} == {16, 32}
    assert all(0.1 <= t.config.distillation.weight <= 0.9 for t in first)


def test_tunes_other_domains_are_drawn_from_too():
    space = {
        "training.epochs": {"randint": [2, 5]},
        "training.batch_size": {"lograndint": [4, 64]},
        "distillation.weight": {"quniform": [0.1, 0.9, 0.2]},
    }
    base = {"training": {"warmup_epochs": 0}}
    found = trials(sweep_from_tree({"base": base, "space": space, "seeds": [0], "samples": 200}))
    assert {t.config.training.epochs for t in found} == {2, 3, 4}, "as Tune's, without the upper one"
    sizes = [t.config.training.batch_size for t in found]
    assert min(sizes) >= 4
    assert max(sizes) <= 63
    assert math.isclose(sum(n < 16 for n in sizes) / 200, 0.5, abs_tol=0.12)
    assert {t.config.distillation.weight for t in found} <= {0.2, 0.4, 0.6, 0.8}
    with pytest.raises(ConfigError, match=r"randint \[5, 5\] is empty"):
        sweep_from_tree({"space": {"training.epochs": {"randint": [5, 5]}}})


EVERY = {"fusion": {"evaluate": "every"}}
DRAWN = {"training.lr": {"loguniform": [0.01, 0.1]}}
OTHER_BUDGETS = {"arms": {"few": {"selection": {"budgets": [50, 100, 150]}}, "many": {}}}


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        ({"base": EVERY}, None),
        ({"metric": "proxy"}, None),
        # The proxies' accuracy in its place would stop the small ones, whose targets may be as good.
        ({}, "asha compares fused networks, which trials with fusion.evaluate 'last' have after their last round"),
        ({"base": EVERY, "arms": {"a": {}, "b": {"fusion": {"evaluate": "last"}}}}, "set it to every, or metric to"),
        ({"base": EVERY, **OTHER_BUDGETS}, "their selection.budgets differ: give all trials the same"),
        ({"base": {**EVERY, "selection": {"budgets": [50, 100]}}}, "nothing is left to stop; give 3 or more"),
    ],
)
def test_trials_are_stopped_where_they_can_be_compared_at_equal_labels(tree, why):
    auto = sweep_from_tree({"space": DRAWN, "samples": 2, "seeds": [0], **tree})
    assert stops_early(auto, trials(auto)) is (why is None)
    for name in ("asha", "median"):
        asked = auto.model_copy(update={"scheduler": name})
        if why is None:
            assert stops_early(asked, trials(asked))
            continue
        said = rf"^scheduler: {name} .*{why.removeprefix('asha ')}.*, or set scheduler"
        with pytest.raises(ConfigError, match=said):
            stops_early(asked, trials(asked))
    never = auto.model_copy(update={"scheduler": "none"})
    assert not stops_early(never, trials(never))


def test_a_grid_is_gone_through():
    sweep = sweep_from_tree({"base": EVERY, "space": {"pruning.ratio": {"grid": [0.5]}}})
    assert not stops_early(sweep, trials(sweep))


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (
            {"space": {"pruning.ration": {"grid": [1]}}},
            "unknown field 'pruning.ration' (did you mean 'pruning.ratio'?)",
        ),
        ({"space": {"pruning.ratio": {"grid": [0.5], "choice": [0.5]}}}, "exactly one of grid, choice"),
        (
            {"space": {"pruning.ratio": {"grids": [0.5]}}},
            "space.pruning.ratio.grids: unknown key (did you mean 'grid'?)",
        ),
        ({"space": {"pruning.ratio": {"uniform": [0.8, 0.5]}}}, "uniform [0.8, 0.5] is empty"),
        ({"space": {"training.lr": {"loguniform": [0, 1]}}}, "reaches zero"),
        (
            {"space": {"pruning.ratio": [0.5, 0.8]}},
            "space.pruning.ratio: does not say how its values are tried: write {grid: [0.5, 0.8]}",
        ),
        ({"space": {"pruning.ratio": 0.5}}, "write {grid: [0.5]}"),
        ({"space": {"pruning.ratio": {"grid": [0.5, 1.5]}}}, "trial 'ratio-1.5': pruning.ratio: 1.5 is not valid"),
        ({"space": {"pruning.ratio": {"grid": [0.5, 0.5]}}}, "'ratio-0.5_seed-0' is there twice"),
        ({"space": {"run.seed": {"grid": [1, 2]}}}, "for seeds there is `seeds`"),
        ({"space": {"workers.cpus": {"grid": [1, 2]}}}, "space: 'workers.cpus' says where and how fast a run works"),
        (
            {"arms": {"a": {}, "b": {"workers": {"cpus": 2}}}},
            "arms.b: would be arms.a again ('workers.cpus' says where and how fast a run works, not what comes out)",
        ),
        ({"arms": {"a": SCRATCH, "b": SCRATCH}}, "arms.b: would be arms.a again (both override the same)"),
        ({"arms": {"a b": {}}}, "'a b' is no name"),
        ({"arms": {"a": {"prunning": {"ratio": 0.5}}}}, "trial 'a': prunning: unknown key (did you mean 'pruning'?)"),
        ({"arms": {"a": {"pruning": {"ratio": 0.5}}}, "space": {"pruning.ratio": {"grid": [0.6]}}}, "name it once"),
        ({"arms": {"dense": {"selection": {"selector": "dense"}}}}, "set fusion.target to scratch"),
        ({"arms": {"a": {}}, "reference": "b"}, "reference: no arm 'b'"),
        ({"base": {"annotation": {"kind": "files"}}}, "base.annotation.kind 'files' would ask people once per trial"),
        (
            {"arms": {"a": {"annotation": {"kind": "files"}}}},
            "trial 'a': annotation.kind 'files' would ask people once per trial",
        ),
        (
            {"space": {"annotation.kind": {"grid": ["oracle", "files"]}}},
            "trial 'kind-files': annotation.kind 'files' would ask people once per trial",
        ),
        (
            {"base": {"pool": FILES}, "space": {"pool.allow_growth": {"grid": [False, True]}}},
            "trial 'allow_growth-True': pool.allow_growth: a sweep compares runs on one pool",
        ),
        ({"seeds": [1, 1]}, "names a seed twice"),
        ({"base": {"training": {"epochs": 0}}}, "base.training.epochs: 0 is not valid"),
        ({"base": {"training": {"epoch": 1}}}, "base.training.epoch: unknown key (did you mean 'epochs'?)"),
        ({"schedulers": "asha"}, "schedulers: unknown key (did you mean 'scheduler'?)"),
    ],
)
def test_bad_sweeps_are_refused_with_the_field(tree, said):
    with pytest.raises(ConfigError) as caught:
        trials(sweep_from_tree(tree))
    assert said in str(caught.value)


def test_the_base_may_build_on_a_preset_and_the_command_line_wins(tmp_path):
    file = written(tmp_path, {"base": {"preset": "cifar10_small", "pruning": {"ratio": 0.6}}, "seeds": [0]})
    sweep = load_sweep(file, {"training": {"epochs": "20"}, "run": {"directory": "elsewhere"}}, {"concurrency": 3})
    assert (sweep.base.network.architecture, sweep.base.pruning.ratio, sweep.base.training.epochs) == (
        "resnet20",
        0.6,
        20,
    )
    assert (sweep.base.run.name, sweep.base.run.directory, sweep.concurrency) == ("mine", "elsewhere", 3)


def test_resuming_takes_what_the_directory_has_recorded(tmp_path, monkeypatch):
    place = Place.at(str(tmp_path / "moved" / "swept"))
    with pytest.raises(LedgerError, match=r"swept: there is no sweep to go on with .* begin one with --config"):
        parse_sweep(["--resume", str(tmp_path / "moved/swept")])
    made = sweep_from_tree({"base": {"run": {"name": "other"}}, "seeds": [4], "scheduler": "none"})
    (place / "sweep.yaml").write_bytes(yaml.safe_dump(to_tree(made)).encode())
    found = parse_sweep(["--resume", str(tmp_path / "moved/swept/"), "--concurrency", "2", "--scoring.actors", "[1,1]"])
    assert sweep_path(found) == str(tmp_path / "moved" / "swept"), "where it lies now"
    assert (found.seeds, found.scheduler, found.concurrency) == ([4], "none", 2)
    assert found.base.scoring.actors == (1, 1)
    with pytest.raises(SystemExit):
        parse_sweep(["--resume", "x", "--config", "y"])
    monkeypatch.chdir(tmp_path / "moved" / "swept")
    assert sweep_path(parse_sweep(["--resume", "."])) == str(tmp_path / "moved" / "swept")


def test_a_draw_of_a_fine_grid_is_told_as_it_is():
    """Optuna takes no value back that is not of its grid."""
    axis = Axis(quniform=(0.5, 0.75, 0.03125))
    assert axis.as_shown(0.53125) == 0.53125
    with pytest.raises(ConfigError, match="takes only bounds that are multiples of the step"):
        sweep_from_tree(
            {"search": "optuna", "samples": 2, "space": {"distillation.weight": {"quniform": [0.1, 0.9, 0.2]}}}
        )


def test_seeds_of_the_command_line_replace_the_files():
    assert parse_sweep(["--preset", "digits_sweep", "--seeds", "4,7"]).seeds == [4, 7]
    with pytest.raises(ConfigError, match=r"seeds\.1: 'b' is not valid"):
        parse_sweep(["--preset", "digits_sweep", "--seeds", "0,b"])


def test_arms_of_the_command_line_are_those_of_the_file_that_stay(tmp_path):
    preset = ["--preset", "selection_redundant"]
    whole, some = parse_sweep(preset), parse_sweep([*preset, "--arms", "margin,random"])
    assert some.arms == {name: whole.arms[name] for name in ("random", "margin")}
    assert {t.name for t in trials(some)} < {t.name for t in trials(whole)}
    with pytest.raises(ConfigError, match=r"--arms: no arm 'margn' in the sweep's file \(did you mean 'margin'"):
        parse_sweep([*preset, "--arms", "random,margn"])
    with pytest.raises(ConfigError, match="--arms: the file's reference is 'random': name it, too"):
        parse_sweep([*preset, "--arms", "margin"])
    with pytest.raises(ConfigError, match="--arms: a sweep that goes on has the arms it has recorded"):
        parse_sweep(["--resume", str(tmp_path), "--arms", "margin"])


def test_what_is_no_sweep_is_said(tmp_path):
    with pytest.raises(ConfigError, match="is the configuration of a run; a sweep names it under `base:`"):
        load_sweep(PRESETS / "cifar10_small.yaml", {}, {})
    with pytest.raises(ConfigError, match="a sweep has several; set `seeds`"):
        load_sweep(None, {"run": {"seed": 3}}, {})
    with pytest.raises(ConfigError, match=r"base\.run\.seed 7: a sweep has several; set `seeds`"):
        load_sweep(written(tmp_path, {"base": {"run": {"seed": 7}}}), {}, {})
    with pytest.raises(ConfigError, match="no such preset"):
        load_sweep(written(tmp_path, {"base": "digit"}), {}, {})
    with pytest.raises(ConfigError, match="is a sweep itself"):
        load_sweep(written(tmp_path, {"base": "digits_sweep"}), {}, {})


def test_a_sweep_lies_below_its_directory_whatever_options_the_store_has():
    store = "s3://bucket/runs?region=eu-1&scheme=https"
    sweep = sweep_from_tree({"base": {"run": {"directory": store, "name": "mine"}}})
    assert sweep_path(sweep) == "s3://bucket/runs/mine?region=eu-1&scheme=https"
    assert trials(sweep)[0].config.run.directory == "s3://bucket/runs/mine/trials?region=eu-1&scheme=https"


def test_a_sweep_survives_its_file(tmp_path):
    sweep = load_sweep(PRESETS / "cifar10_small_comparison.yaml", {}, {})
    assert sweep_from_tree(yaml.safe_load(yaml.safe_dump(to_tree(sweep)))) == sweep


@pytest.mark.parametrize("preset", SWEEPS, ids=lambda p: p.stem)
def test_presets_are_valid(preset):
    found = trials(load_sweep(preset, {}, {}))
    assert not [note for one in found for note in not_read(one.config)]
    assert (
        len(found)
        == {
            "digits_sweep": 24,
            "digits_fusion": 30,
            "fusion_half_epochs": 12,
            "fusion_rules": 51,
            "coreset": 15,
            "selection_few_labels": 18,
            "selection_long_tail": 24,
            "selection_many_labels": 24,
            "selection_redundant": 24,
            "selection_texts": 21,
            "angles_comparison": 18,
            "digit_masks_comparison": 15,
            "scenes_comparison": 21,
            "embeddings_comparison": 15,
            "docstrings_comparison": 12,
            "cifar10_small_comparison": 48,
            "cifar10_small_fusion": 66,
            "cifar10_small_recipe": 6,
        }[preset.stem]
    )


def test_the_comparison_is_fair():
    """Every arm has the same seeds, initial sets, budgets and target training; only how it is measured differs. Those
    that ask how little fine-tuning is enough say so in their names."""
    found = trials(load_sweep(PRESETS / "cifar10_small_comparison.yaml", {}, {}))
    assert {t.arm for t in found} >= {"prunefuse-p50", "prunefuse-p80", "dense", "svp-resnet8", "random"}
    same = {
        (
            t.config.finetuning.model_copy(update={"evaluate_every": 0}).model_dump_json(),
            t.config.training.model_dump_json(),
            tuple(t.config.selection.budgets),
            t.config.network.architecture,
        )
        for t in found
        if "-halved" not in t.arm
    }
    assert len(same) == 1
    assert all(sum(t.arm == arm for t in found) >= 3 for arm in {t.arm for t in found})


def test_the_metric_under_its_earlier_name_is_read_with_a_note(caplog):
    assert sweep_from_tree({"metric": "proxy_accuracy"}).metric == "proxy"
    assert "metric: 'proxy_accuracy' is now written 'proxy'" in caplog.text


def test_tasks_are_not_compared_with_one_another():
    other = "prunefuse_ray.tasks.classification:CLASSIFICATION"  # the same object, which will do to be another task
    with pytest.raises(
        ConfigError,
        match=r"task '.*' has other figures than the base's 'classification'",
    ):
        trials(sweep_from_tree({"arms": {"a": {"task": other}}}))


def test_a_trial_whose_name_is_a_page_long_is_told_in_a_line():
    sweep = sweep_from_tree({"space": {"selection.strategy": {"grid": ["margin", list(range(1000))]}}})
    with pytest.raises(ConfigError) as caught:
        trials(sweep)
    assert max(map(len, str(caught.value).splitlines())) < 200


@pytest.mark.parametrize("target", ["fused", "scratch"])
def test_an_earlier_sweep_that_distilled_beside_scratch_is_read(tmp_path, target):
    arms = {"fused": {"fusion": {"target": "fused"}}, "scratch": {"fusion": {"target": "scratch"}}}
    tree = to_tree(sweep_from_tree({"arms": arms, "seeds": [0]}))
    tree["base"]["distillation"]["weight"] = 0.5
    tree["base"]["fusion"]["target"] = target
    (Place.at(str(tmp_path)) / "sweep.yaml").write_bytes(yaml.safe_dump(tree).encode())
    found = {t.trial.arm: t.trial.config for t in read_sweep(Place.at(str(tmp_path))).trials}
    assert found["fused"].distillation.weight == 0.5
    assert not_read(found["fused"]) == []
    assert not_read(found["scratch"])[0].startswith("distillation.weight 0.5: a target from scratch")


def test_a_sweep_with_code_of_ones_own_is_resumed_where_that_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr("prunefuse_ray.registry._trusted", set())
    (tmp_path / "mine_own.py").write_text(
        "from prunefuse_ray.acquisition.uncertainty import LEAST_CONFIDENCE as MINE\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "s").mkdir()
    (tmp_path / "s/sweep.yaml").write_text("base: {selection: {strategy: 'mine_own:MINE'}}\n")
    with pytest.raises(LedgerError, match="--trusted mine_own:MINE"):
        parse_sweep(["--resume", str(tmp_path / "s")])
    found = parse_sweep(["--resume", str(tmp_path / "s"), "--trusted", "mine_own:MINE"])
    assert found.base.selection.strategy == "mine_own:MINE"


def test_a_coarse_grid_of_large_numbers_is_kept():
    axis, rng = Axis(quniform=(1_000, 20_000, 125)), np.random.default_rng(0)
    assert not any(axis.draw(rng) % 125 for _ in range(200))


def test_a_proxy_over_a_base_that_fuses_nothing_says_what_it_fuses(tmp_path):
    arms = {"classic": {}, "prunefuse": {"selection": {"selector": "proxy"}}}
    tree = {"base": {"selection": {"selector": "dense"}}, "arms": arms, "seeds": [0]}
    with pytest.raises(
        ConfigError,
        match=r"arms\.prunefuse: a proxy selects.* name there, too, fusion\.target fused",
    ):
        load_sweep(written(tmp_path, tree), {}, {})
    space = {"selection.selector": {"grid": ["dense", "proxy"]}}
    with pytest.raises(ConfigError, match=r"space: selection\.selector: a proxy selects"):
        load_sweep(written(tmp_path, {"base": tree["base"], "space": space}), {}, {})
    arms["prunefuse"]["fusion"] = {"target": "fused"}
    assert [t.config.fusion.target for t in trials(load_sweep(written(tmp_path, tree), {}, {}))] == ["scratch", "fused"]


def test_a_field_of_a_section_in_a_section_is_tried_too():
    field, base = "training.unlabeled.threshold", {"label_smoothing": 0.0, "unlabeled": {"method": "fixmatch"}}
    sweep = sweep_from_tree({"base": {"training": base}, "space": {field: {"grid": [0.8, 0.9]}}, "seeds": [0]})
    assert [t.config.training.unlabeled.threshold for t in trials(sweep)] == [0.8, 0.9]
    assert trials(sweep)[0].values == {field: 0.8}


def test_from_scratch_may_be_meant_for_all(tmp_path):
    space = {"selection.selector": {"grid": ["dense", "proxy"]}}
    base = {"selection": {"selector": "dense"}, "fusion": {"target": "scratch"}}
    found = trials(load_sweep(written(tmp_path, {"base": base, "space": space, "seeds": [0]}), {}, {}))
    assert [t.name for t in found] == ["selector-dense_seed-0", "selector-proxy_seed-0"]


def test_a_committee_that_followed_in_the_base_is_told(tmp_path, caplog):
    base, margin = {"selection": {"strategy": "bald"}}, {"selection": {"strategy": "margin"}}
    said = "a strategy that asks no committee has that of the base (pruning.committee 2)"
    load_sweep(written(tmp_path, {"base": base, "arms": {"m": margin}, "seeds": [0]}), {}, {})
    assert f"arms.m: {said}" in caplog.text
    auto = {"selection": {"strategy": "auto"}}
    load_sweep(written(tmp_path, {"base": base, "arms": {"a": auto}, "seeds": [0]}), {}, {})
    assert f"arms.a: {said}" in caplog.text
    space = {"selection.strategy": {"grid": ["bald", "margin"]}}
    load_sweep(written(tmp_path, {"base": base, "space": space, "seeds": [0]}), {}, {})
    assert f"space: selection.strategy: {said}" in caplog.text
    caplog.clear()
    single = margin | {"pruning": {"committee": 1, "ratio": 0.5}}
    load_sweep(written(tmp_path, {"base": base, "arms": {"m": single}, "seeds": [0]}), {}, {})
    sizes = {"pruning.committee": {"grid": [2, 4]}}
    random = {"selection": {"strategy": "random"}}
    load_sweep(written(tmp_path, {"base": base, "arms": {"b": {}, "r": random}, "space": sizes, "seeds": [0]}), {}, {})
    assert "asks no committee" not in caplog.text
