"""Folders of images: one sub-folder a class, or, where people give the labels, images in folders of any kind."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from prunefuse_ray.data.image_files import extensions, missing
from prunefuse_ray.data.index import Index, indexed, label_counts
from prunefuse_ray.data.paths import Listing, check_names, locate, normal
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import SourceReader
from prunefuse_ray.errors import PoolError, few
from prunefuse_ray.schemas import INDEX
from prunefuse_ray.storage import Place

READERS = 16
"""Threads that read masks."""

MASKS = frozenset({"mask", "masks", "annotations"})
"""Folders of masks, beside those of the images that they belong to."""

SPLITS = frozenset({"train", "test", "val", "valid", "validation", "images", "labels"}) | MASKS
"""Folders that data sets are divided into: where all classes are called so, the path is one folder too high."""

UNLABELED = frozenset({"_unlabeled", "unlabeled", "_unlabelled", "unlabelled", "__unlabeled__"})
"""Folders in which other tools export samples without a label, in lower case."""


def masks_among(folders: Collection[str]) -> str | None:
    """The folder of masks among several that are called as the parts of a data set are; None where it has none, or the
    folders may be classes."""
    parts = len(folders) > 1 and SPLITS.issuperset(name.lower() for name in folders)
    return next((name for name in sorted(folders) if name.lower() in MASKS), None) if parts else None


class ImageFolders(SourceReader):
    """A file is a sample, and its path below the folder is its id."""

    def listing(self, samples: SampleSet) -> Listing:
        return locate(samples.paths, extensions(), samples.field, empty=False, hints=missing())

    def class_names(self, samples: SampleSet, listing: Listing) -> list[str] | None:
        """The sub-folders, sorted; folders without labels name nothing."""
        if not samples.labeled or samples.task.pixels:
            return None
        names = sorted(set(_folders(listing, samples.field)))
        if len(names) < 2:
            raise PoolError(
                f"{samples.field}: only one class folder ('{names[0]}') was found, and at least two are needed; name "
                "the folder that holds all of them"
            )
        if SPLITS.issuperset(name.lower() for name in names):
            masks = masks_among(names)
            such = next((name for name in names if name.lower() not in MASKS), names[0])
            pixels = f"; for a class of every pixel, set task to segmentation and pool.mask_folder to {masks}"
            raise PoolError(
                f"{samples.field}: the class folders are called {', '.join(names)}, as the parts of a data set are: "
                f"give the folder that holds the classes, such as {listing.roots[0].uri}/{such}, or set "
                f"pool.classes if these are their names{pixels if masks else ''}"
            )
        if unlabeled := [name for name in names if name.lower() in UNLABELED]:
            raise PoolError(
                f"{samples.field}: the folder '{unlabeled[0]}' is what other tools call samples without a label: move "
                "it out (it can be a pool of its own, with annotation.kind), or set pool.classes if it is a class"
            )
        if alike := _alike(names):
            raise PoolError(
                f"{samples.field}: the class folders '{alike[0]}' and '{alike[1]}' differ by case or blanks alone: "
                "rename one, or set pool.classes if they are two classes"
            )
        return names

    def index(self, samples: SampleSet, listing: Listing, classes: Sequence[str], new: Listing | None = None) -> Index:
        check_names(listing, samples.field)
        count, kind = len(listing.names), samples.task.label_type
        labels: list[Any] | None = None
        if samples.labeled:
            if samples.task.numbers:
                raise PoolError(
                    f"{samples.field}: folders name classes, and the labels of task '{samples.task_name}' are numbers: "
                    "give images with their numbers in Parquet or WebDataset; or let people give them "
                    "(annotation.kind, pool.known_labels), with pool.test_samples as the test set"
                )
            labels = _masks(samples, listing, classes) if samples.task.pixels else _labels(samples, listing, classes)
        rows = pa.table(
            {
                "id": listing.names,
                "label": pa.nulls(count, kind) if labels is None else pa.array(labels, kind),
                "root": listing.root_numbers,
                "file": listing.names,
                "offset": pa.nulls(count, pa.int64()),
                "bytes": listing.sizes,
            },
            schema=INDEX.set(INDEX.get_field_index("label"), pa.field("label", kind)),
        )
        counts = label_counts(rows["label"], samples.task, len(classes))
        return indexed(rows, listing, self.rows(samples), counts, new)


def _alike(names: Sequence[str]) -> tuple[str, str] | None:
    """Two names that differ by case or blanks alone."""
    seen: dict[str, str] = {}
    for name in names:
        if (before := seen.setdefault(name.strip().casefold(), name)) != name:
            return before, name
    return None


def _folders(listing: Listing, field: str) -> list[str]:
    """The sub-folder that each file lies in, in the form in which names are compared."""
    above = (name.split("/", 1)[0] if "/" in name else "" for name in listing.names)
    spelled = dict[str, str]()  # one string for all files of a folder
    folders = [spelled.setdefault(folder, normal(folder)) for folder in above]
    if "" in folders:
        raise PoolError(
            f"{field}: '{listing.names[folders.index('')]}' lies outside any class folder; move it into one; where a "
            "table has the labels, name it as pool.known_labels and set annotation.kind"
        )
    return folders


def _labels(samples: SampleSet, listing: Listing, classes: Sequence[str]) -> list[int]:
    folders = _folders(listing, samples.field)
    number = {normal(name): n for n, name in enumerate(classes)}
    if unknown := sorted(set(folders) - number.keys()):
        raise PoolError(
            f"{samples.field}: folder '{unknown[0]}' is not one of the classes {list(classes)}; fix pool.classes or "
            "move it"
        )
    return [samples.task.label(number[folder], classes) for folder in folders]


def _masks(samples: SampleSet, listing: Listing, classes: Sequence[str]) -> list[bytes]:
    """The masks of images, which go into the index. PoolError with all that are missing or none."""
    if samples.pool.mask_folder is None:
        raise PoolError(
            "pool.mask_folder is missing: task 'segmentation' takes the masks of an image folder from one beside it"
        )
    seen: dict[tuple[int, str], str] = {}
    for root, name in zip(listing.root_numbers, listing.names, strict=True):
        if (other := seen.setdefault((root, posixpath.splitext(name)[0]), name)) != name:
            raise PoolError(
                f"{samples.field}: '{other}' and '{name}' would have the same mask; rename one, with its mask"
            )
    roots = [Place(p.fs, posixpath.join(posixpath.dirname(p.path), samples.pool.mask_folder)) for p in listing.roots]

    def read(number: int) -> bytes | str:
        name = posixpath.splitext(listing.names[number])[0] + ".png"
        place = roots[listing.root_numbers[number]] / name
        try:
            content = place.read_bytes()
        except OSError:
            return f"no {place.path}"
        good = samples.task.label(content, classes) is not None
        return content if good else f"{place.path} is {samples.task.not_a_label(len(classes))}"

    with ThreadPoolExecutor(READERS) as threads:
        found = list(threads.map(read, range(len(listing.names))))
    if faults := [one for one in found if isinstance(one, str)]:
        raise PoolError(
            f"{samples.field}: {len(faults):,} of {len(found):,} images have no mask that can be used: "
            f"{few(faults, 5, '; ', '; and {} more')}"
        )
    return [one for one in found if isinstance(one, bytes)]


IMAGES = ImageFolders()
