"""`prunefuse report`: the page of a run or a sweep, made again from its files, or served while it goes on."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunefuse_ray import interrupts
from prunefuse_ray.commands.terminal import TRUSTED_CODE_HELP, console
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.registry import trust

if TYPE_CHECKING:
    from prunefuse_ray.storage import Place


def main(argv: Sequence[str]) -> int:
    """Make the report of a run or a sweep again from its files, or watch it in the browser while it goes on."""
    parser = argparse.ArgumentParser(prog="prunefuse report", description=main.__doc__)
    parser.add_argument("directory", help="the directory of a run or a sweep (a path or URI)")
    parser.add_argument(
        "--serve",
        action="store_true",
        help="serve the report, as it stands after each phase, on this machine alone; writes nothing",
    )
    parser.add_argument("--port", type=int, metavar="N", help="port of the page, with --serve (default: any free one)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser of this machine, with --serve")
    parser.add_argument("--trusted", metavar="NAME", action="append", default=[], help=TRUSTED_CODE_HELP)
    arguments = parser.parse_args(list(argv))
    if (arguments.port is not None or arguments.open) and not arguments.serve:
        raise ConfigError(f"{'--open' if arguments.port is None else '--port'}: only with --serve")
    trust(arguments.trusted)
    from prunefuse_ray.storage import Place

    place = Place.at(arguments.directory)
    sweep = (place / "sweep.yaml").exists()
    if arguments.serve:
        return _serve(place, sweep, arguments.port or 0, arguments.open)
    if sweep:
        from prunefuse_ray.sweep.analysis import write_results
        from prunefuse_ray.sweep.page import render_sweep

        write_results(place, render_sweep)
        console.print((place / "report.html").uri, markup=False)
        return 0
    from prunefuse_ray.report.page import render
    from prunefuse_ray.run.ledger import Ledger
    from prunefuse_ray.run.view import view_run

    ledger = Ledger(place)
    console.print(ledger.write_text("report.html", render(view_run(ledger))).uri, markup=False)
    return 0


def _serve(place: Place, sweep: bool, port: int, opened: bool) -> int:
    """Until a signal ends it."""
    from prunefuse_ray.run.ledger import Ledger
    from prunefuse_ray.run.live import LiveReport, Watched, WatchedRun
    from prunefuse_ray.sweep.live import WatchedSweep

    if not sweep and not Ledger(place).exists:
        raise ConfigError(
            f"{place.uri}: is no directory of a run or a sweep (it has neither config.yaml nor sweep.yaml); "
            "`prunefuse run` begins one"
        )
    watched: Watched = WatchedSweep(place) if sweep else WatchedRun(place)
    page = LiveReport(watched, port=port)
    try:
        console.print(f"the {watched.kind} in the browser: {page.address}")
        console.print(
            f"(only from this machine, or through a forwarded port; Ctrl-C ends the page, not the {watched.kind})"
        )
        if opened:
            page.open()
        while True:
            interrupts.check()  # a signal that came where its exception was lost
            time.sleep(0.5)
    except KeyboardInterrupt:
        print(f"the page is closed; the {watched.kind} is as it was", file=sys.stderr)
        return interrupts.exit_code()
    finally:
        page.close()
