"""Plots as inline SVG that takes its colors and its font from the page around it, light or dark.

The same input gives the same bytes: fixed hash salt, no date, no user style sheet, no pyplot state.
Sizes are in CSS pixels. Words in a plot are ours, never from data, unless a caller passes them as a label;
matplotlib escapes those, and does not read them as mathematics.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from prunefuse_ray.report.html import Html, percent, scale, text
from prunefuse_ray.report.html import score as score_text

# Matplotlib wants real colors: each name of the page's palette gets a stand-in, which `_svg` exchanges for its
# CSS variable.
_NAMES = (
    "ink", "muted", "line", "bg", "rest", "proxy", "fused",
    "select", "label", "train", "score", "fuse", "finetune", "other",
)  # fmt: skip
COLOR = {name: f"#0a0b{i:02x}" for i, name in enumerate(_NAMES, start=16)}
FLOOR = 0.7  # of logarithmic counts, so that a bin of one sample still shows
PHASES = ("select", "request", "label", "train", "grow", "score", "fuse", "finetune")

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prunefuse",
    "text.parse_math": False,
    "font.size": 9,  # points: 12 CSS pixels
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "text.color": COLOR["ink"],
    "axes.labelcolor": COLOR["muted"],
    "axes.titlecolor": COLOR["ink"],
    "axes.edgecolor": COLOR["line"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": COLOR["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOR["line"],
    "ytick.color": COLOR["line"],
    "xtick.labelcolor": COLOR["muted"],
    "ytick.labelcolor": COLOR["muted"],
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.h_pad": 0.05,
    "figure.constrained_layout.w_pad": 0.02,
}


def phase_color(phase: str) -> str:
    return phase if phase in COLOR else "other"


def _svg(key: str, description: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> Html:
    """What `draw` puts on a figure of `size` CSS pixels. `key` keeps the ids of several plots on one page apart."""
    written = io.StringIO()
    with style.context(["default", _STYLE]):
        drawing = Figure(figsize=(size[0] / 96, size[1] / 96), layout="constrained")
        draw(drawing)
        drawing.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    named = f'role="img" aria-label="{text(description)}">'  # apart from the replacement: it may hold backslashes
    svg = re.sub(r'(<svg\b)[^>]*?(viewBox="[^"]*")[^>]*>', lambda found: f"{found[1]} {found[2]} {named}", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", svg)
    for name, stand_in in COLOR.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return Html(re.sub(r"\n\s*", "\n", svg))


@dataclass(frozen=True, kw_only=True)
class Line:
    x: Sequence[float]
    y: Sequence[float]
    color: str
    label: str | None = None  # written at its end
    strength: float = 1.0  # opacity
    dashed: bool = False
    points: bool = True
    band: tuple[Sequence[float], Sequence[float]] | None = None  # lower and upper end; NaN: none there


@dataclass(frozen=True, kw_only=True)
class Mark:
    x: float
    y: float
    color: str
    label: str
    spread: float = 0.0  # half the height of its error bar
    hollow: bool = False
    tip: str = ""
    """Shown where the pointer rests on it."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    title: str
    edges: np.ndarray
    counts: np.ndarray
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class Bar:
    label: str
    parts: Sequence[tuple[str, float]]  # (color, length)
    reference: float | None = None  # drawn hollow, under the bar


def lines(
    key: str,
    description: str,
    series: Sequence[Line],
    *,
    size: tuple[float, float],
    x_label: str,
    y_percent: bool = False,
    x_ticks: Sequence[float] | None = None,
) -> Html:
    """Curves over a common axis, each with its label at its end."""

    def draw(drawing: Figure) -> None:
        axes = drawing.subplots()
        for line in series:
            axes.plot(
                line.x,
                line.y,
                color=COLOR[line.color],
                alpha=line.strength,
                linestyle=(0, (4, 3)) if line.dashed else "-",
                marker="o" if line.points or len(line.x) == 1 else None,
                markeredgewidth=0,
                clip_on=False,
            )
            if line.band is not None:
                low, high = (np.where(np.isnan(end), line.y, end) for end in line.band)
                axes.fill_between(line.x, low, high, color=COLOR[line.color], alpha=0.13, linewidth=0)
        axes.margins(x=0.03, y=0.08)
        axes.set_xlabel(x_label)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        if y_percent:
            _share_axis(axes)
        _x_ticks(axes, series, x_ticks, size[0])
        _end_labels(axes, [line for line in series if line.label], size[1])

    return _svg(key, description, size, draw)


def beside_truth(
    key: str, description: str, points: Sequence[Sequence[float]], color: str, *, size: tuple[float, float]
) -> Html:
    """Predictions over the truth, (truth, prediction) each, and the line on which they would be equal."""

    def draw(drawing: Figure) -> None:
        axes = drawing.subplots()
        truth, predicted = np.asarray(points, float).T
        ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
        axes.plot(ends, ends, color=COLOR["muted"], linestyle=(0, (4, 3)), linewidth=1)
        axes.scatter(truth, predicted, s=9, color=COLOR[color], alpha=0.5, linewidths=0, clip_on=False)
        axes.set_xlabel("truth")
        axes.set_ylabel("predicted")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))

    return _svg(key, description, size, draw)


def _share_axis(axes: Axes) -> None:
    """Shares as percent, inside 0 to 100, over no less than 5 points: a closer look would show noise as difference."""
    low, high = axes.get_ylim()
    spare = max(0.0, (0.05 - (high - low)) / 2)
    low, high = low - spare, high + spare
    over, under = max(0.0, high - 1.0), max(0.0, -low)
    axes.set_ylim(max(0.0, low - (over if spare else 0)), min(1.0, high + (under if spare else 0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value, 0)))


def _x_ticks(axes: Axes, series: Sequence[Line], wanted: Sequence[float] | None, width: float) -> None:
    """A tick at each measured point where they do not crowd, else round whole numbers."""
    places = sorted({x for line in series for x in line.x} if wanted is None else set(wanted))
    span = places[-1] - places[0]
    near = min(np.diff(places), default=span)
    if span == 0 or (len(places) <= 12 and near / span * width > 50):
        axes.xaxis.set_major_locator(FixedLocator(places))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if span == 0:
        axes.set_xlim(places[0] - 1, places[0] + 1)


def _end_labels(axes: Axes, labeled: Sequence[Line], height: float) -> None:
    """Labels beside the last points, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    apart = 15 / (0.75 * height)  # 15 px, as a share of the axes
    below = -np.inf
    for line in sorted(labeled, key=lambda one: one.y[-1]):
        place = max((line.y[-1] - low) / (high - low), below + apart)
        below = place
        axes.annotate(
            str(line.label),
            (line.x[-1], place),
            xycoords=("data", "axes fraction"),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=COLOR[line.color],
            annotation_clip=False,
            bbox={"facecolor": COLOR["bg"], "edgecolor": "none", "pad": 1},  # a line may go on below it
        )


def scatter(
    key: str,
    description: str,
    marks: Sequence[Mark],
    front: Sequence[tuple[float, float]],
    *,
    size: tuple[float, float],
    divisor: float,
    x_label: str,
    y_percent: bool,
) -> Html:
    """Figures over a cost that is divided by `divisor`; the front as steps: what a cost can buy. A logarithmic
    axis where costs differ by more than a factor of five."""

    def draw(drawing: Figure) -> None:
        axes = drawing.subplots()
        costs = [mark.x / divisor for mark in marks]
        wide = min(costs) > 0 and max(costs) > 5 * min(costs)
        if wide:
            axes.set_xscale("log")
        if front:
            x, y = [cost / divisor for cost, _ in front], [share for _, share in front]
            axes.step([*x, max(costs)], [*y, y[-1]], where="post", color=COLOR["rest"], linewidth=1.2, zorder=1)
        for number, (mark, cost) in enumerate(zip(marks, costs, strict=True)):
            if mark.spread:
                axes.errorbar(cost, mark.y, yerr=mark.spread, color=COLOR[mark.color], elinewidth=1, alpha=0.5)
            face = "none" if mark.hollow else COLOR[mark.color]
            look: dict[str, Any] = {
                "color": COLOR[mark.color],
                "markerfacecolor": face,
                "markersize": 6,
                "gid": f"mark-{number}",
            }
            axes.plot(cost, mark.y, "o", clip_on=False, **look)
        axes.margins(x=0.08, y=0.1)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        if y_percent:
            _share_axis(axes)
        if wide:
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(x_label)
        _mark_labels(axes, marks, costs, size)

    svg: str = _svg(key, description, size, draw)
    for number, mark in enumerate(marks):
        opened = f'<g id="{key}-mark-{number}"'
        svg = svg.replace(f"{opened}>", f'{opened} pointer-events="all"><title>{text(mark.tip or mark.label)}</title>')
    return Html(svg)


def _mark_labels(axes: Axes, marks: Sequence[Mark], costs: Sequence[float], size: tuple[float, float]) -> None:
    """Names beside the marks: on the side where there is room, a little above them, higher where another one lies."""
    width, height = 0.82 * size[0], 0.75 * size[1]
    placed: list[tuple[float, float, float]] = []
    for mark, cost in sorted(zip(marks, costs, strict=True), key=lambda one: one[0].y):
        x, y = axes.transAxes.inverted().transform(axes.transData.transform((cost, mark.y)))
        long = (7 + 6.2 * len(mark.label)) / width
        left = x + long > 1.02
        start, up = (x - long if left else x), 9 / height  # above the front, which runs through the marks
        while any(abs(y + up - other) < 14 / height and start < b and a < start + long for a, b, other in placed):
            up += 4 / height
        placed.append((start, start + long, y + up))
        axes.annotate(
            mark.label,
            (x, y + up),
            xycoords="axes fraction",
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            color=COLOR[mark.color],
            annotation_clip=False,
        )


def histograms(key: str, description: str, panels: Sequence[Histogram], *, width: float, columns: int = 4) -> Html:
    """Small multiples over one axis, counts on a logarithmic scale; what is at or over the threshold is colored."""
    columns = min(columns, max(len(panels), 2))
    rows = -(-len(panels) // columns)
    top = 2 * max(float(panel.counts.max()) for panel in panels)
    decades = int(np.log10(top))
    powers = range(0, decades + 1, -(-decades // 4) or 1)  # at most five labels
    left = min(float(panel.edges[0]) for panel in panels)
    right = max(float(panel.edges[-1]) for panel in panels)

    def draw(drawing: Figure) -> None:
        grid = drawing.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for i, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
            counts = np.maximum(panel.counts.astype(float), FLOOR)
            axes.stairs(counts, panel.edges, fill=True, baseline=FLOOR, color=COLOR["rest"])
            if panel.threshold is not None:
                _mark_chosen(axes, panel.threshold, panel.edges, counts, (left, right))
            axes.set_yscale("log")
            axes.set_ylim(FLOOR, top)
            axes.set_xlim(left, right)
            axes.yaxis.set_major_locator(FixedLocator([10.0**power for power in powers]))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
            axes.xaxis.set_major_locator(MaxNLocator(4, prune="upper"))
            axes.set_title(panel.title)
            if i + columns >= len(panels):
                axes.tick_params(labelbottom=True)

    return _svg(key, description, (width, 34 + 128 * rows), draw)


def _power(value: float) -> str:
    divisor, prefix = scale(value)
    return f"{value / divisor:.0f} {prefix}".rstrip()


def _mark_chosen(
    axes: Axes, threshold: float, edges: np.ndarray, counts: np.ndarray, ends: tuple[float, float]
) -> None:
    over = edges[1:] > threshold
    if over.any():
        colored = np.concatenate([[max(threshold, float(edges[0]))], edges[1:][over]])
        axes.stairs(counts[over], colored, fill=True, baseline=FLOOR, color=COLOR["score"])
    axes.axvline(threshold, color=COLOR["ink"], linewidth=0.9, linestyle=(0, (3, 2)))
    leftward = threshold > sum(ends) / 2
    axes.annotate(
        score_text(threshold),
        (min(max(threshold, ends[0]), ends[1]), 1),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if leftward else 3, -2),
        textcoords="offset points",
        ha="right" if leftward else "left",
        va="top",
    )


def bars(
    key: str, description: str, rows: Sequence[Bar], *, width: float, divisor: float, x_label: str, y_label: str = ""
) -> Html:
    """Stacked horizontal bars, the first on top; lengths are divided by `divisor` for the axis."""

    def draw(drawing: Figure) -> None:
        axes = drawing.subplots()
        for i, row in enumerate(rows):
            start = 0.0
            for color, length in row.parts:
                axes.barh(i, length / divisor, left=start, height=0.56, color=COLOR[color], linewidth=0)
                start += length / divisor
            if row.reference is not None:
                axes.barh(
                    i + 0.39, row.reference / divisor, height=0.13, color="none", edgecolor=COLOR["ink"], linewidth=0.7
                )
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.5)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return _svg(key, description, (width, 56 + 29 * len(rows)), draw)


def time_axis(longest: float) -> tuple[float, str]:
    """(divisor, unit) in which the longest of some durations in seconds reads best."""
    for seconds, unit in ((2 * 86400, "days"), (2 * 3600, "hours"), (120, "minutes")):
        if longest >= seconds:
            return {"days": 86400.0, "hours": 3600.0, "minutes": 60.0}[unit], unit
    return 1.0, "seconds"


def macs_axis(largest: float) -> tuple[float, str]:
    divisor, prefix = scale(largest)
    return divisor, f"{prefix} MACs".lstrip()
