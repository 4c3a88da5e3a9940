"""What a notebook shows of a run that its cell carries out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prunefuse_ray.run.under_way import shown
from prunefuse_ray.storage import Place


@contextmanager
def display(place: Place) -> Iterator[None]:
    """Inside, a line of the cell's output says what the run is doing and what is left; outside of a notebook there is
    none. It needs no widgets."""
    ipython = sys.modules.get("IPython")
    if getattr(ipython.get_ipython() if ipython else None, "kernel", None) is None:
        yield
        return
    from IPython.display import DisplayHandle

    handle, started, end = DisplayHandle(), time.monotonic(), "ended"
    handle.display(_as_text("starting"), raw=True)
    try:
        with shown(place, lambda line: handle.update(_as_text(line), raw=True)):
            yield
        end = "finished"
    finally:
        handle.update(_as_text(f"{end} after {time.monotonic() - started:.0f} s"), raw=True)


def _as_text(line: str) -> dict[str, str]:
    return {"text/plain": line}
