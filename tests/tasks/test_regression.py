"""Numbers as labels: what is read, units, loss, figures and scores against their definitions."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from prunefuse_ray.acquisition.disagreement import variance as variance_of_probabilities
from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.data.label_tables import Labels, inert_label
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.tasks import regression
from prunefuse_ray.tasks.regression import REGRESSION as TASK

ONE, TWO = ["price"], ["x", "y"]


def column(*labels, kind=None):
    return pa.chunked_array([pa.array(list(labels), kind or TASK.label_type)])


def fitted(n=200, targets=2, seed=0):
    y = np.random.default_rng(seed).normal(3.0, [5.0, 0.1][:targets], (n, targets))
    return TASK.fitted(column(*y.tolist())), y


# --- labels ---


@pytest.mark.parametrize(
    ("given", "classes", "label"),
    [
        ("1.5", ONE, [1.5]), (" -3 ", ONE, [-3.0]), ("1e-3", ONE, [0.001]), (7, ONE, [7.0]), ([2.5], ONE, [2.5]),
        ("[4]", ONE, [4.0]), ("1;2.5", TWO, [1.0, 2.5]), ("1|2", TWO, [1.0, 2.0]), ("1, 2", TWO, [1.0, 2.0]),
        ("[1, 2.5]", TWO, [1.0, 2.5]), (np.array([1.0, 2.0]), TWO, [1.0, 2.0]),
        ("1,5", ONE, None), ("1.000,5", ONE, None), ("1_000", ONE, None), ("", ONE, None), (None, ONE, None),
        ("nan", ONE, None), (math.inf, ONE, None), (True, ONE, None), ("5 EUR", ONE, None), ("1;2", ONE, None),
        ("1", TWO, None), ("1;", TWO, None), ("[1, null]", TWO, None), ("[1", ONE, None), ([1, 2, 3], TWO, None),
    ],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them_and_nothing_else_is(given, classes, label):
    assert TASK.label(given, classes) == label


@pytest.mark.parametrize("label", [[0.1], [-3.0], [1e300], [5e-324], [2.0**60], [1 / 3]])
def test_what_is_written_is_read_again_to_the_bit_and_is_no_formula(label):
    name = TASK.named(label, ONE)
    assert TASK.label(name, ONE) == label
    assert inert_label(name, ONE, TASK) == name
    assert TASK.label(TASK.named(label * 2, TWO), TWO) == label * 2


def test_a_table_says_what_is_no_number():
    labels = Labels(task=TASK, classes=ONE)
    assert labels.read("2.5") == ([2.5], None)
    assert labels.read("1,5") == (None, "label '1,5' is no finite number")
    assert labels.missing("NaN")
    assert not labels.missing("0")
    assert Labels(task=TASK, classes=TWO).read("1") == (None, "label '1' is not 2 finite numbers")


def test_columns_of_numbers_become_lists_and_wrong_ones_are_found():
    floats = pa.chunked_array([[1.5, None], [math.nan, math.inf, 2.0]])
    assert TASK.invalid_labels(floats, 1).to_pylist() == [False, True, True, True, False]
    assert TASK.invalid_labels(floats, 2).to_pylist() == [True] * 5
    assert TASK.values(pa.chunked_array([[1, 2]])).to_pylist() == [[1.0], [2.0]]
    lists = [[1.0, 2.0], [1.0], None, [1.0, None], [1.0, math.nan]]
    for kind in (pa.list_(pa.float32()), pa.large_list(pa.float64())):
        found = TASK.invalid_labels(column(*lists[:2], kind=kind), 2).to_pylist()
        assert found + TASK.invalid_labels(column(*lists[2:], kind=kind), 2).to_pylist() == [False] + [True] * 4
    both = TASK.joined([pa.chunked_array([[1, 2]]), pa.chunked_array([[0.5, None]])])
    assert both.to_pylist()[0] == [1.0, 0.5]
    assert TASK.invalid_labels(both, 2).to_pylist() == [False, True]
    assert TASK.targets(TASK.values(both.slice(0, 1))).tolist() == [[1.0, 0.5]]
    for wrong in (["a"], [["a"]], [True]):
        with pytest.raises(TypeError, match="numbers, or lists of numbers"):
            TASK.invalid_labels(pa.chunked_array([wrong]), 1)


def test_several_people_give_a_median():
    assert TASK.agreed([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]]) == ([2.0, 5.0], 1 / 3, False)


# --- units ---


def test_outputs_are_in_deviations_and_people_get_units():
    task, y = fitted()
    assert task.mean == pytest.approx(y.mean(0))
    assert task.std == pytest.approx(y.std(0))
    z = task.standardized(torch.from_numpy(y))
    assert z.mean(0).numpy() == pytest.approx(0, abs=1e-6)
    assert task.in_units(z.double()).numpy() == pytest.approx(y, abs=1e-5)
    assert task.exported(z.double()).numpy() == pytest.approx(y, abs=1e-5)
    assert task.prediction(np.array([1.0, -1.0]), TWO).values == pytest.approx(
        {"x": y.mean(0)[0] + y.std(0)[0], "y": y.mean(0)[1] - y.std(0)[1]}
    )
    again = TASK.with_units(task.units)
    assert (again.mean, again.std, again.edges) == (task.mean, task.std, task.edges)
    assert TASK.units is None
    assert TASK.with_units(None) == TASK
    assert TASK.fitted(column([2.0], [2.0])).std == (1.0,), "a target that is always the same"
    task = TASK.fitted(column([0.1], [0.1], [0.1]))  # whose mean is another number than 0.1
    assert task.std == (1.0,)
    evaluation = task.evaluation()
    evaluation.add(torch.tensor([[0.2]] * 3), torch.tensor([[0.1]] * 3, dtype=torch.float64))
    assert evaluation.result()["r2"] == 0.0


def test_the_fifths_hold_equally_many_labels():
    task, y = fitted()
    groups = task.group(task.deviations(y))
    assert np.bincount(groups).tolist() == [40] * 5
    assert y[groups == 0, 0].max() < y[groups == 4, 0].min()
    assert task.group_name(4, TWO) == "x, fifth 5 of the labels"


# --- training and figures ---


def huber(error):
    return float(torch.where(error.abs() < 1, error**2 / 2, error.abs() - 0.5).sum())


def test_the_loss_is_hubers_in_deviations_also_of_a_committee():
    task, y = fitted(6)
    z = torch.randn(3, 6, 2)
    wanted = task.standardized(torch.from_numpy(y))
    expected = sum(huber(member - wanted) / 2 for member in z)
    assert float(task.loss_sum(z, torch.from_numpy(y))) == pytest.approx(expected, rel=1e-5)
    teacher = torch.randn(6, 2)
    soft = sum(huber(member - teacher) / 2 for member in z)
    found = task.loss_sum(z, torch.from_numpy(y), teacher=teacher, weight=0.25)
    assert float(found) == pytest.approx(0.75 * expected + 0.25 * soft, rel=1e-5)
    assert torch.equal(task.consensus(z), z.mean(0))


@pytest.mark.parametrize("targets", [1, 2])
def test_figures_are_those_of_scikit_learn_in_the_units_of_the_labels(targets):
    task, _ = fitted(targets=targets)
    _, y = fitted(50, targets, seed=1)
    z = torch.randn(50, targets, dtype=torch.float64) * 0.3 + torch.from_numpy(task.deviations(y))
    evaluation = task.evaluation()
    for rows in (slice(0, 20), slice(20, 50)):
        evaluation.add(z[rows], torch.from_numpy(y[rows]))
    found, guess = evaluation.result(), task.in_units(z).numpy()
    assert found["r2"] == pytest.approx(r2_score(y, guess))
    assert found["mae"] == pytest.approx(mean_absolute_error(y, guess))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(y, guess))
    assert ("r2_1" in found) == (targets == 2)
    assert np.array(evaluation.shown()["points"]) == pytest.approx(np.stack([y[:, 0], guess[:, 0]], 1), rel=1e-4)


def test_labels_far_from_the_prediction_are_unlikely():
    task, y = fitted(targets=1)
    z = task.deviations(y)
    assert task.label_probabilities(z + 2.0, y) == pytest.approx(2 * norm.sf(2.0))
    assert np.isnan(task.guesses(z)[1]).all()
    assert task.guesses(z)[0] == pytest.approx(y, rel=1e-5)


# --- scores ---


def test_variance_is_the_deviation_of_the_members():
    z = np.array([[[0.0, 1.0], [2.0, 2.0]], [[2.0, 1.0], [2.0, 2.0]]])
    assert regression.variance(z) == pytest.approx([math.sqrt(0.5), 0.0])
    assert np.isnan(regression.nothing(np.array([[np.nan], [1.0]])))[0]
    p = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert variance_of_probabilities(p) == pytest.approx([0.5]), "of two members that are each sure of another class"


# --- the configuration ---


def config(**tree):
    return config_from_tree({"task": "regression", "pool": {"classes": ["size"]}, **tree})


def test_defaults_follow_the_task():
    found = config()
    assert (found.selection.strategy, found.pruning.committee) == ("variance", 2)
    assert (found.training.label_smoothing, found.finetuning.label_smoothing) == (0.0, 0.0)
    assert config(selection={"strategy": "max_herding"}).pruning.committee == 1
    assert config(selection={"strategy": "uncertainty_herding"}).pruning.committee == 2
    assert config_from_tree({}).selection.strategy == "least_confidence"
    vectors = {"source": "csv", "path": "a", "test_path": "b", "vector_column": "v"}
    assert config(pool=vectors).training.weight_decay == 0.1
    assert config_from_tree({"pool": vectors | {"classes": 2}}).training.weight_decay == 0.002


@pytest.mark.parametrize(
    "tree",
    [
        {"selection": {"selector": "dense"}}, {"pruning": {"committee": 1}}, {"pruning": {"ratio": 0.7}},
        {"pruning": {"round_to": 8}}, {"pruning": {"steps": 2}}, {"fusion": {"rule": "function_preserving"}},
        {"pruning": {"ratio": 0.8}}, {"fusion": {"rule": "positional"}}, {"pruning": {"committee": 3}},
    ],
)  # fmt: skip
def test_what_leaves_no_committee_has_a_strategy_that_needs_none(tree):
    found = config(**tree)
    assert found.selection.strategy == ("variance" if found.pruning.committee > 1 else "k_centers")


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"selection": {"strategy": "margin"}}, "'margin' makes no sense for task 'regression'; use one of variance, "),
        ({"selection": {"strategy": "auto"}}, "'auto' makes no sense"),
        ({"training": {"label_smoothing": 0.1}}, r"training\.label_smoothing 0\.1 .* set it to 0"),
        ({"selection": {"class_balance": 1.0}}, "class_balance 1.0 goes by the one class"),
        ({"annotation": {"kind": "label_studio", "url": "http://x"}}, r"annotation\.kind label_studio"),
        ({"pruning": {"committee": 1}, "selection": {"strategy": "variance"}}, "asks the members of a committee"),
    ],
)
def test_what_needs_classes_is_refused_by_name(tree, said):
    with pytest.raises(ConfigError, match=said):
        config(**tree)
    with pytest.raises(ConfigError, match="makes 1: task 'classification' needs at least 2"):
        config_from_tree({"pool": {"classes": ["size"]}})


def test_a_number_far_from_zero_is_not_rounded_to_its_first_digits():
    task = TASK.fitted(column([5_412_245.0], [5_412_445.0]))
    z = np.array([[0.123456]])
    assert task.guesses(z)[0] == pytest.approx(task.in_units(z), abs=1e-3 * task.std[0])


def test_large_integers_in_lists_are_numbers_too():
    assert TASK.values(column([2**60 + 1, 1], kind=pa.list_(pa.int64()))).to_pylist() == [[2.0**60, 1.0]]


@pytest.mark.parametrize("wrong", [["12 EUR", "a"], ["1.5", "2"], [True, False], [[1.0], [2.0]]])
def test_columns_that_hold_no_numbers_are_none_of_several(wrong):
    with pytest.raises(TypeError, match="numbers, or lists of numbers"):
        TASK.joined([pa.chunked_array([[1, 2]]), pa.chunked_array([wrong])])


def test_errors_are_told_by_their_digits_however_small_the_units():
    mae = regression.MAE
    assert [mae.text(v) for v in (2.5e-6, 0.0, 0.9, 12.0)] == ["2.5e-06", "0.000", "0.900", "12.000"]
    assert mae.spread(2.5e-6, 1.25e-7) == "2.5e-06 ± 1.2e-07"
    assert mae.difference(-2.5e-6) == "−2.5e-06"
    assert mae.difference(2.5e-6) == "+2.5e-06"
    assert TASK.metric.difference(-0.25) == "−0.250"


def test_nulls_among_lists_of_one_size_are_found():
    fixed = column([1.0, 2.0], None, [1.0, None], kind=pa.list_(pa.float64(), 2))
    for given in (fixed, fixed.cast(pa.list_(pa.float64()))):
        assert TASK.invalid_labels(given, 2).to_pylist() == [False, True, True]
