"""Folders of images: one sub-folder a class, or, where people give the labels, images in folders of any kind."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from prunefuse_ray.data.image_files import extensions, missing
from prunefuse_ray.data.index import Index, indexed, label_counts
from prunefuse_ray.data.paths import Listing, check_names, locate, normal
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import SourceReader
from prunefuse_ray.errors import PoolError
from prunefuse_ray.schemas import INDEX

SPLITS = frozenset({"train", "test", "val", "valid", "validation", "images", "labels"})
"""Folders that data sets are divided into: where all classes are called so, the path is one folder too high."""

UNLABELED = frozenset({"_unlabeled", "unlabeled", "_unlabelled", "unlabelled", "__unlabeled__"})
"""Folders in which other tools export samples without a label, in lower case."""


class ImageFolders(SourceReader):
    """A file is a sample, and its path below the folder is its id."""

    def listing(self, samples: SampleSet) -> Listing:
        return locate(samples.paths, extensions(), samples.field, empty=False, hints=missing())

    def class_names(self, samples: SampleSet, listing: Listing) -> list[str] | None:
        """The sub-folders, sorted; folders without labels name nothing."""
        if not samples.labeled:
            return None
        names = sorted(set(_folders(listing, samples.field)))
        if len(names) < 2:
            raise PoolError(f"{samples.field}: one class folder ('{names[0]}') was found; at least two are needed")
        if SPLITS.issuperset(name.lower() for name in names):
            raise PoolError(
                f"{samples.field}: the class folders are called {', '.join(names)}, as the parts of a data set are: "
                f"give the folder that holds the classes, such as {listing.roots[0].path}/{names[0]}, or set "
                "pool.classes if these are their names"
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
        count = len(listing.names)
        rows = pa.table(
            {
                "id": listing.names,
                "label": _labels(samples, listing, classes) if samples.labeled else pa.nulls(count, pa.int64()),
                "root": listing.root_numbers,
                "file": listing.names,
                "offset": pa.nulls(count, pa.int64()),
                "bytes": listing.sizes,
            },
            schema=INDEX,
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
    folders = [normal(name.split("/", 1)[0]) if "/" in name else "" for name in listing.names]
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
            f"{samples.field}: folder '{unknown[0]}' is not one of the classes {list(classes)}; mend pool.classes or "
            "move it"
        )
    return [samples.task.label(number[folder], classes) for folder in folders]


IMAGES = ImageFolders()
