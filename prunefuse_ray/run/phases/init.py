"""The phase `init`: the dense network, what selects, and the labels that are known beforehand."""

from __future__ import annotations

import logging
from dataclasses import replace

import pyarrow as pa
import pyarrow.fs as pafs
from torch.nn.modules.batchnorm import _BatchNorm

from prunefuse_ray import networks
from prunefuse_ray.data.account import LEFT_OUT_FILE
from prunefuse_ray.data.draw import outside, within
from prunefuse_ray.data.inventory import INVENTORY
from prunefuse_ray.data.known_labels import in_pool, read_known
from prunefuse_ray.data.labeled_set import check_masks
from prunefuse_ray.errors import few
from prunefuse_ray.method.selector import dense_network, input_digests, make_selector, proxies
from prunefuse_ray.method.steps import LEARN, Step, learns
from prunefuse_ray.run.context import KNOWN_LABELS, KNOWN_TEST, Done, RunContext
from prunefuse_ray.run.environment import environment
from prunefuse_ray.run.ledger import KNOWN_SAMPLES
from prunefuse_ray.run.phases.learn import STATISTICS_FILE
from prunefuse_ray.tasks import TASKS

logger = logging.getLogger(__name__)

NAMED = 5


def run(context: RunContext, step: Step) -> Done:
    """Initialize the dense network, and the network that selects: pruned from it, itself, or another architecture.
    Labels that are known beforehand are taken in with their samples."""
    config = context.config
    statistics = context.ledger.read_bytes(Step(-1, LEARN), STATISTICS_FILE) if learns(config) else None
    dense, weights = dense_network(config, context.spec, statistics)
    for note in weights.get("notes", []):
        logger.warning("network.weights: %s", note)
    selector = make_selector(config, dense)
    if told := chance_alone(config.pruning.importance, dense, selector):
        logger.warning(told)
    known = _take_known(context, step)
    _check_pixels(context, known)
    shape = context.form.network_shape
    outputs = {f"dense/{k}": v for k, v in networks.to_files(dense).items()}
    outputs |= {f"{proxies(config)}/{k}": v for k, v in networks.to_files(selector).items()}
    return Done(
        outputs={**outputs, **known.outputs},
        written=[*known.written, *_pool_files(context)],
        metrics={
            "environment": environment(config),
            "inputs": {
                "network.weights": weights,
                "pool.known_labels": known.metrics,
                **{field: {"sha256": digest} for field, digest in input_digests(config).items()},
            },
            "parameters": {
                "dense": networks.parameters(dense.network),
                "proxy": networks.parameters(selector.network),
            },
            "macs_per_sample": {
                "dense": networks.macs(dense.network, shape),
                "proxy": networks.macs(selector.network, shape),
            },
        },
    )


def chance_alone(importance: str, dense: networks.Dense, selector: networks.Selector) -> str | None:
    """What people should know where channels are judged by the gains of batch norms, and these are all alike, as they
    are before a training."""
    gains = [m.weight for m in dense.network.modules() if isinstance(m, _BatchNorm) and m.weight is not None]
    pruned = isinstance(selector, networks.Proxy | networks.Committee)
    if not pruned or importance != "bn_scale" or any(bool((gain != gain[0]).any()) for gain in gains):
        return None
    return (
        "pruning.importance bn_scale: the network is untrained, all gains of a batch norm are alike, and so the first "
        "channels of every layer are pruned; begin with network.weights, or take 'magnitude', in a run of another "
        "run.name"
    )


def _check_pixels(context: RunContext, known: Done) -> None:
    """Where labels are of pixels, that those of the held-out sets and those known beforehand fit their images. A test
    set that is drawn has no labels yet: `drawn_set.taken` checks them."""
    if not context.task.pixels:
        return
    for held in (context.test_set, context.validation):
        if held is not None:
            check_masks(held)
    labels = known.outputs.get(KNOWN_LABELS)
    if isinstance(labels, pa.Table):
        check_masks(context.copied(known.written), labels)


def _without_twins(context: RunContext, labels: pa.Table) -> pa.Table:
    """Without labels of samples that have the content of one of the drawn test set: these are none of the pool's."""
    if context.pool.without is None:
        return labels
    twins_N = context.pool.without.holds(labels["id"])
    if twins_N.any():
        logger.warning(
            "pool.known_labels: %d labels are left out, of samples that have the content of one of the test set (%s)",
            twins_N.sum(), few(labels["id"].filter(pa.array(twins_N)).to_pylist(), NAMED),
        )  # fmt: skip
    return labels.filter(pa.array(~twins_N))


def _pool_files(context: RunContext) -> list[pafs.FileInfo]:
    """What was written of the pool before the first phase: from here on its content is recorded."""
    root = context.ledger.root
    beside = root.fs.get_file_info([(root / name).path for name in ("pool.json", INVENTORY, LEFT_OUT_FILE)])
    return [*(root / "pool").written(recursive=True), *(f for f in beside if f.type == pafs.FileType.File)]


def _take_known(context: RunContext, step: Step) -> Done:
    """The labels of `pool.known_labels` and their samples; those that cannot be decoded are recorded as rejected."""
    path = context.config.pool.known_labels
    if path is None:
        return Done(outputs={})
    known = read_known(path, context.info, TASKS[context.config.task])
    everywhere = in_pool(known.table, replace(context.pool, without=None))
    labels, tested = outside(everywhere, context.drawn_test), within(everywhere, context.drawn_test)
    labels = _without_twins(context, labels)
    ids = labels["id"].combine_chunks()
    bad = context.undecodable(ids)
    context.note_rejected(bad)
    usable = outside(labels, bad["id"].combine_chunks())
    written = context.copy_samples(step, KNOWN_SAMPLES, usable["id"].combine_chunks())
    labels, tested = (
        t.append_column("source", pa.array(["known"] * t.num_rows, pa.string())) for t in (usable, tested)
    )
    of_test = {KNOWN_TEST: tested.cast(context.labels_schema)} if len(context.drawn_test) else {}
    return Done(
        outputs={KNOWN_LABELS: labels.cast(context.labels_schema), **of_test},
        metrics={"sha256": known.sha256, "labels": usable.num_rows},
        written=written,
    )
