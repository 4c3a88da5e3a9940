"""The contact sheets of a report: the samples that a round chose first and last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prunefuse_ray.report import html
from prunefuse_ray.report.html import Html, count, join, number, tag
from prunefuse_ray.report.view import Chosen, RoundView, RunView

SHOWN = 24  # images of a round on its contact sheet, from either end
TEXTS_SHOWN = 8  # likewise, for text
OPEN_ROUNDS = 6  # with more rounds than this, only the first and the last few contact sheets are open
TEXT_SHOWN = 240  # characters of a text sample


def samples(run: RunView) -> Html | None:
    shown = [view for view in run.rounds if view.first or view.last]
    if not shown:
        return None
    sheets = []
    for i, view in enumerate(shown):
        opened = len(shown) <= OPEN_ROUNDS or i == 0 or i >= len(shown) - 3
        summary = (tag("b", f"Round {view.round}"), f" · {count(view.chosen)} chosen by {view.strategy}")
        sheets.append(html.details(join(summary), _sheets(view), opened=opened))
    return html.section("samples", "Samples chosen first and last", *sheets)


def _sheets(view: RoundView) -> Html:
    """The contact sheets of a round; a sample is shown once, even if it is both among the first and the last."""
    written = all(one.image is None for one in view.first + view.last)
    most = TEXTS_SHOWN if written else SHOWN
    first = sorted(view.first, key=lambda one: one.rank)[:most]
    known = {one.id for one in first}
    last = [one for one in sorted(view.last, key=lambda one: one.rank)[-most:] if one.id not in known]
    names = ("All" if len(first) >= view.chosen else "First", "Last")
    return tag(
        "div",
        (
            tag("div", tag("h3", name, _range(samples)), _texts(samples) if written else _images(samples))
            for name, samples in zip(names, (first, last), strict=True)
            if samples
        ),
        class_="sheets text" if written else "sheets",
    )


def _range(samples: Sequence[Chosen]) -> str:
    """The highest and the lowest score of some samples, as part of a title: a set is not chosen in their order."""
    known = [score for one in samples if (score := number(one.score)) is not None]
    return f": scores {html.score(max(known))} to {html.score(min(known))}" if known else ""


def _images(samples: Iterable[Chosen]) -> Html:
    def one(sample: Chosen) -> Html:
        tip = f"{sample.id}\nlabel {sample.label}, score {html.score(sample.score)}, rank {sample.rank}"
        shown = html.image(sample.image, sample.id) if sample.image is not None else None
        return tag(
            "figure",
            shown or tag("div", "not decodable" if sample.image is not None else "no image", class_="broken"),
            tag("b", sample.label),
            tag("span", html.score(sample.score)) if sample.score is not None else None,
            class_="sample",
            title=tip,
        )

    return tag("div", map(one, samples), class_="sheet")


def _texts(samples: Iterable[Chosen]) -> Html:
    def one(sample: Chosen) -> Html:
        words = sample.text or ""
        cut = words[:TEXT_SHOWN].rstrip() + " …" if len(words) > TEXT_SHOWN else words
        scored = f" · {html.score(sample.score)}" if sample.score is not None else None
        about = (tag("b", sample.label), scored, " · ", tag("span", sample.id, class_="id"))
        return tag("li", tag("p", cut) if cut else None, tag("div", about))

    return tag("ul", map(one, samples), class_="texts")
