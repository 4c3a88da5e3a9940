"""What a round asks of its annotators, and the form in which their answers come back; nothing of Ray."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from prunefuse_ray.data.colors import Range
from prunefuse_ray.data.image_files import as_seen, formats
from prunefuse_ray.data.images import encode_png, sample_values
from prunefuse_ray.data.reading import parquet_file
from prunefuse_ray.data.vectors import shown
from prunefuse_ray.errors import LabelError
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS
from prunefuse_ray.tasks.classification import CLASSIFICATION

Id = int | str
BATCH = 64  # samples in memory at a time


class Away(LabelError):
    """Who keeps the labels does not answer now, and may do so later."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One sample as annotators are asked about it."""

    id: Id
    rank: int
    score: float | None
    guess: str | None
    """The class that the proxy of the round before thinks most likely; None in round 0."""
    probability: float | None
    """Its probability under that proxy."""
    names: tuple[str, ...] = ()
    """The classes of the guess."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One round's samples that need labels."""

    run: str
    marker: str
    """Tells this run from every other one, on a server that holds several."""
    round: int
    classes: Sequence[str]
    rows: pa.Table
    """`request_schema`"""
    place: Place
    """rounds/NNN/to_label, where files for annotators go"""
    samples: tuple[Place, ...]
    """Parquet files of (id, sample)"""
    texts: bool
    task: str = CLASSIFICATION.name
    """`tasks.TASKS`"""
    value_range: Range | None = None
    """`pool.value_range`, of images of more than 8 bits."""
    folder: str | None = None
    """Path or URI of the image folder that ids are relative to; None where the samples come out of Parquet."""

    @property
    def id_type(self) -> pa.DataType:
        return self.rows.schema.field("id").type

    @property
    def ids(self) -> list[Id]:
        """Ids in the order of their rank."""
        return self.rows["id"].to_pylist()

    def asked(self) -> dict[Id, Asked]:
        """The samples by id, in the order of their rank."""
        task = TASKS[self.task]
        found = {}
        for row in self.rows.to_pylist():
            guess = row["guess"]
            words = None if guess is None else task.caption(guess, self.classes)
            names = () if guess is None else tuple(task.names(guess, self.classes))
            found[row["id"]] = Asked(**row | {"guess": words, "names": names})
        return found

    def values(self, only: set[Id] | None = None) -> Iterator[tuple[Id, bytes | str]]:
        """(id, sample) a few at a time: texts as they are, images as encoded bytes that every viewer shows alike."""
        for place in self.samples:
            with place.fs.open_input_file(place.path) as stream:
                columns = ["id", "sample"]
                for batch in parquet_file(stream, columns).iter_batches(batch_size=BATCH, columns=columns):
                    table = pa.Table.from_batches([batch])
                    if only is not None:
                        table = table.filter(pa.array([i in only for i in table["id"].to_pylist()], pa.bool_()))
                    for id_, value in zip(table["id"].to_pylist(), sample_values(table["sample"]), strict=True):
                        yield id_, self._shown(value)

    def _shown(self, value: Any) -> bytes | str:
        if isinstance(value, bytes):
            return as_seen(value, self.value_range)
        if isinstance(value, str):
            return value
        return shown(value) if np.ndim(value) == 1 else encode_png(np.asarray(value))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What annotators have given so far."""

    annotations: pa.Table
    """`annotations_schema`"""
    unsure: Mapping[tuple[Id, str], datetime] = field(default_factory=dict)
    """(id, annotator) -> when they said that they cannot tell the class."""
    faults: tuple[str, ...] = ()
    """What has to be put right before any of it is taken."""
    notes: tuple[str, ...] = ()
    """What was left aside, and what was understood otherwise than written."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name of a file that labels were read from -> SHA-256 of its contents."""


class Annotator(Protocol):
    """Someone who labels the samples of a round, some time."""

    def ask(self, request: Request) -> None:
        """Put the samples before the annotators. Called again, also after a kill at any moment, it completes what is
        missing and changes nothing else."""

    def collect(self, request: Request) -> Answers:
        """What they have given so far."""

    def remedy(self, request: Request) -> str:
        """Where the samples wait and what to do, to follow '12 samples wait for labels '."""


def image_kind(data: bytes) -> str:
    """File ending of encoded image bytes ("png", "jpg", ...); "bin" where Pillow does not know them."""
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            kind = (image.format or "bin").lower()
            return {"jpeg": "jpg", "mpo": "jpg"}.get(kind, kind)  # to viewers, MPO is JPEG
    except Exception:  # Pillow's parsers raise anything; the file is exported as it is
        return "bin"


SHOWN_BY_BROWSERS = ("png", "jpg", "webp", "gif", "bmp")


def for_browsers(data: bytes, longest: int) -> tuple[str, bytes]:
    """(media type, image) as browsers show it: scaled down to `longest` pixels, and as PNG, where that is needed. What
    cannot be decoded stays as it is, as application/octet-stream: people see that it is broken."""
    kind = image_kind(data)
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            if max(image.size) > longest or kind not in SHOWN_BY_BROWSERS:
                kind = "jpg" if kind == "jpg" else "png"
                shown = image.convert("RGB" if kind == "jpg" else "RGBA" if "A" in image.mode else "RGB")
                shown.thumbnail((longest, longest))
                buffer = io.BytesIO()
                shown.save(buffer, format="JPEG" if kind == "jpg" else "PNG")
                data = buffer.getvalue()
    except Exception:  # whatever a codec raises
        return "application/octet-stream", data
    return "image/" + {"jpg": "jpeg"}.get(kind, kind), data
