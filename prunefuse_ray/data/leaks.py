"""What must not be in two sets of samples at once: files, ids and contents of the pool, the test and validation sets.

A network that is tested on what it was trained on looks better than it is, and nobody sees it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence

import pyarrow as pa

from prunefuse_ray import config as cfg
from prunefuse_ray.config.sources import PATHS
from prunefuse_ray.data.index import Index, all_ids, present
from prunefuse_ray.data.paths import Listing, as_list
from prunefuse_ray.data.patterns import may_reach, split
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.errors import ConfigError, IdsError, PoolError
from prunefuse_ray.storage import Place

SHOWN = 5


def check_files(listings: Sequence[tuple[SampleSet, Listing]]) -> None:
    """PoolError where two sets hold the same file, by whatever path or link."""
    for (one, files), (other, others) in itertools.combinations(listings, 2):
        if not files.roots or not others.roots or not files.fs.equals(others.fs):
            continue
        few, many = sorted((files, others), key=lambda listing: len(listing.names))
        shared = sorted(set(few.real_paths()).intersection(many.real_paths()))
        if shared:
            raise PoolError(
                f"{one.field} and {other.field} share {len(shared)} of the {len(others.names)} files of {other.field}, "
                f"such as '{shared[0]}'; {_remedy(one, files, other, others)}"
            )


def _remedy(one: SampleSet, files: Listing, other: SampleSet, others: Listing) -> str:
    for outer, inner in itertools.product(files.roots, others.roots):
        if outer != inner and f"{inner.path}/".startswith(f"{outer.path}/"):
            return (
                f"'{outer.path}' of {one.field} contains '{inner.path}' of {other.field}: move it out, or let "
                f"{one.field} name the other folders (a list, or a pattern: `*` within a folder, `**` across)"
            )
    return "give files that no two sets share"


def check_ids(indexes: Mapping[str, Index]) -> None:
    """PoolError where two sets hold the same id, of ids that tell samples apart over all sets."""
    for one, other in itertools.combinations(indexes, 2):
        kind = _type(indexes[one]) if indexes[one].id_type == indexes[other].id_type else pa.string()
        wanted = all_ids(indexes[other]).cast(kind).combine_chunks()
        check_absent(present(indexes[one], wanted), one, other)


def check_absent(shared: pa.Array, one: str, other: str) -> None:
    """PoolError where there are any of these ids, which two sets share."""
    if len(shared):
        shown = ", ".join(map(repr, sorted(shared.to_pylist())[:SHOWN]))
        raise IdsError(
            f"pool.{one} and pool.{other} share {len(shared)} ids, e.g. {shown}: where they are the same samples, take "
            "them out of one set; else make ids unique over all sets (pool.id_column null makes them of file names and "
            "row numbers)"
        )


def _type(index: Index) -> pa.DataType:
    return {"int64": pa.int64(), "string": pa.string()}[index.id_type]


def check_outside(pool: cfg.Pool, directory: Place, field: str) -> None:
    """ConfigError where what is written to a directory would lie in the pool, and become samples."""
    for path in (p for setting in PATHS for p in as_list(getattr(pool, setting))):
        place = Place.at(path)
        before, segments = split(place)
        inside = f"{_real(directory)}/".startswith(f"{_real(before)}/") and place.fs.equals(directory.fs)
        below = [part for part in _real(directory).removeprefix(_real(before)).split("/") if part]
        if inside and may_reach(below, segments):
            what = "reach of the pool's pattern" if segments else "pool's folder"
            raise ConfigError(
                f"{field}: '{directory.path}' lies in the {what} '{place.path}': what is written there would become "
                "samples; name another directory"
            )


def _real(place: Place) -> str:
    """Without links on the way."""
    return os.path.realpath(place.path or "/").rstrip("/") if place.local else place.path
