"""What the benchmarks of scoring share: a network on disk, and a pass over a pool with it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prunefuse_ray import networks
from prunefuse_ray.data.pool import Source
from prunefuse_ray.distributed.resources import ScoringPlan
from prunefuse_ray.scoring.scorer import ScoringJob, score_pool
from prunefuse_ray.storage import Place


def save(directory: Path, network: networks.Selector | networks.Dense) -> Place:
    """Write a network as a run does; the directory."""
    place = Place.at(str(directory))
    for file, content in networks.to_files(network).items():
        (place / file).write_bytes(content)
    return place


def score(directory: Path, source: Source, network: Place, job: ScoringJob, plan: ScoringPlan, rows: int) -> None:
    """A pass over a source of so many rows, from the call to the last file; the files are removed.

    Args:
        directory: for the files.
    """
    with tempfile.TemporaryDirectory(dir=directory) as below:
        out, done = (Place.at(f"{below}/{name}") for name in ("scores", "checkpoint"))
        for place in (out, done):
            place.fs.create_dir(place.path)
        nothing = pa.array([], pa.int64())
        score_pool(source, network, job, plan, exclude=nothing, rows=rows, out=out, checkpoint=done)
        assert sum(pq.read_metadata(file.path).num_rows for file in out.files()) == rows
