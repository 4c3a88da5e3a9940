"""`prunefuse report`: the page of a run, made again from its files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from prunefuse_ray.commands.terminal import console


def main(argv: Sequence[str]) -> int:
    """Make the report of a run again from its files."""
    parser = argparse.ArgumentParser(prog="prunefuse report", description=main.__doc__)
    parser.add_argument("directory", help="a run directory (a path or URI)")
    arguments = parser.parse_args(list(argv))
    from prunefuse_ray.ledger import Ledger
    from prunefuse_ray.report import render
    from prunefuse_ray.storage import Place
    from prunefuse_ray.views import view_run

    ledger = Ledger(Place.at(arguments.directory))
    console.print(ledger.write_text("report.html", render(view_run(ledger))).path)
    return 0
