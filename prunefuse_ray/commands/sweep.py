"""`prunefuse sweep`, which is `python jobs/sweep.py`: carry out, or go on with, a sweep."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rich import box
from rich.table import Table

from prunefuse_ray.commands.options import parse_sweep
from prunefuse_ray.commands.terminal import account, console, quiet, si
from prunefuse_ray.distributed.security import secure
from prunefuse_ray.sweep.config import ends, incomparable, stops_early, trials
from prunefuse_ray.tasks import TASKS, Metric

NOT_ALL_TRIALS = 1
"""Exit code of a sweep that ended, but not with every trial."""


def main(argv: Sequence[str]) -> int:
    """Carry out, or go on with, a sweep."""
    secure()
    sweep = parse_sweep(argv)
    searches = sweep.search != "random"
    found = trials(sweep, ends(sweep) if searches else None)  # of a search the ends of its space stand for its draws
    stops, count = stops_early(sweep, found), sweep.samples * len(sweep.seeds) if searches else len(found)
    quiet()
    from prunefuse_ray.sweep.analysis import write_results
    from prunefuse_ray.sweep.page import render_sweep
    from prunefuse_ray.sweep.results import COMPLETE, FAILED, STOPPED, UNFINISHED, outcome, trials_of
    from prunefuse_ray.sweep.runner import run_sweep, sweep_place

    root = sweep_place(sweep)
    console.print(f"sweep {sweep.base.run.name} in {root.uri}: {count} trials", markup=False)
    if sweep.scheduler == "auto" and sweep.draws and not stops:
        console.print(f"no trial is stopped early: asha {incomparable(sweep, found)}", markup=False)
    before = Counter(outcome(root, t.name).status for t in trials_of(sweep, root))
    progress = Progress(TASKS[sweep.base.task].metric, count, before[COMPLETE] + before[STOPPED])
    for status, words in ((COMPLETE, "complete already"), (STOPPED, "stopped early before")):
        if before[status]:
            console.print(f"{before[status]} of them were {words}")
    try:
        run_sweep(sweep, progress, account)
    except BaseException:
        with suppress(Exception):  # what ended the sweep is what is said
            if (root / "sweep.yaml").exists():
                write_results(root, render_sweep)
        raise
    result = write_results(root, render_sweep)
    console.print(closing_table(result))
    failed = [r for r in result.trials if r.outcome.status == FAILED]
    for r in failed:
        console.print(f"failed: {r.trial.name}: {r.outcome.message}", markup=False)
    unfinished = sum(r.outcome.status == UNFINISHED for r in result.trials)
    if unfinished:
        console.print(f"{unfinished} trials are unfinished; the same command resumes them")
    if (root / "best.yaml").exists():
        console.print(f"best configuration: {root.uri}/best.yaml", markup=False)
    console.print(f"{progress.seconds():.0f} s; report: {root.uri}/report.html", markup=False)
    return NOT_ALL_TRIALS if failed or unfinished else 0


class Progress:
    """A line for each round and for each trial that ends."""

    def __init__(self, metric: Metric, trials_: int, ended: int) -> None:
        self.metric, self.trials, self.ended, self.started = metric, trials_, ended, time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def __call__(self, event: str, name: str, figures: dict[str, Any]) -> None:
        if event == "start":
            return
        if event == "round":
            words = round_line(figures, self.metric)
        else:
            self.ended += 1
            message = figures.get("message")
            words = f"{event} ({self.ended} of {self.trials})" + (f": {message}" if message else "")
        console.print(f"{self.seconds():6.0f} s  {name}: {words}", markup=False)


def round_line(row: dict[str, Any], metric: Metric) -> str:
    """What one round of a trial came to, in a line."""
    parts = [f"{row['labels']} labels"]
    parts += [f"{name} {metric.text(row[name])}" for name in ("proxy", "fused") if row.get(name) is not None]
    if row.get("phases_shared"):
        parts.append(f"{row['phases_shared']} phases shared")
    return ", ".join(parts)


def closing_table(result: Any) -> Table:
    """The combinations with their metric and what selection cost them."""
    from prunefuse_ray.sweep.analysis import compared_at, measured_network, points, reference_of, relative
    from prunefuse_ray.sweep.results import column

    found = points(result)
    network = measured_network(found, result.sweep)
    table = Table(box=box.SIMPLE, caption=f"compared {compared_at(result)}")
    table.add_column("combination", overflow="fold", min_width=24)
    for name in (
        "seeds",
        column(network, result.metric).replace("_", " "),
        "selection MACs",
        "of reference",
        "selection seconds",
    ):
        table.add_column(name, justify="right")
    for p in found:
        share = relative(p, reference_of(found, result.sweep, p), "selection_macs")
        macs, seconds = p.costs.get("selection_macs"), p.costs.get("selection_seconds")
        table.add_row(
            p.name,
            str(p.seeds),
            result.metric.spread(final.mean, final.std) if (final := p.final(network)) else "–",
            si(macs.mean) if macs else "",
            f"{share:.1%}" if share is not None else "",
            f"{seconds.mean:.1f}" if seconds else "",
        )
    return table
