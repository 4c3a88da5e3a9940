"""`prunefuse run`, which is `python jobs/run.py`: carry out, or resume, one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from prunefuse_ray.commands.options import parse_run
from prunefuse_ray.commands.terminal import account, console, quiet, si
from prunefuse_ray.distributed.security import secure
from prunefuse_ray.report import baseline
from prunefuse_ray.report.names import names
from prunefuse_ray.report.outlook import words
from prunefuse_ray.run.rounds import RoundLines
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS, Metric


def main(argv: Sequence[str]) -> int:
    """Carry out, or resume, one run."""
    secure()  # before the configuration: a source of one's own that it names may import Ray
    config = parse_run(argv)
    quiet()
    from prunefuse_ray.run.loop import run, run_place
    from prunefuse_ray.run.result import forecast_of, result_of

    place = run_place(config)
    console.print(f"run {config.run.name} in {place.uri}", markup=False)
    lines = RoundLines(config, place, console.print)
    with _display(place):
        ledger = run(config, lines, tell=account)
    result = result_of(config, ledger)
    if lines.steps_done:
        finished = f"finished; {result['seconds']:.0f} s of work in all"
    else:
        finished = "this run was complete already; --run.name OTHER starts another"
    console.print(closing_table(result, TASKS[config.task].metric))
    console.print(phase_line(result))
    metric = TASKS[config.task].metric
    if found := forecast_of(result["rounds"], metric):
        console.print(words(found, metric, names(config.selection.selector, config.fusion.target)[0]))
    for line in baseline.words(result, metric):
        console.print(line)
    if result["rejected"]:
        console.print(
            f"{result['rejected']} samples could not be used: {ledger.root.uri}/rejected.parquet", markup=False
        )
    console.print(f"{finished}; report: {ledger.root.uri}/report.html", markup=False)
    return 0


@contextmanager
def _display(place: Place) -> Iterator[None]:
    """On a terminal the phase that is under way, in its last line; elsewhere nothing."""
    if not console.is_terminal:
        yield
        return
    from prunefuse_ray.run.under_way import shown

    with console.status("starting") as status, shown(place, lambda line: status.update(escape(line))):
        yield


def closing_table(result: dict[str, Any], metric: Metric) -> Table:
    """The run's table: a row per round, and the sums."""
    rounds = result["rounds"]
    table = Table(show_footer=True, box=box.SIMPLE)

    def tested(network: str) -> list[str]:
        values = [r[f"{network}_{metric.name}"] for r in rounds]
        return ["" if value is None else metric.text(value) for value in values]

    selects, target = names(result.get("selector"), result.get("target"))
    columns = {
        "labels": ([str(r["labels"]) for r in rounds], ""),
        selects: (tested("proxy"), ""),
        target: (tested("fused"), ""),
        "selection MACs": ([si(r["selection_macs"]) for r in rounds], si(result["selection_macs"])),
        "of dense": (
            [_share(r["selection_macs"], r["dense_selection_macs"]) for r in rounds],
            _share(result["selection_macs"], result["dense_selection_macs"]),
        ),
        "seconds": ([f"{sum(r['seconds'].values()):.1f}" for r in rounds], f"{result['seconds']:.1f}"),
    }
    for name, (_, foot) in columns.items():
        table.add_column(name, foot, justify="right")
    for row in zip(*(cells for cells, _ in columns.values()), strict=True):
        table.add_row(*row)
    return table


def phase_line(result: dict[str, Any]) -> str:
    """Seconds per phase, over all rounds."""
    sums: dict[str, float] = {}
    for r in result["rounds"]:
        for phase, seconds in r["seconds"].items():
            sums[phase] = sums.get(phase, 0.0) + seconds
    return "seconds per phase: " + ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in sums.items())


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""
