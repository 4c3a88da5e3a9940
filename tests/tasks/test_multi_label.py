"""Several classes a sample: labels, loss, consensus, metrics and scores against their definitions."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch.nn import functional as F

from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.tasks import multi_label
from prunefuse_ray.tasks.multi_label import MULTI_LABEL as TASK
from prunefuse_ray.tasks.multi_label import as_sets

CLASSES = ["cat", "cow", "7", "a;b", "b"]


def as_list(bits):
    """The set of whose classes a number's bits are."""
    return None if bits is None else [c for c in range(64) if bits >> c & 1]


def rows(*bits):
    """Sets as training has them."""
    return torch.from_numpy(TASK.targets(pa.chunked_array([pa.array(map(as_list, bits), TASK.label_type)])))


def outputs(*shape, scale=2.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * scale


# --- labels ---


@pytest.mark.parametrize(
    ("given", "bits"),
    [
        ("cat", 0b1), ("cat;cow", 0b11), (" cow | cat ", 0b11), ("cat,cow,7", 0b111), ("0;1", None), ("[]", 0),
        ('["cat", "a;b"]', 0b1001), ("[0, 2]", 0b101), ("[2]", 0b100), (["cow", 0], 0b11), ([], 0), ((1,), 0b10),
        (np.array([0, 4]), 0b10001), (1, 0b10), ("7", 0b100), ("a;b", 0b1000), ("7;cat", 0b101),
        ("", None), (None, None), ("dog", None), ("cat;dog", None), ("cat;cat", None), ("cat;", None),
        ([0, 1, 1], None),
        ([True], None), ("[0", None), ("[[0]]", None), (5, None), (-1, None), ([None], None), ("cat;cow|7", None),
    ],
)  # fmt: skip
def test_sets_are_read_as_people_write_them_and_nothing_else_is(given, bits):
    assert TASK.label(given, CLASSES) == as_list(bits)
    assert TASK.label("0;2", ["a", "b", "c"]) == [0, 2], "numbers, where no name looks like one"


def test_text_that_may_mean_two_sets_means_none():
    assert TASK.label("a;b", ["a", "b", "a;b"]) is None
    assert TASK.label("a,b", ["a", "b", "a,b", "c"]) is None
    assert TASK.label("a;b,c", ["a", "b,c", "a;b", "c"]) is None


@pytest.mark.parametrize("classes", [CLASSES, ["a", "b", "a;b"], ["1", "2", "0"], ["[]", "[0]", "x"], ["über", "né"]])
def test_what_is_written_is_read_again(classes):
    for label in map(as_list, range(2 ** len(classes))):
        assert TASK.label(TASK.named(label, classes), classes) == label, TASK.named(label, classes)


def test_lists_in_parquet_become_sets_and_wrong_ones_are_found():
    lists = [[0, 2], [], [62], None, [3, 3], [63], [-1, 0], [1, None]]
    for kind in (pa.list_(pa.int32()), pa.large_list(pa.int64())):
        column = pa.chunked_array([pa.array(lists[:3], kind), pa.array(lists[3:], kind)])
        assert TASK.invalid_labels(column, 63).to_pylist() == [False] * 3 + [True] * 5
        assert as_sets(column.slice(0, 3)).to_pylist() == [[0, 2], [], [62]]
    assert as_sets(pa.chunked_array([pa.array([[2, 0], [3, 1]]).slice(1)])).to_pylist() == [[1, 3]]
    fixed = pa.chunked_array([pa.array([[0, 1], [1, 4]], pa.list_(pa.int8(), 2))])
    assert TASK.invalid_labels(fixed, 4).to_pylist() == [False, True]
    assert as_sets(fixed).to_pylist() == [[0, 1], [1, 4]]
    for column in ([1, 2], ["cat"], [["cat"]], [[0.0, 1.0]], [[True, False]]):
        with pytest.raises(TypeError, match="lists of integers"):
            TASK.invalid_labels(pa.chunked_array([column]), 3)


def test_counts_are_by_class():
    sets = pa.chunked_array([[[0, 2], [0]], [[], None]], TASK.label_type)
    assert TASK.counts(sets, 4) == [2, 0, 1, 0]
    assert TASK.counts(pa.chunked_array([pa.nulls(2, TASK.label_type)]), 2) == [0, 0]
    assert TASK.targets(sets).tolist() == [[0, 2], [0, -1], [-1, -1], [-1, -1]]
    assert TASK.targets(sets.slice(0, 0)).shape == (0, 1)


def test_columns_of_zeros_and_ones_are_sets():
    columns = [pa.chunked_array([[1, 0, 1]]), pa.chunked_array([[True, False, True]]), pa.chunked_array([[0, 0, 2]])]
    joined = TASK.joined(columns)
    assert joined.to_pylist() == [[0, 1], [], None]
    assert TASK.invalid_labels(joined, 3).to_pylist() == [False, False, True]
    assert TASK.label_of_cells(["1", "0", " True "], ["a", "b", "c"]) == [0, 2]
    assert TASK.label_of_cells(["0", 0, False], ["a", "b", "c"]) == []
    for cells in (["1", "", "0"], ["1", "2", "0"], ["1", "0"]):
        assert TASK.label_of_cells(cells, ["a", "b", "c"]) is None
    with pytest.raises(TypeError, match="zeros and ones, and these are of type string"):
        TASK.joined([pa.chunked_array([["a"]])])


def test_people_who_give_the_same_set_agree():
    assert TASK.agreed([[0, 2], [1], [0, 2]]) == ([0, 2], 2 / 3, False)


# --- training ---


def test_the_loss_is_the_sum_of_binary_cross_entropies_also_of_a_committee():
    z, t, y = outputs(2, 4, 3), outputs(4, 3), rows(0b101, 0, 0b111, 0b10)
    hot = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]).float()
    hard = F.binary_cross_entropy_with_logits(z[0], hot, reduction="sum")
    torch.testing.assert_close(TASK.loss_sum(z[0], y), hard)
    smoothed = F.binary_cross_entropy_with_logits(z[0], hot * 0.9 + 0.05, reduction="sum")
    torch.testing.assert_close(TASK.loss_sum(z[0], y, smoothing=0.1), smoothed)
    p, q = (t / 4).sigmoid(), (z[0] / 4).sigmoid()
    divergence = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
    taught = TASK.loss_sum(z[0], y, teacher=t, weight=0.3, temperature=4.0)
    torch.testing.assert_close(taught, 0.7 * hard + 0.3 * 16 * divergence)
    for more in ({}, {"teacher": t, "weight": 0.3, "temperature": 2.0}):
        both = TASK.loss_sum(z[0], y, **more) + TASK.loss_sum(z[1], y, **more)
        torch.testing.assert_close(TASK.loss_sum(z, y, **more), both)


def test_the_highest_of_many_classes_is_trained_like_the_others():
    z = outputs(2, 300)
    hot = torch.zeros(2, 300)
    hot[0, 299] = hot[1, 0] = 1
    found = TASK.loss_sum(z, torch.tensor([[299], [0]]))
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(z, hot, reduction="sum"))
    guess, _ = TASK.guesses(np.where(hot.numpy() == 1, 0.9, 0.1))
    assert guess.tolist() == [[299], [0]]


def test_networks_and_scores_mean_the_same_by_a_consensus():
    z = outputs(3, 50, 4, scale=10.0)
    mean = torch.sigmoid(z.double()).mean(0).numpy()
    np.testing.assert_allclose(TASK.probabilities(z.numpy()).mean(0), mean, rtol=1e-12)
    np.testing.assert_allclose(TASK.consensus(z).double().sigmoid().numpy(), mean, rtol=1e-4, atol=1e-30)
    assert TASK.consensus(z[0]).tolist() == z[0].tolist()
    far = TASK.consensus(torch.tensor([[[-300.0]], [[-200.0]]]))
    assert torch.isfinite(far).all()
    assert TASK.probabilities(np.array([[-1000.0, 1000.0]])).tolist() == [[0.0, 1.0]]


def test_an_evaluation_adds_up_over_batches_and_leaves_out_classes_that_nobody_has():
    z = outputs(60, 4)
    hot = (torch.rand(60, 4, generator=torch.Generator().manual_seed(1)) < 0.3).long()
    hot[:, 3] = 0
    y = rows(*(hot << torch.arange(4)).sum(1).tolist())
    evaluation = TASK.evaluation()
    for some in (slice(0, 7), slice(7, 60)):
        evaluation.add(z[some], y[some])
    found, guess = evaluation.result(), (z > 0).long()
    each = [average_precision_score(hot[:, c], z[:, c]) for c in range(3)]
    assert found["map"] == pytest.approx(np.mean(each))
    assert found["f1_macro"] == pytest.approx(f1_score(hot[:, :3], guess[:, :3], average="macro"))
    assert found["f1_micro"] == pytest.approx(f1_score(hot, guess, average="micro", zero_division=0))
    assert found["loss"] == pytest.approx(float(TASK.loss_sum(z, y)) / 60)
    broken = TASK.evaluation()
    broken.add(torch.full((2, 4), torch.nan), rows(1, 2))
    assert np.isnan(broken.result()["loss"]), "training says that the network diverged"


# --- predictions and scores ---


def test_a_guess_is_the_likeliest_of_all_sets():
    p = TASK.probabilities(outputs(20, 3).numpy())
    sets = np.array(list(itertools.product((0, 1), repeat=3)))[:, ::-1]  # set number b in row b
    each = np.stack([np.where(s == 1, p, 1 - p).prod(1) for s in sets], axis=1)
    guess, probability = TASK.guesses(p)
    assert guess.tolist() == [as_list(b) for b in each.argmax(1).tolist()]
    np.testing.assert_allclose(probability, each.max(1))
    for bits in range(8):
        np.testing.assert_allclose(TASK.label_probabilities(p, rows(*[bits] * 20).numpy()), each[:, bits])
    np.testing.assert_allclose(multi_label.least_confidence(p), -np.log(each.max(1)), rtol=1e-5)
    entropy_of_sets = -(each * np.log(each)).sum(1)
    np.testing.assert_allclose(3 * multi_label.entropy(p), entropy_of_sets, rtol=1e-5)


def test_a_prediction_has_every_class_above_the_threshold():
    found = TASK.prediction(np.array([0.7, 0.4, 0.5, 0.1, 0.0]), CLASSES)
    assert found.labels == ("cat", "7")
    assert found.probabilities["cow"] == 0.4


def test_scores_are_largest_at_the_threshold_and_within_their_bounds():
    p = np.array([[0.5, 0.5], [0.5, 1.0], [0.9, 0.1], [1.0, 0.0], [np.nan, 0.5]])
    for name in ("least_confidence", "margin", "entropy"):
        strategy = TASK.strategies[name]
        score = strategy.score(p)
        assert score[0] == pytest.approx(strategy.largest(2, 1))
        assert score[0] >= score[1] > score[3] == 0
        assert np.isnan(score[4]), "a broken network is not taken for a sure one"
    a = TASK.probabilities(outputs(50, 5).numpy())
    largest = multi_label._binary_entropy(a).max(axis=1)
    assert np.argsort(multi_label.margin(a)).tolist() == np.argsort(largest).tolist()
    members = np.stack([p[:4], 1 - p[:4]])
    bald = TASK.strategies["bald"]
    assert bald.score(members)[[0, 3]] == pytest.approx([0.0, bald.largest(2, 2)])


def test_a_selection_is_shared_out_by_the_class_that_is_least_sure():
    p = np.array([[0.9, 0.45, 0.0], [0.3, 0.99, 0.95], [0.5, 0.5, 0.6]])
    assert TASK.group(p).tolist() == [1, 0, 0]
    config_from_tree({"task": "multi_label", "selection": {"per_group": "predicted"}})


def test_the_gradient_factor_is_that_of_the_loss_at_the_set_that_the_network_would_give_itself():
    z = outputs(20, 5).requires_grad_()
    sets = [np.flatnonzero(row).tolist() for row in (torch.sigmoid(z) >= 0.5).numpy()]
    given = pa.chunked_array([pa.array(sets, TASK.label_type)])
    TASK.loss_sum(z, torch.from_numpy(TASK.targets(given))).backward()
    np.testing.assert_allclose(TASK.gradient_factor(TASK.probabilities(z.detach().numpy())), z.grad, atol=1e-6)


# --- what goes by one class ---


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"selection": {"strategy": "cal"}}, "'cal' makes no sense for task 'multi_label'"),
        ({"selection": {"strategy": "vote_entropy"}}, "'vote_entropy' makes no sense"),
        ({"selection": {"class_balance": 0.5}}, "selection.class_balance 0.5 goes by the one class"),
        ({"coreset": {"by": "el2n"}}, "coreset.by el2n goes by the one class"),
        ({"selection": {"wanted_classes": ["3"]}}, "selection.wanted_classes"),
        ({"annotation": {"kind": "files", "labels_per_sample": 2}}, "annotation.labels_per_sample 2 goes"),
        ({"training": {"unlabeled": {"method": "fixmatch"}, "label_smoothing": 0}}, "training.unlabeled.method fix"),
    ],
)  # fmt: skip
def test_what_goes_by_one_class_is_refused_by_name(change, said):
    with pytest.raises(ConfigError, match=said):
        config_from_tree({"task": "multi_label"} | change)
    config_from_tree({"task": "multi_label"})


@pytest.mark.parametrize("kind", [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()])
def test_unsigned_numbers_are_sets_too(kind):
    column = pa.chunked_array([pa.array([[0, 2], [], [3, 3], [9], [1, None], None], pa.list_(kind))])
    assert TASK.invalid_labels(column, 5).to_pylist() == [False, False, True, True, True, True]
    assert as_sets(column.slice(0, 2)).to_pylist() == [[0, 2], []]


def test_nulls_among_lists_of_one_size_are_found():
    gaps = pa.chunked_array([pa.array([[0, 1], None, [1, 1]], pa.list_(pa.int8(), 2))])
    for given in (gaps, gaps.cast(pa.list_(pa.int8()))):
        assert TASK.invalid_labels(given, 4).to_pylist() == [False, True, True]
