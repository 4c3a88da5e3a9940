"""A sweep as one self-contained HTML page: how accurate each combination is at equal labels, and what choosing cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from prunefuse_ray.config.files import differences, flatten, to_tree
from prunefuse_ray.config.schema import Config
from prunefuse_ray.report import html, plots
from prunefuse_ray.report.html import DASH, Child, Html, count, counted, duration, join, percent, quantity, tag
from prunefuse_ray.sweep.analysis import (
    Point,
    Stat,
    best,
    compared_at,
    measured_network,
    pareto,
    points,
    reference_of,
    relative,
)
from prunefuse_ray.sweep.results import COMPLETE, FAILED, STOPPED, UNFINISHED, SweepResult, expected

COLORS = ("proxy", "fused", "score", "select", "label", "fuse", "ink")
DRAWN = 14  # curves that can still be told apart, half of them dashed
NAMES = {"fused": "target", "proxy": "selecting network", "baseline": "baseline on the same labels"}


class _View:
    """A sweep's results with what every section asks of them."""

    def __init__(self, result: SweepResult) -> None:
        self.result, self.sweep, self.points = result, result.sweep, points(result)
        self.metric, self.network = result.metric, measured_network(self.points, self.sweep)
        self.where = compared_at(result)
        self.budgets_differ = len({tuple(r.trial.config.selection.budgets) for r in result.trials}) > 1
        self.best = best(self.points, self.network)
        self.status = Counter(r.outcome.status for r in result.trials)
        self.trials = expected(self.sweep, result.root, len(result.trials))
        self.status[UNFINISHED] += self.trials - len(result.trials)
        ranked = sorted(self.points, key=self._order)
        shown = {p.name for p in ranked[:DRAWN]}
        self.drawn = [p for p in self.points if p.name in shown]

    def _order(self, point: Point) -> tuple[float, bool]:
        """The best first; of those without a figure that counts the ones that have any."""
        final = point.final(self.network)
        return (-final.mean if final else math.inf), not point.proxy

    def color(self, point: Point) -> tuple[str, bool]:
        """(color, dashed)."""
        place = [p.name for p in self.drawn].index(point.name)
        return COLORS[place % len(COLORS)], place >= len(COLORS)

    def label(self, point: Point) -> str:
        """A name short enough for a plot: the values without the fields'."""
        if self.sweep.draws:
            return point.name
        words = [str(v) for v in point.values.values()]
        return " ".join([point.arm, *words] if point.arm else words) or point.name

    def reference(self, point: Point) -> Point | None:
        return reference_of(self.points, self.sweep, point)

    def spread(self, value: Stat | None) -> str:
        return DASH if value is None else self.metric.spread(value.mean, value.std)


def render_sweep(result: SweepResult, *, linked: bool = True) -> str:
    """The HTML page of a sweep, finished or not.

    Args:
        linked: whether the pages of its trials can be reached from it.
    """
    view = _View(result)
    sections = {
        "metric": (view.metric.title, _over_labels(view)),
        "cost": ("Selection cost", _cost(view)),
        "epochs": ("Epochs to scratch", _epochs(view)),
        "failures": ("Failures", _failures(view)),
        "trials": ("Trials", _trials(view, linked)),
        "configuration": ("Configuration", _configuration(view)),
    }
    present = {key: (title, body) for key, (title, body) in sections.items() if body is not None}
    return html.page(
        result.sweep.base.run.name,
        _header(view),
        tag("nav", (join(tag("a", title, href=f"#{key}"), " ") for key, (title, _) in present.items())),
        (body for _, body in present.values()),
    )


# --- the head ---


def _header(view: _View) -> Html:
    left = view.status[UNFINISHED]
    words, kind = ("in progress", "state running") if left else ("complete", "state")
    if not left and view.status[FAILED]:
        words, kind = f"complete, {counted(view.status[FAILED], 'failure')}", "state running"
    return tag(
        "header",
        tag("h1", view.sweep.base.run.name, tag("span", words, class_=kind)),
        tag("p", tag("span", view.result.root.path, class_="id"), class_="path"),
        tag("p", _summary(view), class_="summary"),
        html.tiles(list(_headline(view))),
    )


def _summary(view: _View) -> str:
    done, all_ = view.status[COMPLETE], view.trials
    words = f"{counted(len(view.points), 'combination')} over {counted(len(view.sweep.seeds), 'seed')}: "
    words += f"{all_} trials complete." if done == all_ else f"{done} of {all_} trials complete."
    if view.status[STOPPED]:
        words += f" {view.status[STOPPED]} stopped early, behind others at equal labels."
    if view.budgets_differ:
        words += f" Label budgets differ: combinations are compared {view.where}."
    if view.best is not None:
        final = view.best.final(view.network)
        share = relative(view.best, view.reference(view.best), "selection_macs")
        words += f" Best: {view.best.name}, whose {NAMES[view.network]} reaches {view.spread(final)}"
        words += f" at {percent(share)} of the selection MACs of {_of(view)}." if share is not None else "."
    return words


def _of(view: _View) -> str:
    return f"the arm {view.sweep.reference}" if view.sweep.reference else "the dense network"


def _headline(view: _View) -> Iterator[tuple[str, Child, Child]]:
    done = view.status[COMPLETE]
    yield (
        "Trials",
        f"{done} of {view.trials}",
        f"{view.status[STOPPED]} stopped, {view.status[FAILED]} failed",
    )
    if view.best is not None and (final := view.best.final(view.network)) is not None:
        yield f"Best {view.metric.inside}", view.metric.text(final.mean), view.best.name
        share = relative(view.best, view.reference(view.best), "selection_macs")
        yield "Its selection MACs", percent(share), f"of {_of(view)}"
    shared = sum(n for r in view.result.trials for n in r.shared.values())
    yield "Shared work", counted(shared, "phase"), "reused from another trial"
    yield (
        "Work of all trials",
        duration(sum(r.rows[-1]["seconds"] for r in view.result.trials if r.rows)),
        "as if nothing were shared",
    )


# --- the metric over labels ---


def _over_labels(view: _View) -> Html:
    if not any(p.fused or p.proxy for p in view.points):
        return html.section("metric", f"{view.metric.title} over label budget", tag("p", "No round is finished yet."))
    # Targets that are trained after the last round only make points, not curves.
    network = view.network if any(len(p.of(view.network)) > 1 for p in view.points) else "proxy"
    shown = [(p, by_labels) for p in view.drawn if (by_labels := p.of(network))]
    if any(len(by_labels) > 1 for _, by_labels in shown):
        shown = [(p, by_labels) for p, by_labels in shown if len(by_labels) > 1]
    curves = [
        plots.Line(
            x=list(by_labels),
            y=[s.mean for s in by_labels.values()],
            band=([s.mean - s.std for s in by_labels.values()], [s.mean + s.std for s in by_labels.values()]),
            color=view.color(p)[0],
            dashed=view.color(p)[1],
            label=view.label(p),
        )
        for p, by_labels in shown
    ]
    words = f"{view.metric.title} of the {NAMES[network]} on the test set after training on so many labels: mean over "
    words += "the seeds"
    words += ", bands of one standard deviation." if len(view.sweep.seeds) > 1 else "."
    if len(shown) < len(view.points):
        words += f" Drawn are {len(shown)} of {len(view.points)} combinations, the best that were measured on the way."
    drawn = plots.lines(
        "metric",
        f"{view.metric.title} on the test set over the number of labels",
        curves,
        size=(1080, max(320, 60 + 19 * len(curves))),
        x_label="labels",
        y_percent=view.metric.share,
    )
    tables = [_metric_table(view, n) for n in (view.network, "fused", "proxy", "baseline")]
    written = list(dict.fromkeys(t for t in tables if t is not None))
    return html.section("metric", f"{view.metric.title} over label budget", html.figure(drawn, words), *written)


def _metric_table(view: _View, network: str) -> Html | None:
    budgets = sorted({labels for p in view.points for labels in p.of(network)})
    if not budgets:
        return None
    rows = []
    for p in view.points:
        by_labels = p.of(network)
        named = tag("b", p.name) if view.best is p and network == view.network else p.name
        rows.append([named, p.seeds, *(_of_seeds(view, by_labels.get(b), p.seeds) for b in budgets)])
    title = f"{view.metric.title} of the {NAMES[network]} on the test set, mean ± standard deviation over seeds"
    head = ("Combination", "Seeds", *(f"{count(b)} labels" for b in budgets))
    return tag("div", tag("h3", title, style="margin-top:22px"), html.table(head, rows))


def _of_seeds(view: _View, value: Stat | None, seeds: int) -> str:
    """A mean and its spread, with its number of seeds where that is not the row's: trials are stopped, fail, or are
    not done."""
    return view.spread(value) + (f" ({counted(value.n, 'seed')})" if value is not None and value.n != seeds else "")


# --- cost ---


def _cost(view: _View) -> Html | None:
    measured = [p for p in view.points if p.final(view.network)]
    if not measured:
        return None
    by_chance = not any(_mean(p, "selection_macs") for p in measured)
    figures = [
        f
        for f in (
            _front(view, "selection_macs", f"{view.metric.title} over the MACs of scoring the pool", plots.macs_axis),
            None
            if by_chance
            else _front(
                view, "selection_seconds", f"{view.metric.title} over the seconds of selection", plots.time_axis
            ),
            _front(
                view, "total_macs", f"{view.metric.title} over all MACs, of the proxies and the target", plots.macs_axis
            ),
        )
        if f is not None
    ]
    rows = []
    for p in measured:
        reference = view.reference(p)
        rows.append(
            [
                p.name,
                view.spread(p.final(view.network)),
                quantity(_mean(p, "selection_macs")),
                percent(relative(p, reference, "selection_macs")),
                quantity(_mean(p, "selection_training_macs")),
                percent(relative(p, reference, "selection_training_macs")),
                quantity(_mean(p, "total_macs")),
                percent(relative(p, reference, "total_macs")),
                duration(_mean(p, "selection_seconds")),
                percent(relative(p, reference, "selection_seconds")),
            ]
        )
    lead = (
        f"Compared {view.where}. The cost of choosing these labels, over all rounds: scoring the pool, and training "
        "the networks that scored it (and the targets that these were pruned from). All MACs are these and those of "
        "the target: for training the proxy that was fused into it, and for its own training. "
        f"Shares are of {_of(view)}. Seconds cover scoring, training these networks and choosing, measured while other "
        "trials were running."
    )
    groups = [("", 2), ("Scoring MACs", 2), ("Selector's training MACs", 2), ("All MACs", 2), ("Seconds", 2)]
    head = ("Combination", view.metric.title, *("", "Of reference") * 4)
    return html.section(
        "cost",
        f"{view.metric.title} against selection cost",
        tag("div", *figures, class_="two even") if figures else None,
        html.table(head, rows, groups=groups),
        lead=lead,
    )


def _mean(point: Point, cost: str) -> float | None:
    return point.costs[cost].mean if cost in point.costs else None


def _front(view: _View, cost: str, description: str, axis: Callable[[float], tuple[float, str]]) -> Html | None:
    """The plane of the metric and a cost, with the Pareto front over all combinations."""
    shown = [p for p in view.drawn if p.final(view.network) and cost in p.costs]
    front = pareto(view.points, cost, view.network)
    if not shown or max(p.costs[cost].mean for p in shown) <= 0:
        return None
    marks = []
    for p in shown:
        final = p.final(view.network)
        assert final is not None
        std = 0.0 if math.isnan(final.std) else final.std
        color, hollow = view.color(p)
        marks.append(
            plots.Mark(
                x=p.costs[cost].mean,
                y=final.mean,
                spread=std,
                color=color,
                hollow=hollow,
                label=view.label(p),
                tip=_tip(view, p, p in front),
            )
        )
    steps = [(p.costs[cost].mean, f.mean) for p in front if (f := p.final(view.network))]
    divisor, unit = axis(max(p.costs[cost].mean for p in shown))
    drawn = plots.scatter(
        cost, description, marks, steps, size=(520, 330), divisor=divisor, x_label=unit, y_percent=view.metric.share
    )
    names = ", ".join(view.label(p) for p in front)
    where = view.where[0].upper() + view.where[1:]
    counts = {p.seeds for p in view.points if p.final(view.network)}
    among = " of the combinations with the most seeds" if len(counts) > 1 else ""
    caption = f"{where}; bars of one standard deviation. The line is the Pareto front{among}: {names}."
    return html.figure(drawn, caption, title=description)


def _tip(view: _View, point: Point, on_front: bool) -> str:
    """What is told of a combination where the pointer rests on its mark."""
    lines = [point.name + (" (on the Pareto front)" if on_front else "")]
    lines += [f"{field}: {value}" for field, value in point.values.items()]
    lines.append(f"{view.metric.inside} {view.spread(point.final(view.network))}, {counted(point.seeds, 'seed')}")
    lines.append(f"{count(point.labels)} labels")
    lines += [
        f"{cost.replace('_', ' ')} {quantity(s.mean)}" for cost, s in point.costs.items() if "seconds" not in cost
    ]
    lines += [f"{cost.replace('_', ' ')} {duration(s.mean)}" for cost, s in point.costs.items() if "seconds" in cost]
    return "\n".join(lines)


# --- epochs to where training from scratch ends ---


def _epochs(view: _View) -> Html | None:
    rows: list[Sequence[Child]] = []
    for p in view.points:
        c = p.catching
        if c is None:
            continue
        needed = DASH
        if c.epochs is not None:
            needed = f"{c.epochs.mean:.1f}" + ("" if math.isnan(c.epochs.std) else f" ± {c.epochs.std:.1f}")
        scratch = view.spread(c.scratch), f"{c.scratch_epochs:.4g}"
        rows.append([p.name, *scratch, f"{c.reached} of {c.seeds}", needed, percent(c.share), c.every])
    if not rows:
        return None
    lead = (
        f"Fine-tuning epochs after which the fused network first reaches the final {view.metric.inside} of the "
        "same network trained from scratch, with the same recipe, on the same labels (last budget). Epoch 0 is the "
        "fused network before any training. Mean over the seeds that reached it."
    )
    head = ("Combination", "Scratch", "Its epochs", "Reached", "Epochs needed", "Of scratch", "Measured every")
    return html.section(
        "epochs",
        f"Epochs to the {view.metric.inside} of training from scratch",
        html.table(head, rows),
        lead=lead,
    )


# --- trials ---


def _failures(view: _View) -> Html | None:
    failed = [r for r in view.result.trials if r.outcome.status == FAILED]
    if not failed:
        return None
    rows = [(tag("span", r.trial.name, class_="id"), r.outcome.message) for r in failed]
    lead = "Starting the sweep again tries these, and only these, again."
    return html.section(
        "failures", "Failed trials", html.table(("Trial", "Message"), rows, left=2, class_="text"), lead=lead
    )


def _trials(view: _View, linked: bool) -> Html:
    rows = []
    for r in view.result.trials:
        last = r.rows[-1] if r.rows else {}
        name = tag("span", r.trial.name, class_="id")
        if linked and r.outcome.status == COMPLETE:
            name = tag("a", name, href=f"trials/{r.trial.name}/report.html")
        shared = ", ".join(f"{n} of {origin}" for origin, n in r.shared.items())
        rows.append(
            [
                name,
                tag("span", r.outcome.status, class_="whole"),
                tag("span", shared, class_="id") if shared else DASH,
                f"{len(r.rows)} of {len(r.trial.config.selection.budgets)}",
                *(view.metric.text(last[n]) if n in last else DASH for n in ("proxy", "fused", "baseline")),
                duration(last.get("seconds")),
            ]
        )
    head = ("Trial", "Status", "Phases shared", "Rounds", "Selecting network", "Target", "Baseline", "Time")
    shown = html.table(head, rows, left=3, class_="text")
    note = "Time is what the trial's phases took, including those that it reused from another trial."
    return html.section(
        "trials",
        "Trials",
        html.details(counted(len(rows), "trial"), tag("p", note, class_="note"), shown, opened=len(rows) <= 40),
    )


# --- configuration ---


def _configuration(view: _View) -> Html:
    sweep = to_tree(view.sweep)
    asked = [
        (f, ", ".join(f"{how} {values}" for how, values in axis.items() if values is not None))
        for f, axis in (sweep["space"] or {}).items()
    ]
    asked += [
        (f"arm {arm}", ", ".join(f"{k} {v}" for k, v in flatten(o).items())) for arm, o in view.sweep.arms.items()
    ]
    asked += [(k, str(sweep[k])) for k in ("seeds", "reference", "metric", "scheduler") if sweep[k] is not None]
    if view.sweep.draws:
        asked += [("samples", str(view.sweep.samples)), ("search", view.sweep.search)]
    changed = [tuple(d.split(": ", 1)) for d in differences(to_tree(Config()), sweep["base"])]
    base = [(field, words.partition(" -> ")[2]) for field, words in changed]
    blocks = [
        tag("div", tag("h3", title), html.facts(pairs))
        for title, pairs in (("What was tried", asked), ("Base, where it differs from the defaults", base))
    ]
    return html.section("configuration", "Configuration", tag("div", *blocks, class_="config"))
