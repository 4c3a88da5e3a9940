"""Pools of Parquet files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prunefuse_ray import config as cfg
from prunefuse_ray.data.paths import check_names, locate
from prunefuse_ray.data.pool import Source


def locate_parquet(paths: Any, pool: cfg.Pool, field: str, *, labeled: bool = True) -> Source:
    """The Parquet files at `paths`: files, directories, or patterns with * ? []. PoolError where there are none."""
    located = locate(paths, (".parquet", ".pq"), field)
    if pool.id_column is None:
        check_names(located, field)
    return Source(
        fs=located.fs,
        files=located.paths,
        sizes=located.sizes,
        names=located.names if pool.id_column is None else None,
        id_column=pool.id_column or "id",
        sample_column=pool.text_column or pool.image_column,
        label_column=pool.label_column if labeled else None,
    )


def with_groups(source: Source, pool: cfg.Pool) -> Source:
    """The source with the column by which a choice is shared out, where the configuration names one."""
    return replace(source, group_column=pool.group_column)
