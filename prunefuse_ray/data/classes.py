"""The names of a pool's classes, from the configuration or from what its files say."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from prunefuse_ray import config as cfg
from prunefuse_ray.data.paths import normal
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.errors import PoolError

logger = logging.getLogger(__name__)


def classes_of(pool: cfg.Pool, named: Sequence[str] | None, field: str) -> list[str]:
    """The names of a pool's classes, in the order of its labels: the configuration's, or those that the files name, or
    else numbers. Empty where nobody says how many there are.

    Args:
        named: what the files name, at the setting `field`; None where they name nothing.

    Raises:
        PoolError: the configuration and the files disagree about their number.
    """
    if isinstance(pool.classes, list):
        return pool.classes
    if named is not None and (different := _different(named)) != list(named):
        added = ", ".join(name for name, before in zip(different, named, strict=True) if name != before)
        logger.warning("%s names several classes alike: their numbers are added to their names: %s", field, added)
        named = different
    if pool.classes is None or (named is not None and len(named) == pool.classes):
        return list(named or [])
    if named is not None:
        raise PoolError(
            f"pool.classes: {pool.classes}, but {field} names {len(named)} classes ({', '.join(named[:10])}); leave it "
            "out or fix it"
        )
    return [str(n) for n in range(pool.classes)]


def _different(named: Sequence[str]) -> list[str]:
    """The names of classes, with their numbers added to those that several have (ImageNet has two cranes): labels by
    name would mean any of them."""
    counts = Counter(map(_key, named))
    return [f"{name} ({n})" if counts[_key(name)] > 1 else name for n, name in enumerate(named)]


def _key(name: str) -> str:
    """A class's name as labels are compared with it."""
    return normal(name.strip())


def check_order(samples: SampleSet, classes: Sequence[str], named: Sequence[str] | None) -> None:
    """PoolError where labels are numbers, and files name their classes otherwise than the pool does: their labels would
    silently mean different things."""
    if why := contradiction(samples, classes, named):
        raise PoolError(
            f"{samples.field}: {why}; fix one of them, or set pool.classes to the names in the order of the labels of "
            "both"
        )


def contradiction(samples: SampleSet, classes: Sequence[str], named: Sequence[str] | None) -> str | None:
    """How files name their classes otherwise than the pool does; None where they do not. Names of the configuration's
    own go before theirs, but not a name of theirs for another number."""
    if named is None or (found := _different(named)) == list(classes):
        return None
    if isinstance(samples.pool.classes, list):
        number = {_key(name): n for n, name in enumerate(classes)}
        moved = (name for n, name in enumerate(found) if number.get(_key(name), n) != n)
        if (name := next(moved, None)) is None:
            return None
        mine, theirs = number[_key(name)], found.index(name)
        return f"'{name}' is class {theirs} of the files, and class {mine} of pool.classes"
    return f"names its classes {', '.join(named[:10])}, the pool {', '.join(classes[:10])}"


def features_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names of a column of ClassLabels, or of lists of them, which Hugging Face keeps in the schema's metadata;
    None where it has none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[column]
        while "names" not in feature:
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        names = feature["names"]
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return [str(n) for n in names] if isinstance(names, list) else None
