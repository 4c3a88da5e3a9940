"""Classification: loss, consensus, metrics, labels and predictions against their definitions."""

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics
import torch
from torch.nn import functional as F

from prunefuse_ray.tasks import TASKS
from prunefuse_ray.tasks.classification import CLASSIFICATION as TASK

CLASSES = ["cat", "cow", "7"]


def test_the_loss_is_that_of_the_paper():
    torch.manual_seed(0)
    z, t, y = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    p, q = torch.softmax(t / 4, 1), torch.softmax(z / 4, 1)
    hard = F.cross_entropy(z, y, reduction="sum")
    expected = 0.7 * hard + 0.3 * 16 * (p * (p / q).log()).sum()
    torch.testing.assert_close(TASK.loss_sum(z, y, teacher=t, weight=0.3, temperature=4.0), expected)
    torch.testing.assert_close(TASK.loss_sum(z, y), hard)
    smoothed = F.cross_entropy(z, y, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(TASK.loss_sum(z, y, smoothing=0.1), smoothed)


def test_the_loss_of_a_committee_is_the_sum_of_its_members():
    torch.manual_seed(1)
    z, t, y = torch.randn(2, 4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for more in ({}, {"teacher": t, "weight": 0.3, "temperature": 2.0}):
        torch.testing.assert_close(
            TASK.loss_sum(z, y, **more), TASK.loss_sum(z[0], y, **more) + TASK.loss_sum(z[1], y, **more)
        )


def test_networks_and_scores_mean_the_same_by_a_consensus():
    """The torch form for training, the mean of probabilities for scores."""
    outputs = np.random.default_rng(2).normal(0, 10, (3, 50, 4)).astype(np.float32)
    for of in (outputs, outputs[:1]):
        mean = torch.softmax(torch.from_numpy(of).double(), 2).mean(0).numpy()
        np.testing.assert_allclose(TASK.probabilities(of).mean(0), mean, rtol=1e-12)
        consensus = TASK.consensus(torch.from_numpy(of)).double().exp().numpy()
        np.testing.assert_allclose(consensus, mean, rtol=1e-4, atol=1e-30)
    assert TASK.consensus(torch.from_numpy(outputs[0])).tolist() == outputs[0].tolist()


def test_an_evaluation_adds_up_over_batches():
    torch.manual_seed(2)
    z, y = torch.randn(50, 3), torch.randint(3, (50,))
    evaluation = TASK.evaluation()
    for rows in (slice(0, 7), slice(7, 50)):
        evaluation.add(z[rows], y[rows])
    found = evaluation.result()
    assert found["accuracy"] == pytest.approx(float((z.argmax(1) == y).float().mean()))
    assert found["loss"] == pytest.approx(float(F.cross_entropy(z, y)))
    assert TASK.metric.name in found
    recall = sklearn.metrics.recall_score(y, z.argmax(1), average=None, labels=range(3))
    assert evaluation.shown()["recall"] == pytest.approx(recall.tolist())


def test_a_class_without_a_test_sample_has_no_recall():
    evaluation = TASK.evaluation()
    evaluation.add(torch.eye(3), torch.tensor([0, 0, 2]))
    assert evaluation.shown()["recall"] == [0.5, None, 1.0]


def test_guesses_and_label_probabilities():
    p = np.array([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]])
    guess, probability = TASK.guesses(p)
    assert (guess.tolist(), probability.tolist()) == ([1, 0], [0.5, 0.7])
    assert TASK.label_probabilities(p, np.array([2, 2])).tolist() == [0.3, 0.2]
    found = TASK.prediction(p[0], CLASSES)
    assert (found.label, found.probability, found.probabilities) == ("cow", 0.5, {"cat": 0.2, "cow": 0.5, "7": 0.3})


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ("cow", 1),
        (" cat ", 0),
        (2, 2),
        (np.int64(1), 1),
        ("7", 2),
        ("0", None),
        (3, None),
        (True, None),
        (-1, None),
        ("dog", None),
        (None, None),
    ],
)
def test_labels_are_names_or_numbers_of_classes(given, label):
    assert TASK.label(given, CLASSES) == label


def test_text_is_a_number_only_where_no_name_looks_like_another_number():
    assert [TASK.label(t, ["cat", "dog"]) for t in ("0", "1", "2")] == [0, 1, None]
    assert [TASK.label(t, ["0", "1"]) for t in ("0", "1")] == [0, 1]
    stars = ["1", "2", "3"]
    assert [TASK.label(t, stars) for t in ("0", "1", "2", "3")] == [None, 0, 1, 2], "not half by name, half by number"
    assert [TASK.label(n, stars) for n in (0, 1, 2, 3)] == [0, 1, 2, None], "a number is a number"
    halves = ["0.5", "1.0", "1.5", "2.0"]
    assert [TASK.label(t, halves) for t in ("1", "2", "1.0", "2.0")] == [None, None, 1, 3]
    assert [TASK.label(t, ["-1", "1"]) for t in ("0", "-1", "1")] == [None, 0, 1]
    assert [TASK.label(t, ["0.0", "1.0"]) for t in ("0", "1")] == [0, 1]


def test_names_of_classes_are_the_same_in_both_unicode_forms():
    composed, decomposed = "M\u00fcll", "Mu\u0308ll"
    assert TASK.label(decomposed, ["x", composed]) == TASK.label(composed, ["x", decomposed]) == 1


def test_a_column_of_labels_is_checked_row_by_row():
    column = pa.chunked_array([pa.array([0, 2, None], pa.int32()), pa.array([3, -1], pa.int32())])
    assert TASK.invalid_labels(column, 3).to_pylist() == [False, False, True, True, True]
    with pytest.raises(TypeError, match=r"integers 0 \.\. classes-1"):
        TASK.invalid_labels(pa.chunked_array([["0"]]), 3)


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_offers_strategies_that_score(name):
    task = TASKS[name]
    assert "random" in task.strategies
    assert any(s.score is not None for s in task.strategies.values())
