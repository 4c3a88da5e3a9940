"""What a source of samples does: list, index, read. Each source is one file beside this one, or of another package.

- **list**: which files lie there now. Cheap, nothing is opened: a run compares it every time that it is resumed.
- **index**: look through them once, before a run begins: rows, ids, labels, sizes. All faults are said here.
- **read**: Parquet rows, from which the stream and the tasks read: the pool's own files, or those of the index.

A source of one's own, in one file: a class on `SourceReader`, and a `config.sources.PoolSource` that names it, as entry
point of the group `prunefuse_ray.sources` or as `pool.source: my_module:MY_SOURCE`. `index.py` has what indexing takes:
`scanned` looks through files in tasks, `indexed` takes a file for a sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from prunefuse_ray import config as cfg
from prunefuse_ray.config.sources import POOL_SOURCES
from prunefuse_ray.data.index import Index, written
from prunefuse_ray.data.paths import Listing
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.sample_set import SampleSet
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.registry import load_object
from prunefuse_ray.storage import Place


class SourceReader(ABC):
    """How a source is listed, indexed and read. It holds no state: what it works on is handed to it."""

    in_place: ClassVar[bool] = False
    """Whether samples are read from the very files that are listed. Else the run directory gets the index's rows."""
    copies: ClassVar[bool] = False
    """Whether the rows of its index hold the samples themselves, and not where they lie."""
    directories: ClassVar[Mapping[str, str]] = {
        "path": "index",
        "test_path": "test-index",
        "validation_path": "validation-index",
    }
    """Setting -> where in a run's directory `pool` the rows of its index are kept."""

    def settings(self, pool: cfg.Pool) -> list[str]:
        """The settings by which a configuration names samples, the pool's first."""
        return [setting for setting in self.directories if getattr(pool, setting) is not None]

    def unique_ids(self, pool: cfg.Pool) -> bool:
        """Whether an id tells a sample from those of other sets, too. Ids that are made of paths do not: `cat/1.png`
        may stand in the pool and in the test set."""
        return False

    @abstractmethod
    def listing(self, samples: SampleSet) -> Listing:
        """The files that lie there now; none where there are none that could ever change.

        Raises:
            PoolError: there is nothing of this kind.
        """

    def class_names(self, samples: SampleSet, listing: Listing) -> Sequence[str] | None:
        """The names of the classes in the order of the labels, as far as the files tell; None where they do not."""
        return None

    @abstractmethod
    def index(self, samples: SampleSet, listing: Listing, classes: Sequence[str], new: Listing | None = None) -> Index:
        """Look through the files of `listing`.

        Args:
            new: those of them that are new, in a pool that grows: the index's parts hold their rows alone, while its
                figures are of all.

        Raises:
            PoolError: whatever is wrong with the samples, all of it at once. Ids have to be unique, labels classes.
        """

    def read(self, samples: SampleSet, where: Place) -> Source:
        """The rows; those of an index that was written below `where`."""
        return written(where, self.rows(samples))

    def rows(self, samples: SampleSet) -> Source:
        """How the index's rows are read, without its files: by default samples are ranges of bytes in files (columns
        root, file, offset, bytes)."""
        places = samples.places
        return Source(fs=places[0].fs, files=(), sizes=(), roots=places, text=samples.text)


def reader_of(pool: cfg.Pool) -> SourceReader:
    """The reader of the pool's source. ConfigError where it cannot be imported, or is none."""
    reader = POOL_SOURCES[pool.source].reader
    if isinstance(reader, str):
        reader = load_object(reader, f"the reader of pool.source '{pool.source}'")
    if not isinstance(reader, SourceReader):
        raise ConfigError(f"pool.source '{pool.source}': its reader is a {type(reader).__name__}, no SourceReader")
    return reader
