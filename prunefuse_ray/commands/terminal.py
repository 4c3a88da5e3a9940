"""What the commands share: the console, the start of Ray, how figures are written."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from rich.console import Console

from prunefuse_ray.errors import CONTROL

TRUSTED_HELP = "the network's architecture, or task, if it is code of your own (module:name); may be repeated"

TRUSTED_CODE_HELP = "code of your own (module:name) that the directory names and that may be imported; may be repeated"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read (`| head`) has gone: the work goes on, and says nothing more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


console = _Console(highlight=False, soft_wrap=True)
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = 160  # of a pipe or a log nothing is known, and a table that is cut there has lost its figures


def quiet() -> None:
    """Ray's libraries log to the console of a person who asked for a line per round; warnings stay."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if os.environ.get("RAY_ADDRESS") and not console.is_terminal:
        # A submitted job: its log is what people and collectors read, so the run's events go there too.
        events = logging.getLogger("prunefuse_ray.events")
        events.addHandler(logging.StreamHandler())
        events.setLevel(logging.INFO)
        events.propagate = False


def account(lines: Sequence[str]) -> None:
    """Print the account of a pool: what its names hold is no markup, and nothing that a terminal obeys."""
    for line in lines:
        console.print(CONTROL.sub("\ufffd", line), markup=False)


def si(value: float) -> str:
    """A count with its SI prefix: 1.23 G."""
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:  # so that 999,999 is 1 M, not 1e+03 k
            return f"{value / factor:.3g} {prefix}"
    return f"{value:g}" if value else ""
