"""`prunefuse report`: the page of a run or a sweep, made again from its files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from prunefuse_ray.commands.terminal import TRUSTED_CODE_HELP, console
from prunefuse_ray.registry import trust


def main(argv: Sequence[str]) -> int:
    """Make the report of a run or a sweep again from its files."""
    parser = argparse.ArgumentParser(prog="prunefuse report", description=main.__doc__)
    parser.add_argument("directory", help="the directory of a run or a sweep (a path or URI)")
    parser.add_argument("--trusted", metavar="NAME", action="append", default=[], help=TRUSTED_CODE_HELP)
    arguments = parser.parse_args(list(argv))
    trust(arguments.trusted)
    from prunefuse_ray.storage import Place

    place = Place.at(arguments.directory)
    if (place / "sweep.yaml").exists():
        from prunefuse_ray.sweep.analysis import write_results
        from prunefuse_ray.sweep.page import render_sweep

        write_results(place, render_sweep)
        console.print((place / "report.html").path)
        return 0
    from prunefuse_ray.report.page import render
    from prunefuse_ray.run.ledger import Ledger
    from prunefuse_ray.run.view import view_run

    ledger = Ledger(place)
    console.print(ledger.write_text("report.html", render(view_run(ledger))).path)
    return 0
