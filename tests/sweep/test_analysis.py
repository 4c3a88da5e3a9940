"""Figures of a sweep: means over seeds, costs, epochs to scratch, the front, the best; and the page they make."""

import dataclasses
import math
from types import SimpleNamespace

import pyarrow as pa
import pytest
import yaml

from prunefuse_ray.commands.sweep import closing_table, round_line
from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.method.steps import steps
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep.analysis import Stat, best, best_config, pareto, points, reference_of, relative, stat
from prunefuse_ray.sweep.config import sweep_from_tree, trials
from prunefuse_ray.sweep.page import render_sweep
from prunefuse_ray.sweep.results import (
    COMPLETE,
    FAILED,
    UNFINISHED,
    Outcome,
    SweepResult,
    TrialResult,
    Tuning,
    _figures,
    round_row,
    table,
)
from prunefuse_ray.tasks import Metric
from prunefuse_ray.tasks.classification import CLASSIFICATION

ACCURACY = CLASSIFICATION.metric
ARMS = {
    "fuse": {"pruning": {"ratio": 0.5}, "finetuning": {"evaluate_every": 2}},
    "dense": {"selection": {"selector": "dense"}, "fusion": {"target": "scratch"}},
    "scratch": {"fusion": {"target": "scratch"}},
}
# arm -> accuracy of each seed at 10 and at 20 labels; scoring MACs; selection seconds
FIGURES = {
    "fuse": ([(0.5, 0.8), (0.6, 0.9)], 25, 5.0),
    "dense": ([(0.4, 0.7), (0.5, 0.8)], 100, 20.0),
    "scratch": ([(0.4, 0.75), (0.5, 0.85)], 25, 5.0),
}


def result(**more):
    sweep = sweep_from_tree(
        {"base": {"selection": {"budgets": [10, 20]}, "fusion": {"evaluate": "every"}, "run": {"name": "x"}},
         "arms": ARMS, "seeds": [0, 1], "reference": "dense"} | more
    )  # fmt: skip
    return SweepResult(sweep=sweep, root=Place.at("/nowhere"), trials=[made(t) for t in trials(sweep)])


def made(trial):
    accuracies, macs, seconds = FIGURES[trial.arm]
    seed = trial.config.run.seed
    rows = [
        {"round": r, "labels": (10, 20)[r], "budgets_passed": r + 1, "proxy": 0.3,
         "fused": accuracies[seed][r], "selection_macs": macs * r, "selection_training_macs": macs * r,
         "dense_selection_macs": 100 * r, "total_macs": 3 * macs * r + 50,
         "selection_seconds": seconds * r, "finetuning_seconds": 1.0, "seconds": 9.0,
         "phases_shared": 0}
        for r in (0, 1)
    ]  # fmt: skip
    # Seed 0 chooses what scratch has too, and passes its final accuracy of .75 at epoch 4; seed 1 never passes .85.
    evaluations = [(0, 0.2), (2, 0.6), (4, 0.76 if seed == 0 else 0.7), (6, 0.8)] if trial.arm == "fuse" else []
    key = f"labels-{seed}" if trial.arm != "dense" else f"other-{seed}"
    return TrialResult(
        trial=trial, outcome=Outcome(status=COMPLETE), rows=rows, shared={"fuse_seed-0": 3} if seed else {},
        tuning=Tuning(labels_key=key, epochs=30, evaluations=evaluations),
    )  # fmt: skip


def by_name(found):
    return {p.name: p for p in found}


def test_mean_and_sample_standard_deviation():
    assert stat([1.0, 3.0, None]) == Stat(2.0, math.sqrt(2), 2)
    assert math.isnan(stat([1.0]).std)
    assert stat([None]) is None
    assert ACCURACY.spread(0.931, 0.004) == "93.1 ± 0.4%"
    assert ACCURACY.spread(0.931, math.nan) == "93.1%"


def test_points_are_means_over_seeds_per_budget():
    found = by_name(points(result()))
    assert found["fuse"].fused[10].mean == pytest.approx(0.55)
    assert found["fuse"].fused[20].mean == pytest.approx(0.85)
    assert found["fuse"].fused[20].std == pytest.approx(0.1 / math.sqrt(2))
    assert (found["fuse"].seeds, found["fuse"].fused[20].n) == (2, 2)


def test_costs_are_relative_to_the_reference_arm():
    found = points(result())
    fuse = by_name(found)["fuse"]
    reference = reference_of(found, result().sweep, fuse)
    assert reference.name == "dense"
    assert relative(fuse, reference, "selection_macs") == 0.25
    assert relative(fuse, reference, "selection_seconds") == 0.25
    assert relative(fuse, None, "selection_macs") == 0.25, "against the dense network's, computed"
    assert relative(fuse, None, "selection_seconds") is None


def test_epochs_are_measured_against_scratch_on_the_same_labels():
    found = by_name(points(result()))
    catching = found["fuse"].catching
    assert (catching.reached, catching.seeds, catching.epochs.mean) == (1, 2, 4)
    assert (catching.scratch_epochs, catching.every) == (30, 2)
    assert catching.scratch.mean == pytest.approx(0.8), (
        "of the scratch arm, and not of the dense one with its own labels"
    )
    assert found["dense"].catching is None


def test_epochs_are_measured_against_scratch_on_as_many_workers():
    two = {"workers": {"count": [2, 2]}}
    arms = {"fuse": ARMS["fuse"] | two, "dense": ARMS["dense"], "scratch": ARMS["scratch"]}
    assert by_name(points(result(arms=arms)))["fuse"].catching is None
    assert by_name(points(result(arms=arms | {"scratch": ARMS["scratch"] | two})))["fuse"].catching is not None


def test_epochs_of_scratch_are_those_of_all_seeds():
    """Where patience ends a training, each seed has another number of them."""
    measured = result()
    stopped = {"scratch_seed-0": 10, "scratch_seed-1": 25}
    trials_ = [
        dataclasses.replace(r, tuning=dataclasses.replace(r.tuning, epochs=stopped.get(r.trial.name, 30)))
        for r in measured.trials
    ]
    shown = SweepResult(sweep=measured.sweep, root=measured.root, trials=trials_)
    assert by_name(points(shown))["fuse"].catching.scratch_epochs == 17.5
    assert "17.5" in render_sweep(shown)


def test_the_front_holds_what_nothing_beats():
    found = points(result())
    assert [p.name for p in pareto(found, "selection_macs", "fused")] == ["fuse"]
    cheap = [p for p in found if p.name != "fuse"]
    assert [p.name for p in pareto(cheap, "selection_macs", "fused")] == ["scratch"]


def test_a_front_of_several():
    found = points(result())
    dear = dataclasses.replace(found[1], fused={20: Stat(0.95, 0.0, 2)})
    assert [p.name for p in pareto([found[0], dear], "selection_macs", "fused")] == ["fuse", "dense"]


LEARNED = {50: 0.5, 100: 0.7, 200: 0.8, 400: 0.9}


def of_budgets(*budgets, evaluate="every", stopped=()):
    """A sweep over label budgets whose accuracy depends on the labels alone."""
    sweep = sweep_from_tree(
        {
            "base": {"fusion": {"evaluate": evaluate}, "run": {"name": "x"}},
            "space": {"selection.budgets": {"grid": list(budgets)}},
            "seeds": [0, 1],
        }
    )

    def trial_result(trial):
        given = trial.config.selection.budgets
        rows = [
            {"round": r, "labels": n, "proxy": 0.3, "selection_macs": 10 * n, "seconds": 1.0}
            | ({"fused": LEARNED[n]} if evaluate == "every" or n == given[-1] else {})
            for r, n in enumerate(given)
        ]
        passed = rows[:1] if trial.name in stopped else rows
        done = Outcome(status=COMPLETE)
        return TrialResult(trial=trial, outcome=done, rows=passed, tuning=None, shared={})

    return SweepResult(sweep=sweep, root=Place.at("/nowhere"), trials=[trial_result(t) for t in trials(sweep)])


@pytest.mark.parametrize(
    ("budgets", "evaluate", "labels", "where"),
    [
        ([[50, 100], [50, 400]], "every", [50, 50], "at 50 labels, the largest budget at which all are measured"),
        ([[50, 100], [50, 100, 400]], "every", [100, 100], "at 100 labels, the largest budget at which all are"),
        ([[50, 400], [100, 400]], "every", [400, 400], "at the last label budget"),
        ([[50, 100], [50, 100, 400]], "last", [100, 400], "each at its own last label budget, since these differ"),
        ([[50, 100], [200, 400]], "every", [100, 400], "each at its own last label budget, since these differ"),
    ],
)
def test_combinations_are_compared_at_labels_that_all_have(budgets, evaluate, labels, where):
    measured = of_budgets(*budgets, evaluate=evaluate)
    found = points(measured)
    assert [p.labels for p in found] == labels
    assert [p.costs["selection_macs"].mean for p in found] == [10 * n for n in labels]
    first = best_config(measured).splitlines()[0]
    assert where in first
    assert f"fused_accuracy {100 * LEARNED[max(labels)]:.2f} " in first
    page = render_sweep(measured)
    assert f"Label budgets differ: combinations are compared {where}" in page
    assert where in closing_table(measured).caption


def test_a_cell_says_how_many_seeds_it_has_where_not_the_rows():
    measured = of_budgets([50, 400], stopped=("budgets-50-400_seed-1",))
    page = render_sweep(measured)
    assert points(measured)[0].seeds == 1
    assert "50.0 ± 0.0% (2 seeds)" in page
    assert "90.0%<" in page, "the row's own number is not said again"


def test_the_best_goes_into_a_configuration_that_a_run_takes():
    measured = result()
    assert best(points(measured), "fused").name == "fuse"
    text = best_config(measured)
    assert text.startswith("# fuse: fused_accuracy 85.00 ± 7.07% over 2 seeds")
    config = config_from_tree(yaml.safe_load(text))
    assert (config.run.name, config.run.directory) == ("x-best", "runs")
    assert (config.pruning.ratio, config.finetuning.evaluate_every) == (0.5, 2)


def test_the_order_of_a_sum_decides_nothing():
    """0.9750000000000001 and 0.975 are the same accuracies, summed in another order: the cheaper one is the best, and
    alone on the front."""

    def point(name, mean, cost):
        costs = {"selection_macs": Stat(cost, 0.0, 2), "seconds": Stat(cost, 0.0, 2)}
        return SimpleNamespace(name=name, seeds=2, costs=costs, final=lambda network: Stat(mean, 0.0, 2))

    dear, cheap = point("dear", 0.9750000000000001, 2.0), point("cheap", 0.975, 1.0)
    assert best([dear, cheap], "fused") is cheap
    assert pareto([dear, cheap], "seconds", "fused") == [cheap]


def test_a_point_with_fewer_finished_seeds_is_not_the_best():
    measured = result()
    half = [r for r in measured.trials if r.trial.name != "fuse_seed-1"]
    found = points(SweepResult(sweep=measured.sweep, root=measured.root, trials=half))
    assert best(found, "fused").name == "scratch"


def test_the_table_has_a_row_per_trial_and_round():
    rows = table(result(space={"training.epochs": {"grid": [5, 6]}}))
    assert rows.num_rows == 3 * 2 * 2 * 2
    first = rows.slice(1, 1).to_pylist()[0]
    assert first["trial"] == "fuse_epochs-5_seed-0"
    assert (first["labels"], first["fused_accuracy"], first["training.epochs"]) == (20, 0.8, 5)


def row_of(tree, round_):
    """The figures of a round of a run in which all is done."""
    config = config_from_tree(tree)
    cost = {"pretrain": 1000, "train": 10, "finetune": 100, "score": 1}

    class Done:
        def committed(self, step):
            macs = cost.get(step.phase, 0)
            metrics = {"macs": macs, "dense_macs": 4 * macs, "seconds": 1.0, "test_accuracy": 0.5}
            return SimpleNamespace(metrics=metrics) if step in steps(config) else None

    return round_row(Done(), config, round_)


@pytest.mark.parametrize(("strategy", "scored"), [("margin", 2), ("random", 0)])
def test_all_macs_count_the_proxies_of_earlier_targets_that_were_pruned(strategy, scored):
    row = row_of({"selection": {"budgets": [50, 100, 150], "strategy": strategy}, "fusion": {"sync_every": 1}}, 2)
    assert row["total_macs"] == 3 * 10 + 3 * 100 + scored


def test_the_selectors_training_counts_the_targets_that_it_was_pruned_from():
    """Rounds 0 and 1 have a target that the next proxy comes from; what follows the last scoring has selected nothing
    yet."""
    tree = {"selection": {"budgets": [50, 100, 150], "strategy": "margin"}, "fusion": {"sync_every": 1}}
    assert [row_of(tree, r)["selection_training_macs"] for r in range(3)] == [0, 10, 2 * 10 + 100]
    assert [row_of(tree, r)["selection_seconds"] for r in range(3)] == [0, 3.0, 7.0]
    by_chance = {**tree, "selection": {"budgets": [50, 100, 150], "strategy": "random"}}
    assert row_of(by_chance, 2)["selection_training_macs"] == 0


@pytest.mark.parametrize(
    ("round_", "scoring", "training", "seconds", "total"),
    [(0, 1, 1000, 3.0, None), (1, 2, 1010, 6.0, 1000 + 2 * 10 + 100 + 2)],
)
def test_costs_count_what_selected_the_initial_set(round_, scoring, training, seconds, total):
    tree = {"selection": {"budgets": [50, 100], "initial": "typiclust", "strategy": "margin"},
            "pretraining": {"method": "rotation"}}  # fmt: skip
    row = row_of(tree, round_)
    assert (row["selection_macs"], row["dense_selection_macs"]) == (scoring, 4 * scoring)
    assert (row["selection_training_macs"], row["selection_seconds"]) == (training, seconds)
    assert row.get("total_macs") == total


def test_the_page_shows_the_figures():
    page = render_sweep(result())
    for words in (
        "85.0 ± 7.1%",
        "55.0 ± 7.1%",
        "1 of 2",
        "4.0",
        "25.0%",
        "of the arm dense",
        "trials/dense_seed-1/report.html",
    ):
        assert words in page, words
    assert "<script" not in page
    assert render_sweep(result()) == page


def test_the_planes_are_those_of_costs_that_were_paid():
    """Selection by chance costs nothing worth a plot; what proxies and targets cost in all stays the question."""
    planes = ("Accuracy over the MACs of scoring", "Accuracy over the seconds of selection", "Accuracy over all MACs")
    chosen, by_chance = result(), result()
    for trial in by_chance.trials:
        for row in trial.rows:
            row["selection_macs"] = 0
    assert [plane in render_sweep(chosen) for plane in planes] == [True, True, True]
    assert [plane in render_sweep(by_chance) for plane in planes] == [False, False, True]


def test_the_page_of_a_sweep_in_progress_and_of_failures():
    measured = result()
    trials_ = [
        TrialResult(trial=r.trial, outcome=Outcome(status=s, message="lower <lr>"), rows=[], tuning=None, shared={})
        for r, s in zip(measured.trials, [FAILED, *[UNFINISHED] * 5], strict=True)
    ]
    page = render_sweep(SweepResult(sweep=measured.sweep, root=measured.root, trials=trials_))
    assert "in progress" in page
    assert "lower &lt;lr&gt;" in page
    assert best_config(SweepResult(sweep=measured.sweep, root=measured.root, trials=trials_)) is None


def test_what_the_terminal_shows():
    cells = {c.header: list(c.cells) for c in closing_table(result()).columns}
    assert cells["combination"] == ["fuse", "dense", "scratch"]
    assert cells["fused accuracy"][0] == "85.0 ± 7.1%"
    assert cells["of reference"] == ["25.0%", "100.0%", "25.0%"]
    row = {"labels": 50, "proxy": 0.912, "fused": 0.5, "phases_shared": 3}
    assert round_line(row, ACCURACY) == "50 labels, proxy 91.2%, fused 50.0%, 3 phases shared"


def test_figures_of_another_task_are_told_by_its_own_metric(monkeypatch):
    r2 = Metric(name="r2", title="R²", share=False)
    monkeypatch.setattr(SweepResult, "metric", r2)
    made = result()
    page = render_sweep(made)
    assert "ccuracy" not in page
    assert "0.850 ± 0.071" in page
    assert "# fuse: fused_r2 0.8500 ± 0.0707 over 2 seeds" in best_config(made)
    assert "fused_r2" in table(made).column_names
    assert round_line({"labels": 50, "proxy": 0.912}, r2) == "50 labels, proxy 0.912"


def test_epochs_are_measured_against_scratch_on_the_same_part_of_the_labels():
    part = {"coreset": {"by": "random"}}
    arms = {**ARMS, "fuse": ARMS["fuse"] | part}
    assert by_name(points(result(arms=arms)))["fuse"].catching is None
    assert by_name(points(result(arms=arms | {"scratch": ARMS["scratch"] | part})))["fuse"].catching is not None


def test_what_is_left_of_a_point_is_not_on_the_front():
    found = points(result())
    lucky = dataclasses.replace(found[1], seeds=1, fused={20: Stat(0.99, math.nan, 1)})
    assert [p.name for p in pareto([found[0], lucky], "selection_macs", "fused")] == ["fuse"]


def test_what_was_measured_is_drawn_before_what_was_not():
    """The first fourteen of a sweep may all have failed."""
    sweep = sweep_from_tree(
        {
            "base": {"selection": {"budgets": [10, 20]}, "run": {"name": "x"}},
            "space": {"pruning.ratio": {"grid": [n / 100 for n in range(10, 26)]}},
            "seeds": [0],
        }
    )
    *failed, last = trials(sweep)
    row = {"round": 0, "labels": 10, "proxy": 0.3, "selection_macs": 0, "seconds": 1.0}
    found = [TrialResult(trial=t, outcome=Outcome(status=FAILED), rows=[], tuning=None, shared={}) for t in failed]
    found.append(TrialResult(trial=last, outcome=Outcome(status=UNFINISHED), rows=[row], tuning=None, shared={}))
    page = render_sweep(SweepResult(sweep=sweep, root=Place.at("/nowhere"), trials=found))
    assert "Accuracy of the selecting network on the test set" in page


def test_the_page_of_a_search_counts_what_is_still_to_be_drawn(tmp_path):
    root = Place.at(str(tmp_path))
    (root / "draws/000.json").write_json({"training.lr": 0.1})
    space = {"training.lr": {"uniform": [0.1, 0.2]}}
    sweep = sweep_from_tree(
        {"base": {"run": {"name": "x"}}, "space": space, "search": "optuna", "samples": 4, "seeds": [0]}
    )
    (trial,) = trials(sweep, [{"training.lr": 0.1}])
    done = TrialResult(trial=trial, outcome=Outcome(status=COMPLETE), rows=[], tuning=None, shared={})
    page = render_sweep(SweepResult(sweep=sweep, root=root, trials=[done]))
    assert "1 of 4 trials complete" in page
    assert "in progress" in page


def test_a_page_without_the_pages_of_its_trials_has_no_links_to_them():
    assert 'href="trials/' in render_sweep(result())
    assert 'href="trials/' not in render_sweep(result(), linked=False)


def test_macs_beyond_64_bits_stay_figures():
    """A large network on ImageNet, in the paper's protocol."""
    assert _figures([2 * 10**19, None], pa.int64()).to_pylist() == [2e19, None]
    assert _figures([2, None], pa.int64()).type == pa.int64()
