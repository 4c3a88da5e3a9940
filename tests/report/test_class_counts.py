"""The page's labels by class, and what it says of the next labels."""

from dataclasses import replace
from unittest.mock import Mock

from prunefuse_ray.acquisition.learning_curve import forecast
from prunefuse_ray.report import plots
from prunefuse_ray.report.outlook import outlook, words
from prunefuse_ray.report.page import render
from prunefuse_ray.tasks.classification import CLASSIFICATION
from prunefuse_ray.tasks.task import Metric
from tests.report.test_page import Page, round_view, run_view


def with_counts(*counts):
    return run_view(rounds=[round_view(r, {"label": {"class_counts": c}}) for r, c in enumerate(counts)])


def test_classes_stand_with_their_labels_of_each_round_the_rarest_first():
    page = Page(render(with_counts([3, 0, 7], [30, 2, 18])))
    assert [row for row in page.cells if row[0].startswith("cat")] == [
        ["cat1", "0", "2"], ["cat2", "7", "18"], ["cat0", "3", "30"],
    ]  # fmt: skip
    assert "From 2 to 30 labels of a class" in page.sections["classes"]
    assert "No label yet" not in page.sections["classes"]


def test_the_recall_of_each_class_stands_beside_its_labels():
    """Of the fused network where one was tested; a class without a test sample has none and counts in no mean."""
    label, proxy = {"class_counts": [3, 0, 7]}, {"test_recall": [0.0, 0.5, 1.0]}
    fused = {"test_recall": [0.25, None, 0.75]}
    for phases, network, cells, mean in (
        ({"label": label, "train": proxy}, "proxy", ["50.0%", "0.0%", "100.0%"], "50.0% in the mean"),
        ({"label": label, "train": proxy, "finetune": fused}, "fused", ["–", "25.0%", "75.0%"], "50.0% in the mean"),
    ):
        page = Page(render(run_view(rounds=[round_view(0, phases)])))
        assert [row[-1] for row in page.cells if row[0].startswith("cat")] == cells
        assert f"the last {network} network recognizes; {mean}" in " ".join(page.sections["classes"].split())


def test_classes_without_labels_are_named():
    said = " ".join(Page(render(with_counts([3, 0, 7]))).sections["classes"].split())
    assert "No label yet of 1 of 3 classes: cat1" in said


def test_runs_of_earlier_versions_have_no_such_section():
    assert "classes" not in Page(render(run_view())).sections


def test_what_more_labels_bring_is_said_and_drawn():
    accuracies = [0.5, 0.62, 0.68, 0.72, 0.75]
    views = [round_view(r, {"train": {"test_accuracy": a}}, labels=100 * (r + 1)) for r, a in enumerate(accuracies)]
    run = run_view(rounds=views, result=None)
    said = Page(render(run)).sections["metric"]
    assert "100 more labels are expected to bring the proxy +" in said
    assert "hardly worth" not in said
    assert "expected" not in Page(render(replace(run, rounds=views[:3]))).sections["metric"]


def test_the_fitted_curve_is_drawn_as_the_median_of_its_band(monkeypatch):
    """The band is not symmetric: its middle is another curve."""
    accuracies, drawn = [0.5, 0.62, 0.68, 0.72, 0.75], Mock(wraps=plots.lines)
    views = [round_view(r, {"train": {"test_accuracy": a}}, labels=100 * (r + 1)) for r, a in enumerate(accuracies)]
    monkeypatch.setattr(plots, "lines", drawn)
    render(run_view(rounds=views, result=None))
    (line,) = [line for call in drawn.call_args_list for line in call.args[2] if line.dashed]
    _, low, middle, high = zip(*forecast([100, 200, 300, 400, 500], accuracies, 100).curve, strict=True)
    assert list(line.y) == list(middle)
    assert [list(end) for end in line.band] == [list(low), list(high)]


def test_labels_that_bring_nothing_are_said_to_be_hardly_worth_it():
    points = list(zip([500, 1000, 1500, 2000, 2500], [0.90, 0.930, 0.931, 0.930, 0.9305], strict=True))
    found = outlook(points, CLASSIFICATION.metric)
    assert found == forecast(*zip(*points, strict=True), 500)
    assert "hardly worth it: the gain is expected to stay below 0.5 points" in words(
        found, CLASSIFICATION.metric, "proxy"
    )
    assert outlook(points, Metric(name="error", title="Error", share=False)) is None


def test_small_rounds_do_not_make_labels_worthless():
    found = outlook([(1000 + 10 * r, 0.50 + 0.002 * r) for r in range(6)], CLASSIFICATION.metric)
    assert found.more == 210
    assert "hardly worth" not in words(found, CLASSIFICATION.metric, "proxy")


def test_equal_figures_of_twenty_test_samples_say_nothing():
    """One of them is five points; of a thousand the same figures say that the curve is flat."""
    points = [(n, 0.75) for n in (100, 200, 300, 400)]
    assert outlook(points, CLASSIFICATION.metric, tested=20).worth
    assert not outlook(points, CLASSIFICATION.metric, tested=100_000).worth


def test_a_short_last_round_does_not_say_what_a_whole_one_would_bring():
    labels, accuracies = [100, 200, 300, 400, 403], [0.5, 0.62, 0.68, 0.72, 0.721]
    found = outlook(list(zip(labels, accuracies, strict=True)), CLASSIFICATION.metric)
    assert found == forecast(labels, accuracies, 100)
    assert "hardly worth" not in words(found, CLASSIFICATION.metric, "proxy")


def test_a_round_under_way_leaves_the_band_as_wide_as_the_test_set_makes_it(monkeypatch):
    """Its own training has no figures yet."""
    figures = [{"train": {"test_accuracy": 0.5 + r / 10, "tested": 20}} for r in range(4)] + [{}]
    views = [round_view(r, metrics, labels=100 * (r + 1)) for r, metrics in enumerate(figures)]
    asked = Mock(return_value=None)
    monkeypatch.setattr("prunefuse_ray.report.page.outlook", asked)
    render(run_view(rounds=views, result=None))
    assert asked.call_args.args[2] == 20
