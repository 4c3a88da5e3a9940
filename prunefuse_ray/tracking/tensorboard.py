"""TensorBoard: event files in the run directory, below `tensorboard/`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from prunefuse_ray.progress import temporary
from prunefuse_ray.registry import installed
from prunefuse_ray.tracking.tracker import Figures, Status, TrackedRun, Tracker, short

DIRECTORY = "tensorboard"


class _Events:
    """One event file for each driver, written on this machine and copied into the run directory after every round,
    since object stores cannot append. It begins with a purge: what earlier drivers wrote counts no more, and is told
    again."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._run = run
        self._local = Path(tempfile.mkdtemp(prefix="prunefuse-tensorboard-", dir=temporary()))
        self._writer = SummaryWriter(str(self._local), purge_step=0)
        parameters = {name: short(value) for name, value in run.parameters.items()}
        # Only the names of the metrics: the values are those of the scalars.
        measured = dict.fromkeys((f"fused_{run.metric}", f"proxy_{run.metric}"), 0)
        for summary in hparams(parameters, measured):
            self._writer._get_file_writer().add_summary(summary)
        for figures in run.before:
            self._add(figures)
        self._keep()

    def log(self, figures: Figures) -> None:
        self._add(figures)
        self._keep()

    def close(self, status: Status) -> None:
        self._writer.close()
        shutil.rmtree(self._local)

    def _add(self, figures: Figures) -> None:
        for name, value in figures.values.items():
            self._writer.add_scalar(name, value, figures.round)
        for name, value in figures.learning_curve(self._run.metric).items():
            self._writer.add_scalar(name, value, figures.labels)

    def _keep(self) -> None:
        self._writer.flush()
        for file in self._local.iterdir():
            self._run.keep(f"{DIRECTORY}/{file.name}", file.read_bytes())


def _callback(sweep: str) -> Any:
    from ray.tune.logger import TBXLoggerCallback

    return TBXLoggerCallback()


TENSORBOARD = Tracker(
    name="tensorboard",
    about="event files in the run directory: tensorboard --logdir RUN/tensorboard",
    open=_Events,
    callback=_callback,
    lacks=installed("tensorboard", "tensorboard"),
)
