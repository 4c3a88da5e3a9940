"""Labels by files: a round writes `to_label/samples.csv`, people put `labels.csv` (or Parquet) beside it."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from concurrent.futures import ThreadPoolExecutor

from prunefuse_ray.annotation.label_files import SAMPLES, read_answers
from prunefuse_ray.annotation.request import BATCH, Answers, Asked, Id, Request, image_kind
from prunefuse_ray.annotation.votes import NAMED
from prunefuse_ray.data.label_tables import csv_bytes, inert
from prunefuse_ray.storage import Place, below
from prunefuse_ray.tasks import TASKS

WRITERS = 8
ON_PAGE = "PRUNEFUSE_ON_PAGE"
"""Variable of the environment of a run that `prunefuse label` started: people have the page open already."""


class Files:
    """An annotator who reads and writes files in the run directory."""

    def ask(self, request: Request) -> None:
        """Write `samples.csv`, and the images of a Parquet pool beside it; the CSV last, so that it is complete."""
        target = request.place / SAMPLES
        if target.exists():
            return
        asked, task = request.asked(), TASKS[request.task]
        if request.folder is not None:
            paths = {i: below(_absolute(request.folder), str(i)) for i in asked}
        else:
            paths = _texts(request) if request.texts else _export(request, asked)
        header = ["id", "text" if request.texts else "path", "guess", "probability", "score", "label"]
        rows = []
        for one in asked.values():
            id_ = inert(one.id) if isinstance(one.id, str) else one.id
            guess = one.guess or ""
            words = (inert(paths[one.id]), guess if task.numbers else inert(guess))
            rows.append([id_, *words, _figure(one.probability), _figure(one.score), ""])
        target.write_bytes(csv_bytes(header, rows))

    def collect(self, request: Request) -> Answers:
        """Every `labels*.csv` and `labels*.parquet` of the folder, checked as a whole."""
        return read_answers(request)

    def remedy(self, request: Request) -> str:
        if os.environ.get(ON_PAGE):
            return "on the page"
        task = TASKS[request.task]
        page = (
            f"Label them in the browser: prunefuse label {_run(request.place)}. Or write"
            if task.one_class or task.several
            else "Write"
        )
        names = f"{', '.join(request.classes[:NAMED])}{', ...' if len(request.classes) > NAMED else ''}"
        what = f"numbers: {names.replace(', ', ';')}" if task.numbers else names
        if task.pixels:
            what = f"the name of a PNG file beside it, whose pixels are the numbers of the classes {names}"
        return (
            f"in {request.place.uri}/{SAMPLES}. {page} labels.csv (or labels.parquet) beside it, with the columns id "
            f"and label ({what}); then run the same command again"
        )


def _run(place: Place) -> str:
    """The directory of the run that a round's folder belongs to, as people name it."""
    return shlex.quote(place.parent.parent.parent.path) if place.local else "RUN_DIRECTORY"


def _absolute(folder: str) -> str:
    return folder if "://" in folder else Place.at(folder).path


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _texts(request: Request) -> dict[Id, str]:
    return {i: v if isinstance(v, str) else v.decode(errors="replace") for i, v in request.values()}


def _export(request: Request, asked: dict[Id, Asked]) -> dict[Id, str]:
    """Write the images below `to_label/images`, named by rank and id, and return their paths from there."""

    def write(item: tuple[Id, bytes | str]) -> tuple[Id, str]:
        id_, data = item
        assert isinstance(data, bytes)
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", str(id_))[-80:].strip(".") or "sample"
        kind = image_kind(data)
        name = f"images/{asked[id_].rank:06d}-{safe.removesuffix('.' + kind)}.{kind}"
        (request.place / name).write_bytes(data)
        return id_, name

    found: dict[Id, str] = {}
    values = request.values(set(asked))
    with ThreadPoolExecutor(WRITERS) as threads:
        while some := list(itertools.islice(values, BATCH)):  # map() would read them all first
            found.update(threads.map(write, some))
    return found
