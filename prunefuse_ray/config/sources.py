"""Sources of samples as a configuration sees them: what each is, which fields of `pool` it takes, what it may.

What a source does with files is its reader's (`data/sources/`), which is imported only when a pool is looked at: a
configuration is checked, and help written, without Ray and Arrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prunefuse_ray.errors import ConfigError
from prunefuse_ray.registry import Registry

SOURCE_FIELDS = (
    "path",
    "test_path",
    "validation_path",
    "id_column",
    "image_column",
    "text_column",
    "vector_column",
    "label_column",
    "group_column",
    "sample_key",
    "mask_folder",
    "version",
    "test_version",
    "validation_version",
)
"""Fields of `pool` that only some sources take. All others are of use whatever the source."""
PATHS = ("path", "test_path", "validation_path")
VERSIONS = ("version", "test_version", "validation_version")


@dataclass(frozen=True, kw_only=True)
class PoolSource:
    """A source of samples."""

    help: str
    """What `pool.path` names, in a few words; for `prunefuse list sources` and the documents."""
    ids: str
    """What a sample's id is, in a few words."""
    labels: str
    """Where labels stand (for benchmarks and held-out sets), in a few words."""
    reader: Any
    """How it is listed, indexed and read: a `prunefuse_ray.data.sources.base.SourceReader`, or its reference
    `module:NAME`, which is imported when a pool is first looked at."""
    fields: tuple[str, ...] = (*PATHS, "label_column")
    """Those of SOURCE_FIELDS that it takes."""
    needs: tuple[str, ...] = ("path", "test_path")
    """Those of them that have to be given."""
    needs_one: tuple[str, ...] = ()
    """Those of them of which one has to be given."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Field of `pool` -> its default with this source, where that is another one."""
    several_label_columns: bool = False
    """Whether several columns may be one label together."""
    may_grow: bool = False
    """Whether new files may be taken in between two rounds (`pool.allow_growth`)."""
    ids_are_paths: bool = False
    """Whether an id is the path of a file below `path`: people who label then open the files where they lie."""
    label_changing: Mapping[str, str] = field(default_factory=dict)
    """Augmentation that would change what the label says -> why."""
    imports: tuple[str, ...] = ()
    """Modules that its reader will need and that take long to import: a run imports them while Ray starts."""

    def __post_init__(self) -> None:
        if wrong := [name for name in (*self.fields, *self.needs) if name not in SOURCE_FIELDS]:
            raise ConfigError(
                f"a source of samples takes '{wrong[0]}', which is none of the fields {', '.join(SOURCE_FIELDS)}"
            )


DIGITS = PoolSource(
    help="nothing: the embedded example",
    ids="its number",
    labels="the digit",
    reader="prunefuse_ray.data.sources.digits:DIGITS",
    fields=(),
    needs=(),
    defaults={"channels": 1},
    label_changing={"flip": "turns digits into other signs"},
    imports=("sklearn.datasets",),
)
PARQUET = PoolSource(
    help="Parquet files; also Hugging Face's shards",
    ids="`id_column`; `null`: file name and row, `a.parquet:17`",
    labels="`label_column`, integers or names in `classes`, lists of them, numbers; or several columns",
    reader="prunefuse_ray.data.sources.parquet:PARQUET",
    fields=tuple(f for f in SOURCE_FIELDS if f not in ("sample_key", "mask_folder", *VERSIONS)),
    several_label_columns=True,
    may_grow=True,
)
_LAKE: dict[str, Any] = {
    "ids": "`id_column`; `null`: data file and row",
    "labels": PARQUET.labels,
    "fields": (*PARQUET.fields, *VERSIONS),
    "several_label_columns": True,
    "may_grow": True,
}
DELTA = PoolSource(
    help="a Delta Lake table",
    reader="prunefuse_ray.data.sources.lake:DELTA",
    imports=("deltalake",),
    **_LAKE,
)
LANCE = PoolSource(
    help="a Lance table",
    ids=_LAKE["ids"],
    labels=_LAKE["labels"],
    reader="prunefuse_ray.data.sources.lance:LANCE",
    fields=tuple(f for f in _LAKE["fields"] if f != "group_column"),
    several_label_columns=True,
    imports=("lance",),
)
ICEBERG = PoolSource(
    help="an Apache Iceberg table: `catalog.namespace.table`, or its metadata file",
    reader="prunefuse_ray.data.sources.lake:ICEBERG",
    imports=("pyiceberg.table",),
    **_LAKE,
)
IMAGES = PoolSource(
    help="folders of images",
    ids="path below the folder",
    labels="sub-folder; of every pixel: `mask_folder`",
    reader="prunefuse_ray.data.sources.images:IMAGES",
    fields=(*PATHS, "mask_folder"),
    may_grow=True,
    ids_are_paths=True,
)
WEBDATASET = PoolSource(
    help="uncompressed tar files",
    ids="shard and key, `shard-000/0017`",
    labels="`label_column`: member `cls`, or `json:FIELD`",
    reader="prunefuse_ray.data.sources.webdataset:WEBDATASET",
    fields=(*PATHS, "image_column", "label_column", "sample_key"),
    defaults={"label_column": "cls"},
)
HUGGINGFACE = PoolSource(
    help="what `save_to_disk` wrote",
    ids="file and row",
    labels="`label_column`",
    reader="prunefuse_ray.data.sources.huggingface:HUGGINGFACE",
    fields=(*PATHS, "image_column", "text_column", "label_column"),
)

_TABLES: dict[str, Any] = {
    "labels": "`label_column`",
    "fields": (*PATHS, "id_column", "text_column", "vector_column", "label_column"),
    "needs_one": ("text_column", "vector_column"),
    "several_label_columns": True,
    "defaults": {"id_column": None},
}
CSV = PoolSource(
    help="CSV files of texts or vectors",
    ids="file and row, `a.csv:17`; or `id_column`",
    reader="prunefuse_ray.data.sources.tables:CSV",
    **_TABLES,
)
JSONL = PoolSource(
    help="JSON Lines of texts or vectors",
    ids="file and row, `a.jsonl:17`; or `id_column`",
    reader="prunefuse_ray.data.sources.tables:JSONL",
    **_TABLES,
)

POOL_SOURCES: Registry[PoolSource] = Registry(
    "source of samples",
    "prunefuse_ray.config.sources:PoolSource",
    "prunefuse_ray.sources",
    {
        "digits": "prunefuse_ray.config.sources:DIGITS",
        "parquet": "prunefuse_ray.config.sources:PARQUET",
        "images": "prunefuse_ray.config.sources:IMAGES",
        "webdataset": "prunefuse_ray.config.sources:WEBDATASET",
        "huggingface": "prunefuse_ray.config.sources:HUGGINGFACE",
        "csv": "prunefuse_ray.config.sources:CSV",
        "jsonl": "prunefuse_ray.config.sources:JSONL",
        "lance": "prunefuse_ray.config.sources:LANCE",
        "delta": "prunefuse_ray.config.sources:DELTA",
        "iceberg": "prunefuse_ray.config.sources:ICEBERG",
    },
)
EXAMPLE = "digits"
"""The source of the empty configuration."""


def source_defaults(name: Any) -> Mapping[str, Any]:
    """The defaults that a source has of its own; none for what is no source: validation says that by itself."""
    with suppress(ConfigError):
        return POOL_SOURCES[name].defaults if isinstance(name, str) else {}
    return {}


def taking(field_: str) -> str:
    """The sources that take a field of `pool`, in words."""
    return _in_words(name for name, source in _loadable() if field_ in source.fields)


def growing() -> str:
    """The sources that may grow, in words."""
    return _in_words(name for name, source in _loadable() if source.may_grow)


def _loadable() -> Iterable[tuple[str, PoolSource]]:
    """All but the sources of other packages that cannot be imported: a hint must not fail by them."""
    for name in POOL_SOURCES:
        with suppress(ConfigError):
            yield name, POOL_SOURCES[name]


def _in_words(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
