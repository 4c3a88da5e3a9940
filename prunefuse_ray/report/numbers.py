"""The report's section on the figure beside the metric over the label budget; of predicted numbers also each beside
the truth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prunefuse_ray.report import html, plots
from prunefuse_ray.report.html import Html, number, tag
from prunefuse_ray.report.view import RoundView, RunView

PHASES = (("train", "proxy"), ("finetune", "fused"))
SIZE = (520, 300)


def title(run: RunView) -> str:
    return "Predicted numbers" if run.numbers or not run.beside else run.beside[0].title


def section(run: RunView) -> Html | None:
    """None of tasks with one figure alone, and where nothing was tested."""
    drawings = [*_errors(run), *_predicted(run)]
    return html.section("numbers", title(run), tag("div", *drawings, class_="two even")) if drawings else None


def _errors(run: RunView) -> Iterator[Html]:
    """The first of the figures beside the metric over the labels."""
    for metric in run.beside[:1]:
        series = []
        for (phase, color), name in zip(PHASES, run.names, strict=True):
            found = [(view.labels, number(_measured(view, phase, metric.measured))) for view in run.rounds]
            points = [(x, y) for x, y in found if y is not None]
            if points:
                label = f"{name} {metric.text(points[-1][1])}"
                series.append(
                    plots.Line(x=[x for x, _ in points], y=[y for _, y in points], color=color, label=label)
                )  # fmt: skip
        if series:
            words = f"{metric.title} on the test set over the number of labels"
            drawn = plots.lines("errors", words, series, size=SIZE, x_label="labels", y_percent=metric.share)
            yield html.figure(drawn, words + ", in the units of the labels" * run.numbers + ".")


def _predicted(run: RunView) -> Iterator[Html]:
    """Predictions beside the truth, of the last network that was tested."""
    for (phase, color), name in reversed(list(zip(PHASES, run.names, strict=True))):
        for view in reversed(run.rounds):
            points = _measured(view, phase, "test_points")
            if points:
                target = str((run.pool.get("classes") or ["label"])[0])
                words = f"{target} as the {name} network predicts it beside the truth, in round {view.round}"
                drawn = plots.beside_truth("predicted", words, points, color, size=SIZE)
                more = "" if len(run.pool.get("classes") or []) < 2 else " The first of the targets."
                yield html.figure(drawn, f"{words}; {len(points):,} samples of the test set.{more}")
                return


def _measured(view: RoundView, phase: str, key: str) -> Any:
    return view.metrics.get("phases", {}).get(phase, {}).get(key)
