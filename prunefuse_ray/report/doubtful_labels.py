"""The report's list of labels to look at again: those that the trained proxy finds least likely."""

from __future__ import annotations

from prunefuse_ray.report import html
from prunefuse_ray.report.contact_sheets import TEXT_SHOWN
from prunefuse_ray.report.html import Html, percent, tag
from prunefuse_ray.report.view import Doubt, RunView


def section(run: RunView) -> Html | None:
    """The doubtful labels of the last round that has any."""
    view = next((view for view in reversed(run.rounds) if view.doubts), None)
    if view is None:
        return None
    name, all_ = run.names[0], f"All labels in this order: rounds/{view.round:03d}/doubts.parquet."
    words = (
        f"The {name} of round {view.round} thinks another class more likely than these labels; the least likely label "
        f"comes first. Some are right but unusual; wrong labels that it has memorized are not among them. {all_}"
    )
    if run.numbers:
        words = (
            f"The {name} of round {view.round} is farthest from these labels; the percentage is the probability of an "
            f"error at least as large, if errors varied as much as the labels do. {all_}"
        )
    if run.pixels:
        words = (
            f"These are the masks that the {name} of round {view.round} is least sure of; the percentage is the mean "
            f"probability of the given classes over their pixels. {all_}"
        )
    written = all(one.image is None for one in view.doubts)
    shown = (
        tag("ul", (_text(one, name) for one in view.doubts), class_="texts") if written else _sheet(view.doubts, name)
    )
    return html.section(
        "doubts", "Labels to look at again", tag("p", words), tag("div", shown, class_="sheets text" if written else "")
    )


def _sheet(doubts: list[Doubt], name: str) -> Html:
    def one(doubt: Doubt) -> Html:
        shown = html.image(doubt.image, doubt.id) if doubt.image is not None else None
        return tag(
            "figure",
            shown or tag("div", "no image", class_="broken"),
            tag("b", doubt.label),
            tag("span", percent(doubt.label_probability)),
            tag("span", f"{doubt.guess}? {percent(doubt.probability)}"),
            class_="sample",
            title=f"{doubt.id}\n{_compared(doubt, name)}",
        )

    return tag("div", map(one, doubts), class_="sheet")


def _text(doubt: Doubt, name: str) -> Html:
    words = (doubt.text or "")[:TEXT_SHOWN]
    about = (tag("b", doubt.label), " · ", _compared(doubt, name), " · ", tag("span", doubt.id, class_="id"))
    return tag("li", tag("p", words), tag("div", about))


def _compared(doubt: Doubt, name: str) -> str:
    said = f"{name}: {doubt.guess} {percent(doubt.probability)}"
    return f"label {doubt.label} {percent(doubt.label_probability)}, {said}"
