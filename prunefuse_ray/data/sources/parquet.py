"""Parquet files with a column of images or texts, read where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prunefuse_ray import config as cfg
from prunefuse_ray.data.classes import check_order, features_names
from prunefuse_ray.data.index import Index
from prunefuse_ray.data.inspection import inspect_parquet, read_schema
from prunefuse_ray.data.left_out import gathered
from prunefuse_ray.data.paths import Listing, as_list, check_names, locate
from prunefuse_ray.data.pool import Source, with_groups
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.data.sources.base import SourceReader
from prunefuse_ray.errors import PoolError
from prunefuse_ray.storage import Place

SUFFIXES = (".parquet", ".pq")
MADE = "file:row"
"""The column of ids that are made here: a file may have one that is called `id`, and is none."""
NAMED = ("classification", "multi_label")
"""Tasks whose labels may be names; those of other packages read their labels by themselves."""


class ParquetFiles(SourceReader):
    """Ids come from a column, or are made of a file's name and the number of the row."""

    in_place = True

    def unique_ids(self, pool: cfg.Pool) -> bool:
        return pool.id_column is not None

    def listing(self, samples: SampleSet) -> Listing:
        """Files in different directories may have the same name: records have to know them by their paths."""
        several = not isinstance(samples.paths, str)
        return replace(locate(samples.paths, SUFFIXES, samples.field), whole_paths=several)

    def class_names(self, samples: SampleSet, listing: Listing) -> list[str] | None:
        """What Hugging Face wrote into the first file's metadata."""
        schema = read_schema(listing.fs, listing.paths[0], samples.field)
        column = samples.pool.label_column
        return features_names(schema, column) if isinstance(column, str) and not samples.task.numbers else None

    def index(self, samples: SampleSet, listing: Listing, classes: Sequence[str], new: Listing | None = None) -> Index:
        source = _source(samples, listing)
        if listing.of_table is None:
            _refuse_tables(samples, listing)
        if new is None:
            check_order(samples, classes, self.class_names(samples, listing))
        checked = with_groups(source, samples.pool) if samples.setting == "path" else source
        fresh = set() if new is None else set(new.paths)
        ids = listing.of_table.field_ids if listing.of_table is not None else None
        found = inspect_parquet(checked, samples, classes, fresh, ids)
        return Index(
            rows=found.rows,
            bytes=sum(listing.sizes),
            files=len(listing.names),
            listing_digest=listing.digest,
            id_digest=f"{found.id_digest:016x}",
            id_type=found.id_type,
            source=source,
            version=listing.of_table.version if listing.of_table is not None else None,
            labels=found.labels,
            left_out=gathered(listing.left_out),
        )

    def read(self, samples: SampleSet, where: Place) -> Source:
        return _source(samples, self.listing(samples))


def _refuse_tables(samples: SampleSet, listing: Listing) -> None:
    """PoolError where a folder is that of a data lake's table, or has one below it: files that the table no longer has
    lie there, too."""
    for path in as_list(samples.paths):
        place = Place.at(path)
        if (place / ".hoodie").is_directory:
            raise PoolError(
                f"{samples.field}: '{path}' is a table of Hudi, whose folder keeps earlier versions of its files, and "
                "rows that it has deleted; write its newest version as plain Parquet, or name the files themselves by "
                "a pattern, if all of them are meant"
            )
        metadata = [file.base_name for file in (place / "metadata").files()]
        kinds = {
            "delta": (place / "_delta_log").is_directory,
            "iceberg": any(name.endswith(".metadata.json") for name in metadata),
        }
        for name in (name for name, so in kinds.items() if so):
            raise PoolError(
                f"{samples.field}: '{path}' is a table of {name}, whose files may hold rows that it has deleted; set "
                f"pool.source to {name}, or name the files themselves by a pattern, if all of them are meant"
            )
    for out in listing.left_out:
        for name, folder, end in (("delta", "/_delta_log/", ".json"), ("iceberg", "/metadata/", ".metadata.json")):
            table, found, file = f"/{out.name}".partition(folder)
            if found and file.endswith(end):
                raise PoolError(
                    f"{samples.field}: '{table.lstrip('/')}' in it is a table of {name}, whose files may hold rows "
                    f"that it has deleted; set pool.source to {name} and name one table, or name the files themselves "
                    "by a pattern (*/*.parquet), if all of them are meant"
                )


def _source(samples: SampleSet, listing: Listing) -> Source:
    pool = samples.pool
    if pool.id_column is None:
        check_names(listing, samples.field)
    return Source(
        fs=listing.fs,
        files=listing.paths,
        sizes=listing.sizes,
        names=listing.names if pool.id_column is None else None,
        id_column=pool.id_column or MADE,
        sample_column=samples.sample_column,
        label_column=samples.label_column,
        task=samples.task_name,
        class_names=tuple(pool.classes) if isinstance(pool.classes, list) and samples.task_name in NAMED else (),
        deleted=listing.of_table.deleted if listing.of_table is not None else {},
    )


PARQUET = ParquetFiles()
