"""Pool + proxy -> scores: Ray Data streams the pool through an actor pool that writes Parquet.

Ray Data's row checkpoints make it resumable: after a kill, the same call scores the rows that are missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch
from ray.data import ActorPoolStrategy, SaveMode
from ray.data.checkpoint import CheckpointConfig

from prunefuse_ray import networks
from prunefuse_ray.acquisition import STRATEGIES, consensus, gradient_factor
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.sample_format import Form, decode_column
from prunefuse_ray.data.stream import stream
from prunefuse_ray.distributed.remote import over_files
from prunefuse_ray.distributed.resources import ScoringPlan
from prunefuse_ray.errors import ScoreError
from prunefuse_ray.inference.saved_networks import network_files
from prunefuse_ray.scoring.meter import ScoringMeter
from prunefuse_ray.storage import Place

HISTOGRAM_BINS = 64
FILES_PER_POOL = 500  # score files are bundled so that even 10^9 rows make about this many


@dataclass(frozen=True, kw_only=True)
class ScoringJob:
    """What every actor needs to know."""

    strategy: str
    form: Form
    batch_size: int
    features: bool
    threads: int
    gpu: bool
    backend: str = "torch"
    """`networks.runner`"""
    precision: str = "fp32"
    call_rows: int | None = None
    """Rows that an actor is given at once; default: four batches."""
    gradients: bool = False
    """Also write the factor `acquisition.gradient_factor`."""
    predicted: bool = False
    """Also write the predicted class."""
    trusted: tuple[str, ...] = ()
    """Architectures of the user's own that the configuration names (`networks.from_files`)."""


class Scorer:
    """A scoring actor: samples (or decoded ones) in, (id, score, rejected[, feature][, gradient][, predicted][, group])
    out.

    Every forward pass has the shape (batch_size, C, H, W): a sample's score must not depend on how many samples
    happened to share its batch, and so not on the number of actors or on a resume.
    """

    def __init__(self, network: Place, job: ScoringJob) -> None:
        torch.set_num_threads(job.threads)
        self.job = job
        self.meter = ScoringMeter()
        self.device = torch.device("cuda" if job.gpu else "cpu")
        self.network = networks.runner(
            networks.from_files(network_files(network), job.trusted).network,
            job.backend,
            job.precision,
            device=self.device,
            example=self.inputs(np.zeros((job.batch_size, *job.form.shape), np.uint8)),
            threads=job.threads,
        )

    def __call__(self, rows: pa.Table) -> pa.Table:
        if "decoded" in rows.column_names:
            decoded_N, reasons = _unpack(rows, self.job.form)
        else:
            decoded_N, reasons = decode_column(rows["sample"], self.job.form)
        logits, features_ND = self.forward(decoded_N)
        logits_NC = consensus(logits)
        rejected = np.array([r is not None for r in reasons], dtype=bool)
        self.meter.count(len(rejected), int(rejected.sum()))
        scores = scores_of(self.job.strategy, logits)
        if features_ND is not None:  # a score whose features cannot be chosen from is none; null would say rejected
            scores[~np.isfinite(features_ND).all(axis=1)] = np.nan
        columns = {
            "id": rows["id"],
            # from_pandas=False keeps a NaN apart from a null: null says rejected, NaN says the network is broken.
            "score": pa.array(scores, pa.float32(), mask=rejected, from_pandas=False),
            "rejected": pa.array(reasons, pa.string()),
        }
        if features_ND is not None:
            columns["feature"] = _vectors(features_ND)
        if self.job.gradients:
            columns["gradient"] = _vectors(gradient_factor(logits_NC))
        if self.job.predicted:
            columns["predicted"] = pa.array(logits_NC.argmax(axis=1), pa.int32())
        if "group" in rows.column_names:
            columns["group"] = rows["group"]
        return pa.table(columns)

    @torch.inference_mode()
    def forward(self, decoded_N: npt.NDArray[np.uint8]) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits (N, C), of a committee (M, N, C), and, if asked, features (N, D) of decoded samples, uint8
        (N, *form.shape)."""
        size, logits, features = self.job.batch_size, [], []
        for start in range(0, len(decoded_N), size):
            batch = decoded_N[start : start + size]
            n = len(batch)
            if n < size:
                batch = np.concatenate([batch, np.zeros((size - n, *batch.shape[1:]), np.uint8)])
            x = self.inputs(batch)
            if self.job.features:
                assert isinstance(self.network, torch.nn.Module)  # config: other backends give no features
                f, y = networks.features_and_logits(self.network, x)
                features.append(f[:n].float().cpu().numpy())
            else:
                y = self.network(x)
            logits.append(y[..., :n, :].float().cpu().numpy())
        return np.concatenate(logits, axis=-2), np.concatenate(features) if features else None

    def inputs(self, decoded_N: npt.NDArray[np.uint8]) -> torch.Tensor:
        pixels = torch.from_numpy(np.require(decoded_N, requirements=["C", "W"]))
        return self.job.form.inputs(pixels.to(self.device))


def scores_of(strategy: str, logits: np.ndarray) -> npt.NDArray[np.float32]:
    """Scores (N,) of a network's logits (N, C), or of a committee's (M, N, C)."""
    chosen = STRATEGIES[strategy]
    assert chosen.score is not None
    return chosen.score(logits if chosen.members else consensus(logits))


def _vectors(values_ND: npt.NDArray[np.float32]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_ND.reshape(-1), pa.float32()), values_ND.shape[1])


class Decoder:
    """A decoding task for GPU actors: images in, pixels out."""

    def __init__(self, form: Form) -> None:
        self.form = form

    def __call__(self, rows: pa.Table) -> pa.Table:
        decoded_N, reasons = decode_column(rows["sample"], self.form)
        flat = pa.array(decoded_N.reshape(-1), pa.uint8())
        size = math.prod(self.form.shape)
        decoded = {
            "decoded": pa.FixedSizeListArray.from_arrays(flat, size),
            "rejected": pa.array(reasons, pa.string()),
        }
        return pa.table({**{n: rows[n] for n in rows.column_names if n != "sample"}, **decoded})


def _unpack(rows: pa.Table, form: Form) -> tuple[npt.NDArray[np.uint8], list[str | None]]:
    column = rows["decoded"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(rows), *form.shape), rows["rejected"].to_pylist()


def score_pool(
    source: Source,
    network: Place,
    job: ScoringJob,
    plan: ScoringPlan,
    *,
    exclude: pa.Array,
    rows: int,
    out: Place,
    checkpoint: Place,
) -> None:
    """Score every sample of `source` but those of `exclude` into Parquet files below `out`.

    Args:
        network: directory of the saved network. Actors read it themselves, so that one which is restarted after the
            loss of a node needs nothing of the driver.
        rows: number of rows of the pool, from which the size of the output files follows.
        checkpoint: where the ids of finished rows are kept; one place per round, or old scores would be taken for new.
    """
    if plan.here:
        return _score_here(source, network, job, exclude, out)
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="id",
        checkpoint_path=checkpoint.path,
        delete_checkpoint_on_success=False,
        override_filesystem=checkpoint.fs,
    )
    try:
        dataset = stream(source, exclude=exclude)
        if job.gpu:
            dataset = dataset.map_batches(Decoder(job.form), batch_size=256, batch_format="pyarrow", num_cpus=1)
        dataset = dataset.map_batches(
            Scorer,
            fn_constructor_args=(network, job),
            compute=ActorPoolStrategy(min_size=plan.min_actors, max_size=plan.max_actors),
            batch_size=job.call_rows or job.batch_size * 4,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=plan.cpus,
            num_gpus=plan.gpus or None,
            **plan.placement,
        )
        dataset.write_parquet(
            out.path,
            filesystem=out.fs,
            mode=SaveMode.APPEND,
            min_rows_per_file=max(1, rows // FILES_PER_POOL),
            ray_remote_args={"num_cpus": 0.25},
        )
    finally:
        context.checkpoint_config = None


def _score_here(source: Source, network: Place, job: ScoringJob, exclude: pa.Array, out: Place) -> None:
    """Score a small pool in this process, into one file; after a kill, from the beginning."""
    out.delete()
    scorer = Scorer(network, job)
    dataset = stream(source, exclude=exclude)
    batches: Iterator[Any] = iter(dataset.iter_batches(batch_size=job.batch_size * 4, batch_format="pyarrow"))
    scores = [scorer(batch) for batch in batches if batch.num_rows]
    if scores:
        (out / "scores.parquet").write_table(pa.concat_tables(scores))


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """What one pass over score files tells."""

    rows: int
    scored: int
    rejected: pa.Table
    """(id, reason)"""
    histogram: dict[str, list[float]]
    """edges and counts of the scores"""


def summarise(files: list[str], out: Place, top: float) -> ScoreSummary:
    """Count, check and histogram the scores in `files`, in tasks where they are large.

    Args:
        top: the largest score that the strategy can give; the histogram spans [0, top].

    Raises:
        ScoreError: scores that are not finite, with the ids.
    """
    parts = list(over_files(_summarise, files, out, top))
    bad = [i for p in parts for i in p["bad"]]
    if bad:
        raise ScoreError(
            f"scores (or features) are not finite for {sum(p['bad_count'] for p in parts)} samples, e.g. ids "
            f"{', '.join(map(repr, bad[:5]))}: the network diverged; look at these samples, or lower training.lr in "
            "a run of another run.name"
        )
    counts = np.sum([p["counts"] for p in parts], axis=0) if parts else np.zeros(HISTOGRAM_BINS)
    rejected = pa.concat_tables([p["rejected"] for p in parts]) if parts else _rejections([], [])
    return ScoreSummary(
        rows=sum(p["rows"] for p in parts),
        scored=sum(p["rows"] for p in parts) - rejected.num_rows,
        rejected=rejected,
        histogram={"edges": np.linspace(0, top, HISTOGRAM_BINS + 1).tolist(), "counts": counts.tolist()},
    )


def _summarise(files: list[str], out: Place, top: float) -> dict:
    rows, bad_count, bad, counts = 0, 0, [], np.zeros(HISTOGRAM_BINS, np.int64)
    ids, reasons = [], []
    for file in files:
        with out.fs.open_input_file(file) as stream_:
            for batch in pq.ParquetFile(stream_).iter_batches(columns=["id", "score", "rejected"]):
                table = pa.Table.from_batches([batch])
                rows += table.num_rows
                refused = table.filter(pc.is_valid(table["rejected"]))
                ids += refused["id"].to_pylist()
                reasons += refused["rejected"].to_pylist()
                kept = table.filter(pc.is_null(table["rejected"]))
                scores = kept["score"].to_numpy()
                finite = np.isfinite(scores)
                if not finite.all():
                    bad_count += int((~finite).sum())
                    bad += kept["id"].filter(pa.array(~finite)).to_pylist()[:5]
                counts += np.histogram(np.clip(scores[finite], 0, top), HISTOGRAM_BINS, (0, top))[0]
    return {"rows": rows, "bad_count": bad_count, "bad": bad, "counts": counts, "rejected": _rejections(ids, reasons)}


def _rejections(ids: list, reasons: list) -> pa.Table:
    return pa.table({"id": pa.array([str(i) for i in ids], pa.string()), "reason": pa.array(reasons, pa.string())})


def largest_score(strategy: str, classes: int, members: int = 1) -> float:
    """The largest value a strategy's score can take: log C nats for entropy, log M for what a committee disagrees
    about, 1 for the others."""
    if STRATEGIES[strategy].members:
        return math.log(members)
    return math.log(classes) if strategy == "entropy" else 1.0
