"""Pool + proxy -> scores: Ray Data streams the pool through an actor pool that writes Parquet.

Ray Data's row checkpoints make it resumable: after a kill, the same call scores the rows that are missing.
"""

from __future__ import annotations

import hashlib
import math
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from ray.data import ActorPoolStrategy, SaveMode
from ray.data.checkpoint import CheckpointConfig

from prunefuse_ray import networks
from prunefuse_ray.acquisition.class_weights import weighted
from prunefuse_ray.acquisition.strategy import Probabilities, Scores
from prunefuse_ray.data.contents import HeldOut
from prunefuse_ray.data.ids import IdSet
from prunefuse_ray.data.pool import Source
from prunefuse_ray.data.prepared import chunk_rows, decoded
from prunefuse_ray.data.sample_format import PREPROCESSING_FILE, Form, preprocessing_from_bytes
from prunefuse_ray.data.stream import decoded_rows, decoded_stream, decoded_values, regrouped, spans
from prunefuse_ray.distributed.remote import plain_errors
from prunefuse_ray.distributed.resources import ScoringPlan, cpus_now
from prunefuse_ray.errors import PruneFuseError
from prunefuse_ray.inference.saved_networks import network_files
from prunefuse_ray.scoring.meter import ScoringMeter
from prunefuse_ray.selection.rows import vector_column
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS

FILES_PER_POOL = 500  # score files are bundled so that even 10^9 rows make about this many
CALLS = 16
"""Of actors that a reading task feeds, where that leaves one for every CPU and actor: its last rows fill no batch."""


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
    gpu_share: float = 1.0
    """Of a GPU's memory, what this process may take: others score on the same one."""
    backend: str = "torch"
    """`networks.BACKENDS`"""
    precision: str = "fp32"
    call_rows: int | None = None
    """Rows that an actor is given at once; default: four batches."""
    gradients: bool = False
    """Also write the factor `Task.gradient_factor`."""
    predicted: bool = False
    """Also write the group of the prediction (`Task.group`)."""
    held_out: Place | None = None
    """Contents of the held-out sets (`contents.HeldOut`), with which samples are compared; None: with nothing."""
    class_weights: tuple[float, ...] = ()
    """What a score is worth by class (`acquisition.class_weights`); none: all alike."""
    pixel_share: float = 1.0
    """`selection.pixel_share`"""
    masks: int = 0
    """`selection.dropout_masks`, where the strategy asks a committee; 0: the network as it is."""
    masks_seed: int = 0
    trusted: tuple[str, ...] = ()
    """Architectures of the user's own that the configuration names (`networks.from_files`)."""


class Scorer:
    """A scoring actor: decoded samples (`decoded_stream`) in, (id, score, rejected, converted[, held_out][, group]
    [, feature][, gradient][, predicted]) out.

    Every forward pass has the shape (batch_size, C, H, W): a sample's score must not depend on how many samples
    happened to share its batch, and so not on the number of actors or on a resume.
    """

    def __init__(self, network: Place, job: ScoringJob, callers: int = 1) -> None:
        """`callers`: threads that will call it at once, of a backend that takes several."""
        torch.set_num_threads(job.threads)
        files = network_files(network)
        told = preprocessing_from_bytes(files[PREPROCESSING_FILE]).units if PREPROCESSING_FILE in files else None
        self.job, self.task = job, TASKS[job.task].with_units(told).of_share(job.pixel_share)
        self.meter = ScoringMeter()
        self.device = torch.device("cuda" if job.gpu else "cpu")
        if job.gpu:
            networks.full_float32()
            if job.gpu_share < 1:  # else a batch would fit while it is measured alone, and not beside the others
                torch.cuda.set_per_process_memory_fraction(0.9 * job.gpu_share)
        example = self.inputs(np.zeros((job.batch_size, *job.form.shape), np.uint8))
        loaded: torch.nn.Module = networks.from_files(files, job.trusted).network
        if job.masks:
            loaded = networks.under_masks(loaded.to(self.device), job.masks, job.masks_seed, example)
        self.network = networks.BACKENDS[job.backend].runner(
            loaded,
            precision=job.precision,
            device=self.device,
            example=example,
            threads=job.threads,
            features=job.features,
            callers=callers,
        )

    def __call__(self, rows: pa.Table) -> pa.Table:
        if not self.task.pixels:
            return self._scored(rows)
        # The outputs of many images do not fit in memory.
        size = self.job.batch_size
        return pa.concat_tables([self._scored(rows.slice(n, size)) for n in range(0, max(1, rows.num_rows), size)])

    def _scored(self, rows: pa.Table) -> pa.Table:
        outputs, features_ND = self.forward(decoded_values(rows, self.job.form))
        p = self.task.probabilities(outputs)
        p_NC = p if p.ndim == self.task.output_axes else p.mean(axis=0)
        rejected = pc.is_valid(rows["rejected"]).to_numpy()
        self.meter.count(len(rejected), int(rejected.sum()))
        scores = self.score(p)
        if features_ND is not None:  # a score whose features cannot be chosen from is none; null would say rejected
            scores[~np.isfinite(features_ND).all(axis=1)] = np.nan
        columns = {
            "id": rows["id"],
            # from_pandas=False keeps a NaN apart from a null: null says rejected, NaN says the network is broken.
            "score": pa.array(scores, pa.float32(), mask=rejected, from_pandas=False),
            **{name: rows[name] for name in rows.column_names if name not in ("id", "decoded")},
        }
        if features_ND is not None:
            columns["feature"] = vector_column(features_ND)
        if self.job.gradients:
            columns["gradient"] = vector_column(self.task.gradient_factor(p_NC))
        if self.job.predicted:
            columns["predicted"] = pa.array(self.task.group(p_NC), pa.int32())
        return pa.table(columns)

    @torch.inference_mode()
    def forward(self, decoded_N: npt.NDArray[np.uint8]) -> tuple[np.ndarray, np.ndarray | None]:
        """Outputs (N, C[, H, W]), of a committee (M, N, C[, H, W]), and, if asked, features (N, D) of decoded samples,
        uint8 (N, *form.shape)."""
        size, outputs, features = self.job.batch_size, [], []
        for start in range(0, len(decoded_N), size):
            batch = decoded_N[start : start + size]
            n = len(batch)
            if n < size:
                batch = np.concatenate([batch, np.zeros((size - n, *batch.shape[1:]), np.uint8)])
            x = self.inputs(batch)
            y = self.network(x)
            if isinstance(y, tuple):
                y, f = y
                features.append(f[:n].float().cpu().numpy())
            outputs.append(y.narrow(-self.task.output_axes, 0, n).float().cpu().numpy())
        return np.concatenate(outputs, axis=-self.task.output_axes), np.concatenate(features) if features else None

    def score(self, p: Probabilities) -> Scores:
        """Scores (N,) of a network's probabilities (N, C), or of a committee's (M, N, C)."""
        strategy = self.task.strategies[self.job.strategy]
        assert strategy.score is not None, "validated by config"
        mean = p if p.ndim == self.task.output_axes else p.mean(axis=0)
        scores = strategy.score(p if strategy.members else mean)
        return weighted(scores, mean, self.job.class_weights) if self.job.class_weights else scores

    def inputs(self, decoded_N: npt.NDArray[np.uint8]) -> torch.Tensor:
        pixels = torch.from_numpy(np.require(decoded_N, requirements=["C", "W"]))
        return self.job.form.inputs(pixels.to(self.device))


class ActorScorer:
    """`Scorer` in an actor of Ray Data. What keeps it from beginning is said by its first call: of an error in the
    creation of an actor Ray keeps a text alone, which passes for a process that was lost."""

    def __init__(self, make: Callable[[Place, ScoringJob], Scorer], network: Place, job: ScoringJob) -> None:
        self.made: Scorer | Exception
        try:
            self.made = make(network, job)
        except (PruneFuseError, torch.OutOfMemoryError) as error:
            self.made = error.with_traceback(None)  # its frames would keep the batch on the GPU

    def __call__(self, rows: pa.Table) -> pa.Table:
        if isinstance(self.made, Exception):
            raise self.made
        return self.made(rows)


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
    written = out.written()
    if any(file.base_name.startswith(HERE) != plan.here for file in written):
        # Begun the other way, on another machine: rows that were scored are not known the same way.
        plan.check()
        for place in (out, checkpoint):
            place.delete()
            place.fs.create_dir(place.path, recursive=True)
    if plan.here:
        return _score_here(source, network, job, plan, exclude, rows, out)
    _settle(checkpoint, plan)
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="id",
        checkpoint_path=checkpoint.path,
        delete_checkpoint_on_success=False,
        override_filesystem=checkpoint.fs,
    )
    context.raise_original_map_exception = True  # wrapped in Ray's own it would lose its kind
    # Ray gives an actor whole blocks, and cuts those into as many rows as it was asked for and a rest, which costs a
    # batch: so these rows are whole blocks. None is larger than a chunk, which a reading task holds anyway.
    given = job.call_rows or job.batch_size * 4
    blocks = math.ceil(given / chunk_rows(job.form))
    block = given // blocks
    given = block * blocks
    tasks = max(plan.max_actors, math.ceil(cpus_now()), rows // (CALLS * given))
    try:
        dataset = decoded_stream(
            source, job.form, exclude=exclude, held_out=job.held_out, block=block, tasks=tasks
        ).map_batches(
            ActorScorer,
            fn_constructor_args=(Scorer, network, job),
            compute=ActorPoolStrategy(min_size=plan.min_actors, max_size=plan.max_actors),
            batch_size=given,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=plan.cpus,
            num_gpus=plan.gpus or None,
            **plan.placement,
        )
        with plain_errors():
            dataset.write_parquet(
                out.path,
                filesystem=out.fs,
                mode=SaveMode.APPEND,
                min_rows_per_file=max(1, rows // FILES_PER_POOL),
                ray_remote_args={"num_cpus": 0.25},
                write_page_checksum=True,  # files are kept over kills before anybody has recorded their digests
            )
    finally:
        context.checkpoint_config = None
        context.raise_original_map_exception = False


PENDING = ".pending.parquet"
"""What Ray's note ends with that rows are being written; the note that they are written is called so without
`.pending`."""


def _settle(checkpoint: Place, plan: ScoringPlan) -> None:
    """Remove the notes of writes that are done. A store renames by copying, and a kill before the removal leaves both
    notes: for the one Ray would remove the rows, and for the other not score them again."""
    names = {file.base_name for file in checkpoint.written()}
    for name in sorted(names):
        if name.endswith(PENDING) and f"{name.removesuffix(PENDING)}.parquet" in names:
            plan.check()
            (checkpoint / name).delete()


HERE = "part-"
"""What files begin with that the driver itself has written; each is a part of the pool, whole."""
HERE_PARTS = 64
"""At least, where the pool has as many."""
HELD_ROWS = {False: 2**20, True: 2**14}
"""Rows of a part, about, without and with features: a thread holds what it scored of a part until that is written. A
64th of a large pool would be gigabytes."""


def _score_here(
    source: Source, network: Place, job: ScoringJob, plan: ScoringPlan, exclude: pa.Array, rows: int, out: Place
) -> None:
    """Score in this process: no other one has to start. A file for every part of the pool, so that after a kill only
    parts that are missing are scored."""
    chunk, excluded = chunk_rows(job.form), IdSet.of(exclude)
    # A chunk of the prepared pool is read and written whole; else a part may be a batch, so that all threads get some.
    count = max(HERE_PARTS, math.ceil(rows / HELD_ROWS[job.features]))
    parts = spans(source, chunk if source.prepared is not None else min(chunk, job.batch_size), count)
    cut = hashlib.blake2b(repr([(one.sizes, one.spans) for one in parts]).encode(), digest_size=4).hexdigest()
    missing = {f"{HERE}{cut}-{number:03d}.parquet": one for number, one in enumerate(parts)}
    for file in out.written():
        if missing.pop(file.base_name, None) is None:  # of another cut, an earlier version's: its rows are in others
            plan.check()
            Place(out.fs, file.path).delete()
    todo: queue.SimpleQueue[tuple[str, Source]] = queue.SimpleQueue()
    for item in missing.items():
        todo.put(item)
    whole = job.batch_size * max(1, chunk // job.batch_size)
    stopped = threading.Event()
    held_out = None if job.held_out is None else HeldOut.at(job.held_out)

    def work(scorer: Scorer) -> None:
        torch.set_num_threads(job.threads)  # of this thread
        while not stopped.is_set():
            try:
                name, one = todo.get_nowait()
            except queue.Empty:
                return
            scores = []
            chunks = decoded(one, job.form, exclude=excluded)
            for some_rows in regrouped((decoded_rows(some, held_out) for some in chunks), whole):
                if stopped.is_set():
                    return
                scores.append(scorer(some_rows))
            if scores:
                plan.check()
                (out / name).write_table(pa.concat_tables(scores))

    # One network for all threads where the backend's may run in several, else one for each; all of them before any
    # runs, since torch traces a network by changing what all modules do meanwhile.
    callers = min(plan.threads, todo.qsize())
    if not callers:
        return
    if networks.BACKENDS[job.backend].concurrent:
        scorers = [Scorer(network, job, callers)] * callers
    else:
        scorers = [Scorer(network, job) for _ in range(callers)]
    with ThreadPoolExecutor(len(scorers), thread_name_prefix="scorer") as pool:
        try:
            for worker in as_completed([pool.submit(work, scorer) for scorer in scorers]):
                worker.result()
        finally:
            stopped.set()
