"""Folders of images: one sub-folder a class, or, where people give the labels, images in folders of any kind."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from prunefuse_ray.data.images import IMAGE_EXTENSIONS
from prunefuse_ray.data.index import Index, indexed
from prunefuse_ray.data.paths import Listing, check_names, locate
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import SourceReader
from prunefuse_ray.errors import PoolError
from prunefuse_ray.schemas import INDEX

SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)


class ImageFolders(SourceReader):
    """A file is a sample, and its path below the folder is its id."""

    def listing(self, samples: SampleSet) -> Listing:
        return locate(samples.paths, SUFFIXES, samples.field)

    def class_names(self, samples: SampleSet, listing: Listing) -> list[str] | None:
        """The sub-folders, sorted; folders without labels name nothing."""
        if not samples.labeled:
            return None
        names = sorted(set(_folders(listing, samples.field)))
        if len(names) < 2:
            raise PoolError(f"{samples.field}: one class folder ('{names[0]}') was found; at least two are needed")
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
        return indexed(rows, listing, self.rows(samples), new)


def _folders(listing: Listing, field: str) -> list[str]:
    """The sub-folder that each file lies in."""
    folders = [name.split("/", 1)[0] if "/" in name else "" for name in listing.names]
    if "" in folders:
        raise PoolError(
            f"{field}: '{listing.names[folders.index('')]}' lies outside any class folder; move it into one"
        )
    return folders


def _labels(samples: SampleSet, listing: Listing, classes: Sequence[str]) -> list[int]:
    folders = _folders(listing, samples.field)
    number = {name: n for n, name in enumerate(classes)}
    if unknown := sorted(set(folders) - number.keys()):
        raise PoolError(
            f"{samples.field}: folder '{unknown[0]}' is not one of the classes {list(classes)}; mend pool.classes or "
            "move it"
        )
    return [number[folder] for folder in folders]


IMAGES = ImageFolders()
