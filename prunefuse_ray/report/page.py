"""One run as one self-contained HTML page: what was chosen, how accurate it made the networks, what it cost.

Nothing here reads a run directory or knows Ray: a `RunView` comes in, a string goes out, and the same view gives the
same bytes. Whatever a run has not measured yet is left out or shown as "–".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prunefuse_ray.acquisition.learning_curve import Forecast
from prunefuse_ray.report import baseline, class_counts, contact_sheets, doubtful_labels, html, numbers, plots, pool
from prunefuse_ray.report.html import DASH, Child, Html, count, counted, duration, join, number, percent, quantity, tag
from prunefuse_ray.report.outlook import outlook, words
from prunefuse_ray.report.view import RoundView, RunView, ScoreHistogram

CLASSES_SHOWN = 12
LOSSES_SHOWN = 10
HIDDEN = 0.1  # of the longest bar: what is shorter can hardly be compared
WIDTH = 1080  # px, of the page's text


def render(run: RunView) -> str:
    """The HTML page of a run, finished or not."""
    sections = {
        "metric": (run.metric.title, _over_labels(run)),
        "pool": ("Pool", pool.section(run)),
        "numbers": (numbers.title(run), numbers.section(run)),
        "rounds": ("Rounds", _rounds(run)),
        "classes": ("Classes", class_counts.section(run)),
        "cost": ("Time and MACs", _cost(run)),
        "scores": ("Scores", _scores(run)),
        "samples": ("Samples", contact_sheets.samples(run)),
        "doubts": ("Doubtful labels", doubtful_labels.section(run)),
        "training": ("Training", _training(run)),
        "rejected": ("Rejected", _rejected(run)),
        "configuration": ("Configuration", _configuration(run)),
    }
    present = {key: (title, body) for key, (title, body) in sections.items() if body is not None}
    return html.page(
        run.name,
        _header(run),
        tag("nav", (join(tag("a", title, href=f"#{key}"), " ") for key, (title, _) in present.items())),
        (body for _, body in present.values()),
    )


# Reading the metrics: every value may be missing.


def _at(tree: Any, *path: str) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _phases_of(view: RoundView) -> Mapping[str, Any]:
    return _at(view.metrics, "phases") or {}


def _value(view: RoundView, phase: str, key: str) -> float | None:
    return number(_at(view.metrics, "phases", phase, key))


def _total(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _result_of(run: RunView, view: RoundView, key: str) -> float | None:
    for entry in _at(run.result, "rounds") or []:
        if _at(entry, "round") == view.round:
            return number(_at(entry, key))
    return None


def _proxy(run: RunView, view: RoundView) -> float | None:
    """The metric of the round's proxy."""
    measured = _value(view, "train", run.metric.measured)
    return _result_of(run, view, f"proxy_{run.metric.name}") if measured is None else measured


def _fused(run: RunView, view: RoundView) -> float | None:
    """The metric of the network that was fused with the round's proxy."""
    measured, key = _value(view, "finetune", run.metric.measured), f"fused_{run.metric.name}"
    if measured is None:
        measured = _result_of(run, view, key)
    if measured is None and view is run.rounds[-1]:
        measured = number(_at(run.result, key))
    return measured


def _its(run: RunView) -> str:
    """The network that selects, beside the one that is wanted."""
    return "its proxy" if run.names == ("proxy", "fused") else f"the {run.names[0]}"


def _written_metric(run: RunView, value: float | None) -> str:
    return DASH if value is None else run.metric.text(value)


def _selection_macs(run: RunView) -> tuple[float | None, float | None]:
    """(what scoring the pool cost, what it would have cost with the dense network)."""
    proxy, dense = number(_at(run.result, "selection_macs")), number(_at(run.result, "dense_selection_macs"))
    if proxy is None or dense is None:
        passes = [run.initial, *(_at(view.metrics, "phases", "score") for view in run.rounds)]
        proxy, dense = (_total(number(_at(one, key)) for one in passes) for key in ("macs", "dense_macs"))
    return proxy, dense


def _phases(run: RunView) -> list[str]:
    """The phases that any round has, in the order of the method, unknown ones last."""
    found = {str(phase) for view in run.rounds for phase in _phases_of(view)}
    return [phase for phase in plots.PHASES if phase in found] + sorted(found - set(plots.PHASES))


def _seconds(view: RoundView) -> float | None:
    return _total(_value(view, phase, "seconds") for phase in _phases_of(view))


def _run_seconds(run: RunView) -> float | None:
    total = number(_at(run.result, "seconds"))
    if total is not None:
        return total
    before = (number(_at(figures, "seconds")) for figures in (run.pretraining, run.initial))
    return _total([*before, *(_seconds(view) for view in run.rounds)])


# The head of the page.


def _header(run: RunView) -> Html:
    words, kind = ("complete", "state") if run.complete else ("in progress", "state running")
    return tag(
        "header",
        tag("h1", run.name, tag("span", words, class_=kind)),
        tag("p", tag("span", run.directory, class_="id"), class_="path"),
        tag("p", _summary(run), class_="summary"),
        html.tiles(_headline(run)),
    )


def _labels(run: RunView) -> int:
    return run.rounds[-1].labels if run.rounds else 0


def _summary(run: RunView) -> str:
    """The run in a few sentences."""
    tested = [view for view in run.rounds if _proxy(run, view) is not None]
    fused = [view for view in run.rounds if _fused(run, view) is not None]
    view = next(reversed(fused or tested or run.rounds), None)
    words = f"{count(view.labels if view else 0)} of {count(_at(run.pool, 'rows'))} pool samples labeled"
    proxy = _proxy(run, view) if view else None
    selects, target = run.names
    yet = "." if run.complete else " yet."
    if view and fused:
        words = f"With {words}, the {target} network reaches {_written_metric(run, _fused(run, view))} on the test set"
        words += "." if proxy is None else f"; {_its(run)} reaches {_written_metric(run, proxy)}."
        words += _uncertain(run, view, _fused(run, view))
    elif proxy is not None:
        words = f"With {words}, the {selects} reaches {_written_metric(run, proxy)} on the test set; "
        words += f"nothing is {'fused' if target == 'fused' else 'trained with its labels'}{yet}"
    else:
        words += f"; no network is trained{yet}"
    words += "".join(f" {line}" for line in baseline.words(run.result or {}, run.metric)[1:])
    share = _share(*_selection_macs(run))
    if share is not None:
        words += f" Scoring the pool took {percent(share)} of the MACs that the dense network would have needed."
    if not run.complete and run.rounds:
        done = [phase for phase in _phases(run) if phase in _phases_of(run.rounds[-1])]
        words += f" Last finished: {done[-1] if done else 'nothing'} of round {run.rounds[-1].round}."
    return words


FEW_POINTS = 0.05
"""Half of the width of an interval that is worth a sentence."""


def wilson(share: float, tested: float) -> tuple[float, float]:
    """The 95 % interval of a share of so many samples (Wilson 1927)."""
    z2 = 1.96**2 / tested
    middle, half = share + z2 / 2, 1.96 * math.sqrt(share * (1 - share) / tested + z2 / (4 * tested))
    return max(0.0, middle - half) / (1 + z2), min(1 + z2, middle + half) / (1 + z2)


def _uncertain(run: RunView, view: RoundView, share: float | None) -> str:
    """How far off an accuracy on so few test samples may be; '' where that is less than FEW_POINTS."""
    tested = _value(view, "train", "tested")
    if run.metric.name != "accuracy" or share is None or not tested:
        return ""
    low, high = wilson(share, tested)
    if high - low < 2 * FEW_POINTS:
        return ""
    return f" The test set has {count(tested)} samples: the accuracy may be from {low:.0%} to {high:.0%} (95 %)."


def _headline(run: RunView) -> list[tuple[str, Child, Child]]:
    rows = number(_at(run.pool, "rows"))
    proxies = [(view.round, a) for view in run.rounds if (a := _proxy(run, view)) is not None]
    proxy = proxies[-1][1] if proxies else None
    fused, its_proxy = next(
        ((a, _proxy(run, view)) for view in reversed(run.rounds) if (a := _fused(run, view)) is not None),
        (None, None),
    )
    macs, dense_macs = _selection_macs(run)

    selects, target = run.names
    against = ("not fused" if target == "fused" else "not trained") + " yet" * (not run.complete)
    if fused is not None:
        against = (
            "after fine-tuning" if its_proxy is None else f"{run.metric.difference(fused - its_proxy)} on {_its(run)}"
        )
    grown = "not trained yet"
    if proxy is not None:
        first, start = proxies[0]
        grown = f"{run.metric.difference(proxy - start)} since round {first}" if len(proxies) > 1 else "after one round"
    cost = "nothing scored" if run.complete else "nothing scored yet"
    if dense_macs:
        cost = f"of dense: {quantity(macs)} vs {quantity(dense_macs)}"
    share = f"{percent(_share(_labels(run), rows))} of {count(rows)} in the pool"
    if tested := next((n for view in run.rounds if (n := _value(view, "label", "test_samples"))), None):
        share += f", {count(tested)} more for the test set"
    return [
        ("Labels used", count(_labels(run)), share),
        (f"{target.capitalize()} {run.metric.inside}", _written_metric(run, fused), against),
        (f"{selects.capitalize()} {run.metric.inside}", _written_metric(run, proxy), grown),
        ("Selection MACs", percent(_share(macs, dense_macs)), cost),
        (
            "Wall time" if run.complete else "Time so far",
            duration(_run_seconds(run)),
            counted(len(run.rounds), "round"),
        ),
    ]


# The sections; each is None where the run has nothing for it.


def _over_labels(run: RunView) -> Html:
    selects, target = run.names
    proxy = [(view.labels, a) for view in run.rounds if (a := _proxy(run, view)) is not None]
    fused = [(view.labels, a) for view in run.rounds if (a := _fused(run, view)) is not None]
    series = [
        plots.Line(
            x=[x for x, _ in points],
            y=[y for _, y in points],
            color=color,
            label=f"{name} {run.metric.text(points[-1][1])}",
        )
        for color, name, points in (("proxy", selects, proxy), ("fused", target, fused))
        if points
    ]
    drawn: Html = tag("p", "No network has been tested yet.", class_="note")
    caption = f"{run.metric.title} on the test set after training on the labels so far, the initial set included."
    tested = min((n for view in run.rounds if (n := _value(view, "train", "tested"))), default=None)
    if found := outlook(proxy, run.metric, tested):
        series.append(_predicted(found))
        caption += f" Dashed: the {selects}'s learning curve as it is fitted, with its 80% band. "
        caption += words(found, run.metric, run.names[0])
    if series:
        drawn = html.figure(
            plots.lines(
                "metric",
                f"{run.metric.title} of the {selects} and the {target} network on the test set over the labels",
                series,
                size=(665, 300),
                x_label="labels",
                y_percent=run.metric.share,
            ),
            caption,
        )
    return html.section(
        "metric", f"{run.metric.title} over label budget", tag("div", drawn, html.facts(_facts(run)), class_="two")
    )


def _predicted(found: Forecast) -> plots.Line:
    labels, low, middle, high = zip(*found.curve, strict=True)
    return plots.Line(
        x=labels,
        y=middle,
        band=(low, high),
        color="proxy",
        strength=0.5,
        dashed=True,
        points=False,
    )


def _facts(run: RunView) -> Iterator[tuple[str, Child]]:
    yield (
        "Pool",
        (
            *((tag("span", path, class_="id"), tag("br")) if (path := _at(run.pool, "path")) else ()),
            f"{count(_at(run.pool, 'rows'))} samples, {count(_at(run.pool, 'files'))} files, "
            f"{quantity(_at(run.pool, 'bytes'), 'B')}",
        ),
    )
    classes = [str(name) for name in _at(run.pool, "classes") or []]
    if classes:
        more = ", …" if len(classes) > CLASSES_SHOWN else ""
        yield "Targets" if run.numbers else "Classes", f"{len(classes):,}: {', '.join(classes[:CLASSES_SHOWN])}{more}"
    if told := baseline.words(run.result or {}, run.metric):
        yield "Baseline", join((tag("span", line.removeprefix("baseline ")) for line in told), tag("br"))
    if learned := _at(run.result, "learned"):
        yield (
            "Learned from the pool",
            f"{count(_at(learned, 'samples'))} of its samples, {count(_at(learned, 'unreadable'))} more unreadable, "
            f"{duration(_at(learned, 'seconds'))}",
        )
    strategies = list(dict.fromkeys(view.strategy for view in run.rounds))
    if strategies:
        yield "Strategy", ", then ".join(strategies)
    selects = run.names[0].capitalize()
    sizes = (f"{selects} size", "parameters", "parameters"), (f"{selects} cost", "macs_per_sample", "MACs per sample")
    for title, key, unit in sizes:
        proxy, dense = (number(_at(run.result, key, network)) for network in ("proxy", "dense"))
        if proxy is not None:
            share = percent(_share(proxy, dense))
            yield title, f"{quantity(proxy)} {unit}, {share} of the dense network's {quantity(dense)}"
    clusters = [_at(view.metrics, "cluster") for view in run.rounds]
    parts = {kind: html.span(_at(cluster, kind) for cluster in clusters) for kind in ("nodes", "cpus", "gpus")}
    if parts["cpus"] != DASH:
        nodes = "node" if parts["nodes"] == "1" else "nodes"
        yield "Cluster", f"{parts['nodes']} {nodes}, {parts['cpus']} CPUs, {parts['gpus']} GPUs"
    lost = [(f"round {view.round}, {phase}", told) for view in run.rounds for phase, told in _lost(_phases_of(view))]
    lost = [("pretrain", told) for told in _at(run.pretraining, "lost_workers") or []] + lost
    if lost:
        lines = [f"{where}: {told}" for where, told in lost[:LOSSES_SHOWN]]
        lines += [f"and {len(lost) - LOSSES_SHOWN:,} more"] if len(lost) > LOSSES_SHOWN else []
        yield "Training lost workers", join((tag("span", line) for line in lines), tag("br"))


def _lost(phases: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Phase -> how workers of its training ended too early; the training went on from a checkpoint each time."""
    for phase, metrics in phases.items():
        yield from ((phase, str(told)) for told in _at(metrics, "lost_workers") or [])


def _rounds(run: RunView) -> Html | None:
    if not run.rounds:
        return None
    scoring = ("Samples", "Per second", "Actors", "MACs", "Of dense", "Rejected")
    selects, target = (name.capitalize() for name in run.names)
    head = ("Round", "Strategy", "Chosen", "Total", selects, "Loss", target, *scoring, "Time")
    rows = []
    for view in run.rounds:
        macs = _value(view, "score", "macs")
        rows.append(
            [
                view.round,
                view.strategy,
                count(view.chosen),
                count(view.labels),
                _written_metric(run, _proxy(run, view)),
                html.decimal(_value(view, "train", "test_loss")),
                _written_metric(run, _fused(run, view)),
                count(_value(view, "score", "samples")),
                html.rate(_value(view, "score", "samples_per_second")),
                html.span(_at(view.metrics, "phases", "score", "actors") or []),
                quantity(macs),
                percent(_share(macs, _value(view, "score", "dense_macs"))),
                count(_value(view, "score", "rejected")),
                duration(_seconds(view)),
            ]
        )
    groups = [("", 2), ("Labels", 2), ("Test set", 3), ("Scoring the pool", 6), ("", 1)]
    why = [f"round {view.round} by {view.strategy}: {view.reason}" for view in run.rounds if view.reason]
    decided = tag("p", f"Selected {'; '.join(why)}.", class_="note") if why else None
    held = [words for view in run.rounds if (words := _held_back(view))]
    left = tag("p", f"Held back, unlike any labeled sample: {'; '.join(held)}.", class_="note") if held else None
    kept = [
        f"round {view.round} on {count(n)} of its {count(view.labels)} labels"
        for view in run.rounds
        if (n := _value(view, "finetune", "coreset"))
    ]
    part = tag("p", f"Fine-tuned on a core-set: {'; '.join(kept)}.", class_="note") if kept else None
    return html.section("rounds", "Rounds", html.table(head, rows, left=2, groups=groups), decided, left, part)


def _held_back(view: RoundView) -> str | None:
    told = _phases_of(view).get("select", {})
    if not told.get("held_back"):
        return None
    named = ", ".join(told["held_back_farthest"])
    return (
        f"{counted(told['held_back'], 'sample')} before round {view.round} "
        f"(rounds/{view.round:03d}/held_back.parquet; the farthest: {named})"
    )


def _cost(run: RunView) -> Html | None:
    phases = _phases(run)
    if not phases:
        return None
    drawings = [d for d in (_time_bars(run, phases), _macs_bars(run)) if d is not None]
    return html.section(
        "cost",
        "Time and MACs per phase",
        tag("p", (html.swatch(plots.phase_color(phase), phase) for phase in phases)),
        tag("div", *drawings, class_="two even"),
        _cost_table(run, phases),
    )


def _time_bars(run: RunView, phases: list[str]) -> Html | None:
    rows = [
        plots.Bar(
            label=str(view.round),
            parts=[(plots.phase_color(p), s) for p in phases if (s := _value(view, p, "seconds"))],
        )
        for view in run.rounds
    ]
    longest = max(sum(length for _, length in row.parts) for row in rows)
    if not longest:
        return None
    divisor, unit = plots.time_axis(longest)
    drawn = plots.bars(
        "time", "Seconds per phase and round", rows, width=520, divisor=divisor, x_label=unit, y_label="round"
    )
    return html.figure(drawn, "Wall time of each round's phases.", title="Time")


def _macs_bars(run: RunView) -> Html | None:
    order = ["score", "train", "finetune"]  # scoring from zero, beside what it is compared with
    caption = "Multiply-accumulate operations."
    dense = max(_value(view, "score", "dense_macs") or 0.0 for view in run.rounds)
    tuning = [_value(view, "finetune", "macs") or 0.0 for view in run.rounds]
    if 0 < dense < HIDDEN * max(tuning):
        order.remove("finetune")
        caption += f" Fine-tuning, {quantity(sum(tuning))} in all, is left out: beside it the rest would not show."
    rows = [
        plots.Bar(
            label=str(view.round),
            parts=[(plots.phase_color(p), m) for p in order if (m := _value(view, p, "macs"))],
            reference=_value(view, "score", "dense_macs"),
        )
        for view in run.rounds
    ]
    longest = max(max(sum(length for _, length in row.parts), row.reference or 0.0) for row in rows)
    if not longest:
        return None
    divisor, unit = plots.macs_axis(longest)
    drawn = plots.bars(
        "macs", "MACs per phase and round", rows, width=520, divisor=divisor, x_label=unit, y_label="round"
    )
    if dense:
        caption += " Hollow: scoring the same samples with the dense network."
    return html.figure(drawn, caption, title="MACs")


def _cost_table(run: RunView, phases: list[str]) -> Html:
    def sums(key: str) -> dict[str, float | None]:
        return {phase: _total(_value(view, phase, key) for view in run.rounds) for phase in phases}

    before = [] if run.initial is None else [("score, for the initial set", run.initial)]
    if run.pretraining is not None:
        before.append((f"pretrain ({run.pretraining['method']})", run.pretraining))
    seconds, macs = sums("seconds"), sums("macs")
    all_seconds = _total([*seconds.values(), *(number(figures.get("seconds")) for _, figures in before)])
    all_macs = _total([*macs.values(), *(number(figures.get("macs")) for _, figures in before)])
    rows: list[Sequence[Child]] = [
        (
            html.swatch(plots.phase_color(phase), phase),
            count(sum(phase in _phases_of(view) for view in run.rounds)),
            duration(seconds[phase]),
            percent(_share(seconds[phase], all_seconds)),
            quantity(macs[phase]),
            percent(_share(macs[phase], all_macs)),
            count(_total(_value(view, phase, "epochs") for view in run.rounds)),
            html.span((_value(view, phase, "samples_per_second") or None for view in run.rounds), html.rate),
        )
        for phase in phases
    ]
    for title, figures in before:
        own, cost = number(figures.get("seconds")), number(figures.get("macs"))
        shares = percent(_share(own, all_seconds)), percent(_share(cost, all_macs))
        told = html.rate(figures.get("epochs")), html.rate(figures.get("samples_per_second"))
        rows.insert(0, (title, "", duration(own), shares[0], quantity(cost), shares[1], *told))
    sum_of = tag("b", "all phases"), tag("b", duration(all_seconds)), tag("b", quantity(all_macs))
    rows.append((sum_of[0], "", sum_of[1], "", sum_of[2], "", "", ""))
    wall = _run_seconds(run)
    if wall is not None and all_seconds is not None and wall - all_seconds > max(1.0, 0.01 * wall):
        rows.append(("before round 0", "", duration(wall - all_seconds), "", "", "", "", ""))
    head = ("Phase", "Rounds", "Time", "Share", "MACs", "Share", "Epochs", "Samples per second")
    return html.table(head, rows)


def _scores(run: RunView) -> Html | None:
    panels = [
        plots.Histogram(
            title=f"Round {view.round}",
            edges=np.asarray(view.scores.edges, dtype=float),
            counts=np.asarray(view.scores.counts, dtype=float),
            threshold=number(view.scores.threshold),
        )
        for view in run.rounds
        if view.scores is not None and _drawable(view.scores)
    ]
    if not panels:
        return None
    drawn = plots.histograms("scores", "Distribution of the pool's scores in each round", panels, width=WIDTH)
    caption = (
        "Samples per score, counts on a logarithmic scale. Dashed: the smallest score that was chosen; "
        "colored: the scores at or over it."
    )
    return html.section("scores", "Scores of the pool", html.figure(drawn, caption))


def _drawable(scores: ScoreHistogram) -> bool:
    edges = np.asarray(scores.edges, dtype=float)
    return bool(np.sum(scores.counts) > 0 and np.all(np.isfinite(edges)) and edges[0] < edges[-1])


def _training(run: RunView) -> Html | None:
    losses = _curves(run, "train", "proxy", lambda phase: list(enumerate(_at(phase, "train_loss") or [], 1)))
    tuned = _curves(
        run,
        "finetune",
        "fused",
        lambda phase: [(one["epoch"], one.get(run.metric.name)) for one in _at(phase, "evaluations") or []],
    )
    drawings = []
    if losses:
        caption = "Mean training loss of each epoch." + (" Stronger: later rounds." if len(losses) > 1 else "")
        drawn = plots.lines(
            "losses", f"Training loss of the {run.names[0]} per epoch", losses, size=(520, 250), x_label="epoch"
        )
        drawings.append(html.figure(drawn, caption, title=run.names[0].capitalize()))
    if tuned:
        caption = f"{run.metric.title} on the test set while it was fine-tuned; epoch 0 is before that."
        last = [view for view in run.rounds if _value(view, "finetune", run.metric.measured) is not None]
        proxy = _proxy(run, last[-1]) if last else None
        if proxy is not None:
            ends = min(line.x[0] for line in tuned), max(line.x[-1] for line in tuned)
            same = plots.Line(x=ends, y=(proxy, proxy), color="proxy", label=run.names[0], dashed=True, points=False)
            tuned = [same, *tuned]
            fused_from = "the proxy it was fused from" if run.names == ("proxy", "fused") else _its(run)
            caption += f" Dashed: {fused_from}, in round {last[-1].round}."
        drawn = plots.lines(
            "tuning",
            f"{run.metric.title} of the {run.names[1]} network on the test set per epoch",
            tuned,
            size=(520, 250),
            x_label="epoch",
            y_percent=run.metric.share,
        )
        drawings.append(html.figure(drawn, caption, title=f"{run.names[1].capitalize()} network"))
    if not drawings:
        return None
    return html.section("training", "Training", tag("div", *drawings, class_="two even"))


def _curves(
    run: RunView, phase: str, color: str, measured: Callable[[Any], Sequence[tuple[int, Any]]]
) -> list[plots.Line]:
    """A curve per round, the later the stronger; the first and the last are named.

    Args:
        measured: (epoch, value) from the phase's figures.
    """
    found = []
    for view in run.rounds:
        told = measured(_at(view.metrics, "phases", phase))
        points = [(epoch, y) for epoch, value in told if (y := number(value)) is not None]
        if points:
            found.append((view.round, points))
    return [
        plots.Line(
            x=[x for x, _ in points],
            y=[y for _, y in points],
            color=color,
            label=f"round {name}" if i in (0, len(found) - 1) else None,
            strength=1.0 if len(found) == 1 else 0.3 + 0.7 * i / (len(found) - 1),
            points=len(points) <= 20,
        )
        for i, (name, points) in enumerate(found)
    ]


def _rejected(run: RunView) -> Html:
    if not run.rejected_count:
        return html.section("rejected", "Rejected samples", tag("p", "No sample was rejected."))
    share = percent(_share(run.rejected_count, number(_at(run.pool, "rows"))), 2)
    were = "was" if run.rejected_count == 1 else "were"
    words = f"{counted(run.rejected_count, 'sample')} ({share} of the pool) {were} rejected and cannot be chosen."
    if len(run.rejected) < run.rejected_count and run.rejected:
        words += f" The first {len(run.rejected):,}:"
    rows = [(tag("span", name, class_="id"), reason) for name, reason in run.rejected]
    shown = html.table(("Id", "Reason"), rows, left=2, class_="text") if rows else None
    return html.section("rejected", "Rejected samples", tag("p", words), shown)


def _configuration(run: RunView) -> Html | None:
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, value in run.config.items():
        if isinstance(value, Mapping) and value:
            groups.setdefault(str(key), []).extend(_leaves(value))
        else:
            groups.setdefault("", []).append((str(key), _written(value)))
    if not groups:
        return None
    blocks = [
        tag("div", tag("h3", title) if title else None, html.facts(pairs)) for title, pairs in sorted(groups.items())
    ]
    settings = counted(sum(map(len, groups.values())), "setting")
    tree = tag("div", *blocks, class_="config")
    shown = html.details(f"The resolved configuration: {settings}", tree, opened=False)
    return html.section("configuration", "Configuration", shown)


def _leaves(tree: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", _written(value)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
