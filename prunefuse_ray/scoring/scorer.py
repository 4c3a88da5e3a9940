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
import ray
import torch
from ray.data import ActorPoolStrategy, SaveMode
from ray.data.checkpoint import CheckpointConfig

from prunefuse_ray import networks
from prunefuse_ray.acquisition.class_weights import weighted
from prunefuse_ray.acquisition.probabilities import gradient_factor
from prunefuse_ray.acquisition.strategy import Probabilities, Scores
from prunefuse_ray.data.contents import HeldOut
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.sample_format import Decoded, Form, read_column
from prunefuse_ray.data.stream import stream
from prunefuse_ray.distributed.resources import ScoringPlan
from prunefuse_ray.inference.saved_networks import network_files
from prunefuse_ray.scoring.meter import ScoringMeter
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS

FILES_PER_POOL = 500  # score files are bundled so that even 10^9 rows make about this many


@dataclass(frozen=True, kw_only=True)
class ScoringJob:
    """What every actor needs to know."""

    strategy: str
    task: str = "classification"
    """`tasks.TASKS`"""
    form: Form
    batch_size: int
    features: bool
    threads: int
    gpu: bool
    backend: str = "torch"
    """`networks.BACKENDS`"""
    precision: str = "fp32"
    call_rows: int | None = None
    """Rows that an actor is given at once; default: four batches."""
    gradients: bool = False
    """Also write the factor `acquisition.probabilities.gradient_factor`."""
    predicted: bool = False
    """Also write the predicted class."""
    held_out: Place | None = None
    """Contents of the held-out sets (`contents.HeldOut`), with which samples are compared; None: with nothing."""
    class_weights: tuple[float, ...] = ()
    """What a score is worth by class (`acquisition.class_weights`); none: all alike."""
    trusted: tuple[str, ...] = ()
    """Architectures of the user's own that the configuration names (`networks.from_files`)."""


class Scorer:
    """A scoring actor: samples (or decoded ones) in, (id, score, rejected, converted[, held_out][, feature][, gradient]
    [, predicted][, group]) out.

    Every forward pass has the shape (batch_size, C, H, W): a sample's score must not depend on how many samples
    happened to share its batch, and so not on the number of actors or on a resume.
    """

    def __init__(self, network: Place, job: ScoringJob) -> None:
        torch.set_num_threads(job.threads)
        self.job, self.task = job, TASKS[job.task]
        self.meter = ScoringMeter()
        self.decoder = Decoder(job)
        self.device = torch.device("cuda" if job.gpu else "cpu")
        self.network = networks.BACKENDS[job.backend].runner(
            networks.from_files(network_files(network), job.trusted).network,
            precision=job.precision,
            device=self.device,
            example=self.inputs(np.zeros((job.batch_size, *job.form.shape), np.uint8)),
            threads=job.threads,
        )

    def __call__(self, rows: pa.Table) -> pa.Table:
        seen = _unpack(rows, self.job.form) if "decoded" in rows.column_names else self.decoder.read(rows)
        decoded_N, reasons = seen.values_N, seen.rejected
        outputs, features_ND = self.forward(decoded_N)
        p = self.task.probabilities(outputs)
        p_NC = p if p.ndim == 2 else p.mean(axis=0)
        rejected = np.array([r is not None for r in reasons], dtype=bool)
        self.meter.count(len(rejected), int(rejected.sum()))
        scores = self.score(p)
        if features_ND is not None:  # a score whose features cannot be chosen from is none; null would say rejected
            scores[~np.isfinite(features_ND).all(axis=1)] = np.nan
        columns = {
            "id": rows["id"],
            # from_pandas=False keeps a NaN apart from a null: null says rejected, NaN says the network is broken.
            "score": pa.array(scores, pa.float32(), mask=rejected, from_pandas=False),
            **_told(seen, self.job),
        }
        if features_ND is not None:
            columns["feature"] = _vectors(features_ND)
        if self.job.gradients:
            columns["gradient"] = _vectors(gradient_factor(p_NC))
        if self.job.predicted:
            columns["predicted"] = pa.array(self.task.guesses(p_NC)[0], pa.int32())
        if "group" in rows.column_names:
            columns["group"] = rows["group"]
        return pa.table(columns)

    @torch.inference_mode()
    def forward(self, decoded_N: npt.NDArray[np.uint8]) -> tuple[np.ndarray, np.ndarray | None]:
        """Outputs (N, C), of a committee (M, N, C), and, if asked, features (N, D) of decoded samples, uint8
        (N, *form.shape)."""
        size, outputs, features = self.job.batch_size, [], []
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
            outputs.append(y[..., :n, :].float().cpu().numpy())
        return np.concatenate(outputs, axis=-2), np.concatenate(features) if features else None

    def score(self, p: Probabilities) -> Scores:
        """Scores (N,) of a network's probabilities (N, C), or of a committee's (M, N, C)."""
        strategy = self.task.strategies[self.job.strategy]
        assert strategy.score is not None, "validated by config"
        mean = p if p.ndim == 2 else p.mean(axis=0)
        scores = strategy.score(p if strategy.members else mean)
        return weighted(scores, mean, self.job.class_weights) if self.job.class_weights else scores

    def inputs(self, decoded_N: npt.NDArray[np.uint8]) -> torch.Tensor:
        pixels = torch.from_numpy(np.require(decoded_N, requirements=["C", "W"]))
        return self.job.form.inputs(pixels.to(self.device))


def _vectors(values_ND: npt.NDArray[np.float32]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_ND.reshape(-1), pa.float32()), values_ND.shape[1])


class Decoder:
    """Images in, pixels out, and what is to be said of them; for GPU actors a task of its own."""

    def __init__(self, job: ScoringJob) -> None:
        self.job = job
        self.held_out: HeldOut | None = None

    def read(self, rows: pa.Table) -> Decoded:
        if self.held_out is None and self.job.held_out is not None:
            self.held_out = HeldOut.at(self.job.held_out)
        return read_column(rows["sample"], self.job.form, self.held_out)

    def __call__(self, rows: pa.Table) -> pa.Table:
        seen = self.read(rows)
        flat = pa.array(seen.values_N.reshape(-1), pa.uint8())
        size = math.prod(self.job.form.shape)
        decoded = {"decoded": pa.FixedSizeListArray.from_arrays(flat, size), **_told(seen, self.job)}
        return pa.table({**{n: rows[n] for n in rows.column_names if n != "sample"}, **decoded})


def _told(seen: Decoded, job: ScoringJob) -> dict[str, pa.Array]:
    """What is to be said of samples beside their scores, as columns: null for ordinary ones."""
    told = {"rejected": pa.array(seen.rejected, pa.string()), "converted": pa.array(seen.converted, pa.string())}
    return told if job.held_out is None else {**told, "held_out": pa.array(seen.held_out, pa.int64())}


def _unpack(rows: pa.Table, form: Form) -> Decoded:
    column = rows["decoded"].combine_chunks()
    return Decoded(
        values_N=column.flatten().to_numpy().reshape(len(rows), *form.shape),
        rejected=rows["rejected"].to_pylist(),
        converted=rows["converted"].to_pylist(),
        held_out=rows["held_out"].to_pylist() if "held_out" in rows.column_names else [],
    )


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
            dataset = dataset.map_batches(Decoder(job), batch_size=256, batch_format="pyarrow", num_cpus=1)
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
