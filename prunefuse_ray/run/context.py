"""What the phases of one run share, and what a phase hands back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from prunefuse_ray.config import Config
from prunefuse_ray.data.ids import IdSet
from prunefuse_ray.data.inventory import HELD_OUT_FILE
from prunefuse_ray.data.labeled_set import held_out
from prunefuse_ray.data.pool import PoolInfo, Prepared, Source, groups
from prunefuse_ray.data.prepared import readable, run_name
from prunefuse_ray.data.sample_format import Form, decode_column, form_of
from prunefuse_ray.data.stream import rows, stream
from prunefuse_ray.distributed.remote import over, plain_errors
from prunefuse_ray.distributed.resources import Resources, ScoringPlan, TrainingPlan
from prunefuse_ray.errors import PoolError, ScoreError
from prunefuse_ray.method.selector import network_spec
from prunefuse_ray.method.steps import INIT, LABEL, Step
from prunefuse_ray.run import growth
from prunefuse_ray.run.ledger import KNOWN_SAMPLES, Ledger, Output
from prunefuse_ray.schemas import REJECTED, arrow_type, labels_schema, unknown_schema
from prunefuse_ray.scoring.score_pass import check_rejected
from prunefuse_ray.selection.random import select_random
from prunefuse_ray.selection.top_k import REMEDY
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS, Task
from prunefuse_ray.training.augmentation import held_form

_W = TypeVar("_W")
_T = TypeVar("_T")
CHECKED_ROWS = 256
"""Decoded at once where samples are only tried."""

KNOWN_LABELS = "known/labels.parquet"
KNOWN_TEST = "known/test.parquet"
"""Labels that are known beforehand of samples of the test set that was drawn: (id, label)."""
UNKNOWN = "unknown.parquet"
TEST_IDS, TEST, TEST_CONTENTS = "test-ids.parquet", "test", "test-contents.parquet"
"""Of a test set that was drawn, in round 0: what of it can be used, its samples with their labels, their contents."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a phase produced: outputs for the ledger to write, files written already, figures."""

    outputs: Mapping[str, Output]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    written: list[pafs.FileInfo] = field(default_factory=list)
    leftovers: tuple[str, ...] = ()
    """Names that are no longer needed once the phase is committed."""


def unlabeled_forms(config: Config, form: Form) -> set[Form]:
    """Forms in which trainings read the whole pool, where they are not the one in which it is scored."""
    recipes = [recipe for recipe in (config.training, config.finetuning) if recipe.unlabeled.used]
    recipes += [config.training] if config.pretraining.used else []
    return {held_form(form, recipe) for recipe in recipes} - {form}


def kept_samples(config: Config, rows: int) -> int:
    """How many samples a run keeps decoded: those of its pool, of so many rows, and those that it labels, which it
    reads from files of its own."""
    return rows + config.selection.budgets[-1] + config.pool.test_samples


@dataclass(kw_only=True)
class RunContext:
    """One run, open for its driver."""

    config: Config
    ledger: Ledger
    info: PoolInfo
    pool: Source
    test_set: Source | None
    """Of its own; None where it is drawn from the pool."""
    validation: Source | None
    prepared: Prepared | None
    """Where decoded samples are kept."""
    has: Resources
    scoring: ScoringPlan
    training: TrainingPlan
    last: int = field(init=False)
    """Number of the last round."""

    def __post_init__(self) -> None:
        self.last = len(self.config.selection.budgets) - 1
        self.form = form_of(self.config.pool, self.info)
        self.spec = network_spec(self.config, self.info)
        self.drawn_test = growth.drawn_of(self.ledger.root, self.info)

    def look_again(self, found: Source) -> None:
        """Take over what the run has seen of its pool, of which `found` lies there now."""
        self.info = growth.seen_info(self.config, self.ledger)
        self.pool = replace(
            growth.seen_source(self.config, self.ledger, found),
            prepared=self.prepared,
            without=growth.set_aside(self.ledger.root, self.info),
        )

    # --- what the networks are tested on ---

    @property
    def test(self) -> Source:
        """The test set with its labels: one of its own, or the samples of the pool that were drawn and labeled."""
        if self.test_set is not None:
            return self.test_set
        paths, sizes = self.ledger.files(Step(0, LABEL), TEST)
        return Source(
            fs=self.ledger.root.fs,
            sample_column="sample",
            prepared=self._beside,
            files=tuple(paths),
            sizes=tuple(sizes),
            task=self.config.task,
        )

    @property
    def _beside(self) -> Prepared | None:
        """Where decoded samples of the run's own files are kept: apart from the pool's, which is never removed for this
        run, and which every run on the pool would add its own to."""
        return None if self.prepared is None else replace(self.prepared, name=run_name(self.ledger.root))

    @property
    def held_out_contents(self) -> Place | None:
        """The contents of the held-out sets (`HELD_OUT`) that the pool has still to be compared with."""
        mine = self.ledger.committed(Step(0, LABEL)) if len(self.drawn_test) else None
        place = self.ledger.place(Step(0, LABEL), TEST_CONTENTS) if mine else self.ledger.root / HELD_OUT_FILE
        return place if place.exists() else None

    # --- what is labeled ---

    @property
    def task(self) -> Task:
        return TASKS[self.config.task]

    def fitted_task(self, up_to: int) -> Task:
        """The task as the trainings on the labels up to a round have it."""
        labels, _ = held_out(self.labels(up_to), self.config.pool.validation_share, self.config.run.seed)
        return self.task.fitted(labels["label"])

    @property
    def labels_schema(self) -> pa.Schema:
        return labels_schema(self.info.id_type, self.task.label_type)

    def labels(self, up_to: int) -> pa.Table:
        """All labels up to a round, those known beforehand first."""
        steps = [Step(r, LABEL) for r in range(up_to + 1)]
        given = self.ledger.labels(steps, self.info.id_type, self.task.label_type)
        begun = self.config.pool.known_labels is not None and self.ledger.committed(Step(-1, INIT))
        return pa.concat_tables([self._known(), given]) if begun else given

    def answered(self, up_to: int) -> pa.Array:
        """Ids of the samples that nobody has to be asked about after so many rounds: the labeled ones, and those that
        nobody could tell."""
        return pa.concat_arrays([self.labels(up_to)["id"].combine_chunks(), self.unknown(up_to)])

    def unknown(self, up_to: int) -> pa.Array:
        """Ids of the samples of which nobody could tell the label, in the rounds so far. What people cannot tell, the
        network doubts most: it would be put before them in every round again."""
        steps = [Step(r, LABEL) for r in range(up_to + 1)]
        return self.ledger.tables(steps, UNKNOWN, unknown_schema(self.info.id_type))["id"].combine_chunks()

    def _known(self) -> pa.Table:
        return self.ledger.read_table(Step(-1, INIT), KNOWN_LABELS, self.labels_schema)

    def samples(self, up_to: int) -> Source:
        """The labeled samples of the rounds so far (beside some that people left without a label), those known
        beforehand first."""
        found = [self.ledger.files(Step(r, LABEL), "samples") for r in range(up_to + 1)]
        if self.config.pool.known_labels is not None:
            found.insert(0, self.ledger.files(Step(-1, INIT), KNOWN_SAMPLES))
        return Source(
            fs=self.ledger.root.fs,
            sample_column="sample",
            task=self.config.task,
            prepared=self._beside,
            files=tuple(p for paths, _ in found for p in paths),
            sizes=tuple(s for _, sizes in found for s in sizes),
        )

    def copy_samples(
        self, step: Step, name: str, ids: pa.Array, *, label: bool = False, test: bool = False
    ) -> list[pafs.FileInfo]:
        """Copy these samples (and their labels) from the pool to the run directory; the files written. PoolError where
        the pool does not give each of them.

        Args:
            test: they are of the test set that was drawn from the pool.
        """
        self.ledger.clear(step, name)
        out = self.ledger.place(step, name)
        out.fs.create_dir(out.path, recursive=True)
        source = self._source(test)
        wanted = IdSet.of(ids)
        if self.scoring.here:

            def copy(numbered: tuple[int, Source]) -> None:
                number, part = numbered
                self.scoring.check()
                _write(rows(part, only=wanted, label=label), out / f"part-{number:03d}.parquet")

            self.here(copy, enumerate(groups(source, self.scoring.threads)))
        else:
            with plain_errors():
                stream(source, only=wanted, label=label).write_parquet(
                    out.path, filesystem=out.fs, min_rows_per_file=10_000, ray_remote_args={"num_cpus": 0.25}
                )
        written = out.written()
        found = sum(pq.read_metadata(f.path, filesystem=out.fs).num_rows for f in written)
        if found != len(ids):
            raise PoolError(
                f"pool.path: {len(ids)} samples were selected or known, but the pool gave {found} of them; it has "
                "changed since the run began: restore the pool, or start under another --run.name"
            )
        return written

    def copied(self, written: Sequence[pafs.FileInfo]) -> Source:
        """The samples in files of the run directory."""
        return Source(
            fs=self.ledger.root.fs,
            sample_column="sample",
            label_column=None,
            task=self.config.task,
            files=tuple(f.path for f in written),
            sizes=tuple(f.size for f in written),
        )

    def drawn(self, count: int, seed: int, number: int) -> tuple[int, npt.NDArray[Any]]:
        """Decoded samples of the pool, drawn at random: how many were drawn, and the values (N, ...) of those that can
        be read."""
        none = pa.array([], arrow_type(self.info.id_type))
        ids = select_random(self.pool, count, seed, number, none)["id"].combine_chunks()
        parts = over(readable, groups(self.pool), self.form, ids, size=sum(self.pool.sizes))
        return len(ids), np.concatenate([values for _, values in parts])

    # --- what cannot be used ---

    def undecodable(self, ids: pa.Array, *, test: bool = False) -> pa.Table:
        """(id, reason) of those of `ids` whose samples cannot be decoded; one pass over the pool.

        Args:
            test: they are of the test set that was drawn from the pool.
        """
        source, check, wanted = self._source(test), partial(_undecodable, form=self.form), IdSet.of(ids)
        if self.scoring.here:

            def checked(part: Source) -> list[pa.Table]:
                return [check(few) for some in rows(part, only=wanted) for few in _slices(some, CHECKED_ROWS)]

            tables: list[Any] = list(chain.from_iterable(self.here(checked, groups(source, self.scoring.threads))))
        else:
            found = stream(source, only=wanted).map_batches(
                check, batch_format="pyarrow", batch_size=CHECKED_ROWS, num_cpus=0.5
            )
            with plain_errors():
                tables = list(found.iter_batches(batch_format="pyarrow", batch_size=None))
        return pa.concat_tables([REJECTED.empty_table(), *(t.cast(REJECTED) for t in tables if t.num_rows)])

    def _source(self, test: bool) -> Source:
        """The pool, with the test set that was drawn from it if that is meant."""
        return replace(self.pool, without=None) if test else self.pool

    def here(self, function: Callable[[_W], _T], work: Iterable[_W]) -> list[_T]:
        """function(one) of each in threads of this process, as many as score."""
        with ThreadPoolExecutor(self.scoring.threads) as threads:
            return list(threads.map(function, work))

    def note_rejected(self, found: pa.Table) -> None:
        """Record samples that cannot be used. Too many of them stop the run (ScoreError), and none of them is recorded:
        on a disk that was not mounted they may be there when the same command is given again."""
        check_rejected(
            self.ledger.rejected_with(found),
            self.info.rows,
            self.config.pool.max_rejected,
            "Fix the pool and give the same command again, or raise pool.max_rejected",
        )
        self.ledger.record_rejected(found)


def _write(tables: Iterable[pa.Table], to: Place) -> None:
    """Tables as one Parquet file; none where they hold no row."""
    writer = None
    try:
        for table in tables:
            if table.num_rows:
                if writer is None:  # samples hardly repeat: a dictionary of theirs would take 25 MB and give nothing
                    repeated = [name for name in ("group", "label") if name in table.schema.names]
                    writer = pq.ParquetWriter(to.path, table.schema, filesystem=to.fs, use_dictionary=repeated)
                writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _slices(table: pa.Table, size: int) -> Iterator[pa.Table]:
    return (table.slice(start, size) for start in range(0, table.num_rows, size))


def _undecodable(rows_: pa.Table, form: Form) -> pa.Table:
    _, reasons = decode_column(rows_["sample"], form)
    bad = pa.array([r is not None for r in reasons])
    found = pa.table({"id": rows_["id"].cast(pa.string()), "reason": pa.array(reasons, pa.string())})
    return found.filter(bad).cast(REJECTED)


def without(ids: pa.Array, taken: pa.ChunkedArray) -> pa.Array:
    """The ids that are not in `taken`."""
    return ids.filter(pc.invert(pc.is_in(ids, value_set=taken.cast(ids.type).combine_chunks())))


def too_few(round_: int, wanted: int, left: int) -> ScoreError:
    return ScoreError(
        f"selection.budgets: round {round_} wants {wanted} samples, but only {left} usable ones are left in the pool; "
        f"{REMEDY}"
    )
