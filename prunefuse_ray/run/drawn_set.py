"""The test set that a run draws from its pool (`data/draw.py`): asked about with round 0, then kept with its labels."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prunefuse_ray.acquisition import random_scores
from prunefuse_ray.acquisition.draws import ORDER
from prunefuse_ray.data.contents import digests_of
from prunefuse_ray.data.draw import within
from prunefuse_ray.data.ids import ids_to_numpy
from prunefuse_ray.data.inventory import HELD_OUT_FILE
from prunefuse_ray.data.labeled_set import check_masks, own_labels
from prunefuse_ray.data.pool import Source
from prunefuse_ray.errors import LabelError, few
from prunefuse_ray.method.steps import INIT, REQUEST, SELECT, Step
from prunefuse_ray.run.class_counts import class_counts, without_labels
from prunefuse_ray.run.context import KNOWN_TEST, TEST, TEST_CONTENTS, TEST_IDS, Done, RunContext, without
from prunefuse_ray.run.labeling import TEST_SAMPLES
from prunefuse_ray.schemas import HELD_OUT, arrow_type
from prunefuse_ray.storage import table_bytes

logger = logging.getLogger(__name__)

SETTING = "test_samples"
NAMED = 10
"""Classes without a sample in the test set."""


def ids(context: RunContext, step: Step) -> pa.Array:
    """Those of the test set that can be used, in the phases of round 0; none in others, and where nothing was drawn."""
    if step.round or not len(context.drawn_test):
        return pa.array([], arrow_type(context.info.id_type))
    schema = pa.schema([("id", arrow_type(context.info.id_type))])
    return context.ledger.read_table(Step(0, SELECT), TEST_IDS, schema)["id"].combine_chunks()


def known(context: RunContext) -> pa.Table:
    """Labels of the test set that were known beforehand: `context.labels_schema`."""
    schema = context.labels_schema
    if not len(context.drawn_test) or context.config.pool.known_labels is None:
        return schema.empty_table()
    found = context.ledger.read_table(Step(-1, INIT), KNOWN_TEST, schema)
    return within(found, ids(context, Step(0, SELECT)))


def unknown(context: RunContext, tested: pa.Array) -> pa.Array:
    """Those of the test set that people have to label."""
    return without(tested, known(context)["id"])


def shuffled(selected: pa.Table, asked: pa.Array) -> pa.Table:
    """The selected samples and the test set's in one order (id, score, rank), by a hash of the id."""
    rows = pa.concat_tables([selected.select(["id", "score"]), pa.table({"id": asked})], promote_options="default")
    order = np.argsort(random_scores(ids_to_numpy(rows["id"]), *ORDER), kind="stable")
    return rows.take(pa.array(order)).append_column("rank", pa.array(range(rows.num_rows), pa.int64()))


def taken(context: RunContext, step: Step, labels: pa.Table) -> Done:
    """The test set as the run keeps it: files of (id, sample, label), and its contents, with which the pool is compared
    when it is scored.

    Args:
        labels: of people (id, label, ...); the oracle's stand in the pool.

    Raises:
        LabelError: no sample of it has a label.
    """
    tested = ids(context, step)
    if context.config.annotation.kind == "oracle":
        written = context.copy_samples(step, TEST, tested, label=True, test=True)
    else:
        if not labels.num_rows:
            raise LabelError(
                f"round 0: none of the {len(tested)} samples of the test set (pool.test_samples) has a label, and "
                "nothing can be measured without: label some of them, and run the same command again"
            )
        written = _joined(context, step, labels)
    found = Source(
        fs=context.ledger.root.fs,
        sample_column="sample",
        files=tuple(f.path for f in written),
        sizes=tuple(f.size for f in written),
        task=context.config.task,
    )
    if context.task.pixels:
        check_masks(found)
    own, before = digests_of(found), context.ledger.root / HELD_OUT_FILE
    own = own.add_column(0, HELD_OUT.field("set"), pa.array([SETTING] * own.num_rows, pa.string()))
    others = before.read_table(HELD_OUT) if before.exists() else HELD_OUT.empty_table()
    counts = class_counts(context.config.task, own_labels(found), len(context.info.classes))
    _warn(context, tested, own.num_rows, counts)
    return Done(
        outputs={TEST_CONTENTS: pa.concat_tables([others, own])},
        metrics={"test_samples": own.num_rows, "test_unlabeled": len(tested) - own.num_rows, "test_counts": counts},
        written=written,
    )


def _warn(context: RunContext, tested: pa.Array, labeled: int, counts: list[int]) -> None:
    if labeled < len(context.drawn_test):
        unusable, without = len(context.drawn_test) - len(tested), len(tested) - labeled
        logger.warning(
            "the test set has %d of the %d samples that were drawn: %d cannot be read, %d have no label",
            labeled, len(context.drawn_test), unusable, without,
        )  # fmt: skip
    if not context.task.numbers and (none := without_labels(counts, context.info.classes)):
        logger.warning("the test set has no sample of %s: it says nothing about these classes", few(none, NAMED))


def _joined(context: RunContext, step: Step, labels: pa.Table) -> list:
    """Write the copied samples that have a label, with it."""
    context.ledger.clear(step, TEST)
    root, written = context.ledger.root, []
    for number, path in enumerate(context.ledger.files(Step(0, REQUEST), TEST_SAMPLES)[0]):
        rows = pq.read_table(path, filesystem=root.fs)
        place = pc.index_in(rows["id"], value_set=labels["id"].combine_chunks().cast(rows["id"].type))
        rows = rows.append_column("label", labels["label"].combine_chunks().take(place))
        file = table_bytes(rows.filter(pc.is_valid(rows["label"])))
        written.append(context.ledger.write_file(f"{step.directory}/{TEST}/part-{number:05d}.parquet", file).path)
    return root.fs.get_file_info(written)
