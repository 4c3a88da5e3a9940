"""What a run selected as a dataset for other tools: images with their labels, scores, rounds and ranks.

The images are the copies in the run directory, as people see them (turned, in 8 bits). COCO JSON (Lin et al. 2014,
cocodataset.org/#format-data), FiftyOne's FiftyOneImageClassificationDataset and Parquet for Hugging Face `datasets` are
written, one file of samples after the other: no more than one is held in memory.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from prunefuse_ray.annotation.request import image_kind
from prunefuse_ray.config import Config
from prunefuse_ray.errors import LedgerError, PlanError
from prunefuse_ray.method.steps import LABEL, SELECT, Step
from prunefuse_ray.run.growth import seen_info
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.run.view import samples_as_seen
from prunefuse_ray.schemas import labels_schema, selected_schema
from prunefuse_ray.storage import Place, json_bytes
from prunefuse_ray.tasks import TASKS, Task
from prunefuse_ray.tasks.segmentation import decoded

IMAGES = "data"
"""Folder of the images, beside the file that names them."""


@dataclass(frozen=True, kw_only=True)
class Selected:
    """One selected sample that has a label."""

    number: int
    """In the order of rounds and ranks, from 1."""
    id: str
    round: int
    rank: int
    score: float | None
    label: Any
    """As the task keeps it."""
    image: bytes
    """Encoded."""
    size: tuple[int, int]
    """(width, height)"""

    @property
    def name(self) -> str:
        return f"{self.number:06d}.{image_kind(self.image)}"

    @property
    def figures(self) -> dict[str, Any]:
        return {"id": self.id, "round": self.round, "rank": self.rank, "score": self.score}


def selections(config: Config, ledger: Ledger) -> Iterator[Selected]:
    """What was selected and labeled so far, a file of samples after the other.

    Raises:
        LedgerError: nothing is labeled yet.
        PlanError: samples that are no images.
    """
    if config.pool.text_column is not None or config.pool.vector_column is not None:
        raise PlanError(
            "--format: this run's samples are no images; its selected.csv and labels.csv hold what it chose"
        )
    info, task, before = seen_info(config, ledger), TASKS[config.task], 0
    rounds = [r for r in range(len(config.selection.budgets)) if ledger.committed(Step(r, LABEL))]
    if not rounds:
        raise LedgerError(f"{ledger.root.path}: nothing is labeled yet, so there is nothing to export")
    for r in rounds:
        chosen = ledger.read_table(Step(r, SELECT), "selected.parquet", selected_schema(info.id_type))
        given = ledger.read_table(Step(r, LABEL), "labels.parquet", labels_schema(info.id_type, task.label_type))
        labels = dict(zip(given["id"].to_pylist(), given["label"].to_pylist(), strict=True))
        rows = {row["id"]: row for row in chosen.to_pylist() if row["id"] in labels}
        wanted = pa.array(list(rows), chosen.schema.field("id").type)
        for path in ledger.files(Step(r, LABEL), "samples")[0]:
            for id_, image in samples_as_seen(Place(ledger.root.fs, path), wanted, config.pool.value_range).items():
                if not isinstance(image, bytes):
                    continue
                row = rows[id_]
                with Image.open(io.BytesIO(image)) as opened:
                    size = opened.size
                yield Selected(number=before + row["rank"] + 1, id=str(id_), round=r, rank=row["rank"],
                               score=row["score"], label=labels[id_], image=image, size=size)  # fmt: skip
        before += chosen.num_rows


def write_coco(config: Config, ledger: Ledger, out: Place) -> int:
    """COCO JSON (`annotations.json`) with the images beside it; returns their number.

    Scores, rounds, ranks and the pool's ids stand in the images' entries. COCO knows labels of places alone: a label of
    a whole image is an annotation whose box is the image. Masks are run lengths, a class each, column by column.
    """
    classes = _classes(config, ledger, "coco")
    task, images, annotations = TASKS[config.task], list[dict[str, Any]](), list[dict[str, Any]]()
    for one in selections(config, ledger):
        (out / IMAGES / one.name).write_bytes(one.image)
        (width, height), figures = one.size, {f"prunefuse_{k}": v for k, v in one.figures.items() if k != "score"}
        images.append({"id": one.number, "file_name": one.name, "width": width, "height": height,
                       "score": one.score, **figures})  # fmt: skip
        for place in _places(task, one, classes):
            annotations.append({"id": len(annotations) + 1, "image_id": one.number, "iscrowd": 0, **place})
    categories = [{"id": n, "name": name, "supercategory": ""} for n, name in enumerate(classes, 1)]
    told = {"description": f"selected by prunefuse_ray, run {config.run.name}"}
    tree = {"info": told, "licenses": [], "images": sorted(images, key=_number), "annotations": annotations,
            "categories": categories}  # fmt: skip
    (out / "annotations.json").write_bytes(json_bytes(tree))
    return len(images)


def write_fiftyone(config: Config, ledger: Ledger, out: Place) -> int:
    """FiftyOne's format for image classification (`labels.json`, `data/`); returns the number of images. Score, round,
    rank and the pool's id are attributes of the labels."""
    classes = _classes(config, ledger, "fiftyone")
    task = TASKS[config.task]
    if task.pixels:
        raise PlanError(
            "--format fiftyone is for labels of whole images: use --format coco, which FiftyOne imports, too"
        )
    labels: dict[str, Any] = {}
    count = 0
    for one in selections(config, ledger):
        (out / IMAGES / one.name).write_bytes(one.image)
        figures = {"pool_id" if k == "id" else k: v for k, v in one.figures.items()}  # `id` is FiftyOne's own
        given = [{"label": name, "attributes": figures} for name in task.names(one.label, classes)]
        labels[one.name.partition(".")[0]] = given if task.several else given[0]
        count += 1
    (out / "labels.json").write_bytes(json_bytes({"classes": classes, "labels": labels}))
    return count


ROW_GROUP = 100
"""Images of a row group, as `datasets` writes them: what a reader has to hold for one of them."""


def write_datasets(config: Config, ledger: Ledger, out: Place) -> int:
    """Parquet (`data/train-00000-of-00001.parquet`) with the metadata by which Hugging Face `datasets` knows images and
    the names of classes (its `Features`); returns the number of images. It takes no package to write, and whatever else
    reads Parquet reads it, too."""
    task = TASKS[config.task]
    schema = datasets_schema(task, list(seen_info(config, ledger).classes))
    label_of: Callable[[Any], Any] = _bytes if task.pixels else lambda label: label
    found = selections(config, ledger)
    first = list(itertools.islice(found, ROW_GROUP))  # before a file is begun: faults are said by now
    file, count = out / IMAGES / "train-00000-of-00001.parquet", 0
    file.fs.create_dir(file.parent.path, recursive=True)
    try:
        with file.fs.open_output_stream(file.path) as stream, pq.ParquetWriter(stream, schema) as writer:
            while some := first or list(itertools.islice(found, ROW_GROUP)):
                rows = [{**one.figures, "image": _bytes(one.image), "label": label_of(one.label)} for one in some]
                writer.write_table(pa.Table.from_pylist(rows, schema))
                count, first = count + len(rows), []
    except BaseException:
        file.delete()  # it could be read, and would be taken for the whole
        raise
    return count


def _bytes(image: bytes) -> dict[str, Any]:
    return {"bytes": image, "path": None}


def datasets_schema(task: Task, classes: list[str]) -> pa.Schema:
    """The columns of `write_datasets`, with the feature of each (huggingface.co/docs/datasets/about_dataset_features).
    A list is called Sequence, as versions before and since 4 read it."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    label: Any = {"names": classes, "_type": "ClassLabel"}
    if task.pixels:
        label = {"_type": "Image"}
    elif task.numbers:
        dtype = "float64" if pa.types.is_float64(task.label_type.value_type) else "float32"
        label = {"feature": {"dtype": dtype, "_type": "Value"}, "_type": "Sequence"}
    elif task.several:
        label = {"feature": label, "_type": "Sequence"}
    columns: dict[str, tuple[pa.DataType, Any]] = {
        "image": (image, {"_type": "Image"}),
        "label": (image if task.pixels else task.label_type, label),
        "id": (pa.string(), {"dtype": "string", "_type": "Value"}),
        "round": (pa.int64(), {"dtype": "int64", "_type": "Value"}),
        "rank": (pa.int64(), {"dtype": "int64", "_type": "Value"}),
        "score": (pa.float32(), {"dtype": "float32", "_type": "Value"}),
    }
    told = {"info": {"features": {name: features for name, (_, features) in columns.items()}}}
    return pa.schema([(name, kind) for name, (kind, _) in columns.items()], {"huggingface": json.dumps(told)})


WRITERS: dict[str, Callable[[Config, Ledger, Place], int]] = {
    "coco": write_coco,
    "fiftyone": write_fiftyone,
    "datasets": write_datasets,
}


def _classes(config: Config, ledger: Ledger, format_: str) -> list[str]:
    if TASKS[config.task].numbers:
        raise PlanError(f"--format {format_} has no place for numbers: selected.csv and labels.csv hold them")
    return list(seen_info(config, ledger).classes)


def _places(task: Task, one: Selected, classes: list[str]) -> Iterator[dict[str, Any]]:
    width, height = one.size
    if not task.pixels:
        for name in task.names(one.label, classes):
            yield {"category_id": classes.index(name) + 1, "bbox": [0, 0, width, height], "area": width * height}
        return
    mask_HW = decoded(one.label)
    for number in np.unique(mask_HW[mask_HW < len(classes)]).tolist():
        here_HW = mask_HW == number
        y, x = np.nonzero(here_HW)
        box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
        lengths = {"counts": run_lengths(here_HW), "size": list(mask_HW.shape)}
        yield {"category_id": number + 1, "bbox": box, "area": int(here_HW.sum()), "segmentation": lengths}


def run_lengths(mask_HW: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of a boolean mask: column by column, how many are false, true, false, ..."""
    flat = mask_HW.reshape(-1, order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    ends = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(ends).tolist()
    return [0, *counts] if flat[0] else counts


def _number(image: dict[str, Any]) -> int:
    return image["id"]
