"""Score files as rows in memory: ids, scores, and the vectors of each sample."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prunefuse_ray.data.pool import Source, groups
from prunefuse_ray.errors import ScoreError
from prunefuse_ray.storage import Place

READ_BYTES = 32 * 2**20
"""Bytes of one batch of a score file."""
NAMED = 5
"""Ids named in an error."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Score files, and the columns of vectors in them whose product is a point (see `Points`)."""

    where: Place
    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    columns: tuple[str, ...] = ("feature",)

    def cut(self, count: int) -> list[Files]:
        """At most `count` parts of about equal size."""
        source = Source(fs=self.where.fs, files=self.paths, sizes=self.sizes)
        return [replace(self, paths=g.files, sizes=g.sizes) for g in groups(source, count)]

    def shape(self) -> tuple[int, list[int]]:
        """Rows that have a score (those that were rejected or held back stand there without), and dimensions of each
        column's vectors; reads the files' ends only."""
        rows, dimensions = 0, [0] * len(self.columns)
        for path in self.paths:
            with self.where.fs.open_input_file(path) as stream:
                file = pq.ParquetFile(stream)
                rows += file.metadata.num_rows - _without_score(file.metadata)
                dimensions = [file.schema_arrow.field(c).type.list_size for c in self.columns]
        return rows, dimensions


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows in memory: ids (N,), scores (N,), and the vectors (N, D) of each factor, which become the shard's own."""

    ids: pa.Array
    scores: npt.NDArray[np.float32]
    vectors: list[npt.NDArray[np.float32]]

    def take(self, rows: npt.NDArray[np.int64]) -> Rows:
        return Rows(
            ids=self.ids.take(pa.array(rows)), scores=self.scores[rows], vectors=[v[rows] for v in self.vectors]
        )

    def shape(self) -> tuple[int, list[int]]:
        """As `Files.shape`."""
        return len(self.ids), [v.shape[1] for v in self.vectors]

    def cut(self, count: int) -> list[Rows]:
        """At most `count` parts of about equal size; scores and vectors are views of these."""
        ends = np.linspace(0, len(self.ids), max(1, min(count, len(self.ids))) + 1).astype(np.int64)
        return [
            Rows(
                ids=self.ids.take(pa.array(np.arange(start, end))),  # a slice takes the whole buffer to another process
                scores=self.scores[start:end],
                vectors=[v[start:end] for v in self.vectors],
            )
            for start, end in itertools.pairwise(ends)
        ]

    def sorted(self) -> Rows:
        """By rising id."""
        return self.take(pc.sort_indices(self.ids).to_numpy().astype(np.int64))

    @staticmethod
    def concat(parts: Sequence[Rows]) -> Rows:
        filled = [p for p in parts if len(p.ids)] or parts[:1]  # the ids of an empty file have no type
        return Rows(
            ids=pa.concat_arrays([p.ids for p in filled]),
            scores=np.concatenate([p.scores for p in filled]),
            vectors=[np.concatenate(column) for column in zip(*(p.vectors for p in filled), strict=True)],
        )


def _without_score(metadata: pq.FileMetaData) -> int:
    place = metadata.schema.names.index("score")
    return sum(metadata.row_group(g).column(place).statistics.null_count for g in range(metadata.num_row_groups))


def read(files: Files | Rows) -> Rows:
    """The rows that have a score, each column of vectors in one array made beforehand; rows in memory as they are."""
    if isinstance(files, Rows):
        return files
    rows, dimensions = files.shape()
    vectors = [np.empty((rows, d), np.float32) for d in dimensions]
    ids: list[pa.ChunkedArray] = []
    scores, filled = np.empty(rows, np.float32), 0
    for table in _tables(files, sum(dimensions)):
        place = slice(filled, filled + table.num_rows)
        for array, found in zip(vectors, matrices(table, files.columns), strict=True):
            array[place] = found
        scores[place] = table["score"].to_numpy()
        ids.append(table["id"])
        filled = place.stop
    chunks = [chunk for column in ids for chunk in column.chunks]
    return Rows(
        # Where no row has a score Arrow leaves no piece of the column, but its type.
        ids=pa.concat_arrays(chunks) if chunks else pa.array([], ids[0].type if ids else pa.string()),
        scores=scores[:filled],
        vectors=[v[:filled] for v in vectors],
    )


def read_vectors(files: Files) -> Iterator[list[npt.NDArray[np.float32]]]:
    """The vectors of the rows that have a score, a batch at a time, in arrays of their own."""
    _, dimensions = files.shape()
    for table in _tables(files, sum(dimensions)):
        yield [np.array(m) for m in matrices(table, files.columns)]


def vector_column(values_ND: npt.NDArray[np.float32]) -> pa.FixedSizeListArray:
    """Vectors as a column of score files, as `matrices` reads them: lists of D float32."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values_ND.reshape(-1), pa.float32()), values_ND.shape[1])


def matrices(table: pa.Table, columns: Sequence[str]) -> list[npt.NDArray[np.float32]]:
    """Columns of vectors as matrices (rows, D). ScoreError with ids where one is not finite."""
    found = []
    for column in columns:
        values = table[column].combine_chunks()
        matrix = values.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, values.type.list_size)
        finite = np.isfinite(matrix).all(axis=1)
        if not finite.all():
            named = table["id"].filter(pa.array(~finite)).to_pylist()[:NAMED]
            raise ScoreError(
                f"{column}s are not finite, e.g. of the samples {', '.join(map(repr, named))}: the network diverged; "
                "look at these samples, or lower training.lr in a run of another run.name"
            )
        found.append(matrix)
    return found


def _tables(files: Files, dimensions: int) -> Iterator[pa.Table]:
    """The rows that have a score, a batch at a time."""
    rows = max(256, READ_BYTES // (4 * dimensions + 64))
    for path in files.paths:
        with files.where.fs.open_input_file(path) as stream:
            columns = ["id", "score", *files.columns]
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=rows, columns=columns):
                table = pa.Table.from_batches([batch])
                yield table.filter(pc.is_valid(table["score"]))
