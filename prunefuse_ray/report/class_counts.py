"""The report's labels by class, round by round, and how many samples of each class are recognized."""

from __future__ import annotations

from prunefuse_ray.report import html
from prunefuse_ray.report.html import Html, count, percent, tag
from prunefuse_ray.report.view import RoundView, RunView

SHOWN = 50  # classes in the table, the rarest first


def section(run: RunView) -> Html | None:
    """None where no round has counted its labels: those of earlier versions have not."""
    classes = [str(name) for name in run.pool.get("classes") or []]
    counted_rounds = [(view, found) for view in run.rounds if len(found := counts_of(view)) == len(classes) > 0]
    if not counted_rounds:
        return None
    _, last = counted_rounds[-1]
    order = sorted(range(len(classes)), key=lambda c: (last[c], c))
    rows = [[classes[c], *(count(found[c]) for _, found in counted_rounds)] for c in order[:SHOWN]]
    head = ["Class", *(f"Round {view.round}" for view, _ in counted_rounds)]
    more = f" The {SHOWN} rarest of {len(classes):,} classes." if len(classes) > SHOWN else ""
    words = f"From {count(min(last))} to {count(max(last))} labels of a class; the rarest first.{more}"
    if (tested := _recall(run)) is not None:
        network, recall = tested
        head.append(f"Recall, {network}")
        rows = [[*row, percent(recall[c])] for row, c in zip(rows, order, strict=False)]
        shares = [share for share in recall if share is not None]
        words += (
            f" Recall: the share of a class's test samples that the last {network} network recognizes; "
            f"{percent(sum(shares) / len(shares))} in the mean over classes (balanced accuracy)."
        )
    missing = [classes[c] for c in order if not last[c]]
    warning = None
    if missing:
        named = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        warning = tag("p", tag("b", f"No label yet of {len(missing):,} of {len(classes):,} classes:"), " ", named)
    return html.section("classes", "Labels by class", warning, tag("p", words), html.table(head, rows))


def _recall(run: RunView) -> tuple[str, list[float | None]] | None:
    """By class, of the last network that was tested: the fused one of a round before its proxy."""
    for view in reversed(run.rounds):
        for phase, network in (("finetune", run.names[1]), ("train", run.names[0])):
            recall = view.metrics.get("phases", {}).get(phase, {}).get("test_recall")
            if recall and len(recall) == len(run.pool.get("classes") or []):
                return network, recall
    return None


def counts_of(view: RoundView) -> list[int]:
    """Labels by class after a round, in the order of the classes."""
    return list(view.metrics.get("phases", {}).get("label", {}).get("class_counts") or [])
