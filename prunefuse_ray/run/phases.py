"""The phases of a run: each reads what it needs from the ledger and returns what it produced."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prunefuse_ray import config as cfg
from prunefuse_ray import networks
from prunefuse_ray.acquisition import STRATEGIES
from prunefuse_ray.annotation import Annotator
from prunefuse_ray.config.schema import Config
from prunefuse_ray.data.known_labels import read_known
from prunefuse_ray.data.labeled_set import held_out
from prunefuse_ray.data.parquet import with_groups
from prunefuse_ray.data.pool import PoolInfo, Source
from prunefuse_ray.data.reading import tables
from prunefuse_ray.data.sample_format import PREPROCESSING_FILE, decode_column, form_of, preprocessing_to_bytes
from prunefuse_ray.data.stream import stream
from prunefuse_ray.distributed.resources import Resources, ScoringPlan, TrainingPlan
from prunefuse_ray.errors import LedgerError, PoolError, ScoreError, TrainingError
from prunefuse_ray.method.selector import dense_network, fused_network, make_selector, network_spec, proxies, trusted
from prunefuse_ray.method.steps import GROW, INIT, REPORT, Step, base, round_seed, steps, to_choose
from prunefuse_ray.report.page import render
from prunefuse_ray.run import growth
from prunefuse_ray.run.labeling import REQUEST, TABLE, annotator_of, labeled, request_of, request_table, wait_for_labels
from prunefuse_ray.run.ledger import Ledger, Output, label_count
from prunefuse_ray.run.view import view_run
from prunefuse_ray.schemas import REJECTED, arrow_type, labels_schema, selected_schema
from prunefuse_ray.scoring.backend_choice import SMALL_BATCH, check, choose
from prunefuse_ray.scoring.predictions import doubts, predict
from prunefuse_ray.scoring.scorer import ScoringJob, largest_score, score_pool, summarise
from prunefuse_ray.selection import set_strategies
from prunefuse_ray.selection.random_selection import random_choice
from prunefuse_ray.selection.top_k import REMEDY, top_k, top_k_of_groups
from prunefuse_ray.storage import Place, read_input
from prunefuse_ray.training.trainer import TrainingJob, TrainingResult, train

KNOWN_LABELS, KNOWN_SAMPLES = "known/labels.parquet", "known/samples"

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Work:
    """What the phases of one run share."""

    config: Config
    ledger: Ledger
    info: PoolInfo
    pool: Source
    test: Source
    validation: Source | None
    has: Resources
    scoring: ScoringPlan
    training: TrainingPlan
    last: int = field(init=False)

    def __post_init__(self) -> None:
        self.last = len(self.config.selection.budgets) - 1
        self.form = form_of(self.config.pool, self.info)
        self.spec = network_spec(self.config, self.info)

    def look_again(self, found: Source) -> None:
        """Take over what the run has seen of its pool, of which `found` lies there now."""
        self.info = growth.seen_info(self.config, self.ledger)
        self.pool = growth.seen_source(self.config, self.ledger, found)

    def labels(self, up_to: int) -> pa.Table:
        """All labels up to a round, those known beforehand first."""
        given = self.ledger.labels([Step(r, "label") for r in range(up_to + 1)], self.info.id_type)
        begun = self.config.pool.known_labels is not None and self.ledger.committed(Step(-1, INIT))
        return pa.concat_tables([self.known(), given]) if begun else given

    def known(self) -> pa.Table:
        """The labels that were known before the run began."""
        return self.ledger.read_table(Step(-1, INIT), KNOWN_LABELS, labels_schema(self.info.id_type))

    def samples(self, up_to: int) -> Source:
        """The labeled samples of the rounds so far (beside some that people left without a label), those known
        beforehand first."""
        found = [self.ledger.files(Step(r, "label"), "samples") for r in range(up_to + 1)]
        if self.config.pool.known_labels is not None:
            found.insert(0, self.ledger.files(Step(-1, INIT), KNOWN_SAMPLES))
        return Source(
            fs=self.ledger.root.fs,
            sample_column="sample",
            files=tuple(p for paths, _ in found for p in paths),
            sizes=tuple(s for _, sizes in found for s in sizes),
        )


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a phase produced: outputs for the ledger to write, files written already, figures."""

    outputs: Mapping[str, Output]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    written: list[Any] = field(default_factory=list)
    leftovers: tuple[str, ...] = ()
    """Names that are no longer needed once the phase is committed."""


def check_inputs(config: Config, ledger: Ledger) -> None:
    """LedgerError where a file that the run began with has other contents now. One that is gone is not missed: the
    run directory holds what was taken from it."""
    begun = ledger.committed(Step(-1, INIT))
    for field_, path in (("network.weights", config.network.weights), ("pool.known_labels", config.pool.known_labels)):
        if begun is None or path is None or not Place.at(path).exists():
            continue
        if hashlib.sha256(read_input(field_, path)).hexdigest() != begun.metrics["inputs"][field_]["sha256"]:
            raise LedgerError(
                f"{field_}: '{path}' is not the file that the run began with (its digest differs): restore it, or "
                "start under another --run.name"
            )


def _init(work: Work, step: Step) -> Done:
    """Initialise the dense network, and the network that selects: pruned from it, itself, or another architecture.
    Labels that are known beforehand are taken in with their samples."""
    config = work.config
    dense, weights = dense_network(config, work.spec)
    if weights.get("replaced"):
        log.warning("network.weights: a new head for %d classes: %s are fresh", work.spec.classes, weights["replaced"])
    selector = make_selector(config, dense)
    known = _take_known(work, step)
    shape = work.form.network_shape
    outputs = {f"dense/{k}": v for k, v in networks.to_files(dense).items()}
    outputs |= {f"{proxies(config)}/{k}": v for k, v in networks.to_files(selector).items()}
    return Done(
        outputs={**outputs, **known.outputs},
        written=known.written,
        metrics={
            "inputs": {"network.weights": weights, "pool.known_labels": known.metrics},
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


def _take_known(work: Work, step: Step) -> Done:
    """The labels of `pool.known_labels` and their samples; those that cannot be decoded are recorded as rejected."""
    path = work.config.pool.known_labels
    if path is None:
        return Done(outputs={})
    known = read_known(path, work.info)
    ids = known.table["id"].combine_chunks()
    bad = _undecodable(work, ids)
    _note_rejected(work, bad)
    usable = known.table.filter(pc.invert(pc.is_in(ids, value_set=bad["id"].cast(ids.type).combine_chunks())))
    work.ledger.clear(step, KNOWN_SAMPLES)
    out = work.ledger.place(step, KNOWN_SAMPLES)
    out.fs.create_dir(out.path, recursive=True)
    stream(work.pool, only=usable["id"].combine_chunks()).write_parquet(
        out.path, filesystem=out.fs, min_rows_per_file=10_000, ray_remote_args={"num_cpus": 0.25}
    )
    labels = usable.append_column("source", pa.array(["known"] * usable.num_rows, pa.string()))
    written = out.files()
    found = sum(pq.read_metadata(f.path, filesystem=out.fs).num_rows for f in written)
    if found != usable.num_rows:
        raise PoolError(
            f"pool.known_labels: '{path}' names {usable.num_rows} samples, but the pool gave {found} of them; mend it"
        )
    return Done(
        outputs={KNOWN_LABELS: labels.cast(labels_schema(work.info.id_type))},
        metrics={"sha256": hashlib.sha256(known.content).hexdigest(), "labels": usable.num_rows},
        written=written,
    )


def _select(work: Work, step: Step) -> Done:
    """Choose the round's samples: at random, or by the strategy from the score files of the round before."""
    k = to_choose(work.config, step.round, work.labels(step.round - 1).num_rows)
    schema = selected_schema(work.info.id_type)
    scored = Step(step.round - 1, "score")
    more: Mapping[str, Any] = {}
    if k == 0:  # the known labels are the whole initial set
        chosen = schema.empty_table()
    elif work.ledger.committed(scored):
        chosen, more = _choose(work, scored, k)
    else:
        chosen = _random(work, step, k)
    return Done(outputs={"selected.parquet": chosen.cast(schema)}, metrics={"chosen": k, **more})


def _choose(work: Work, scored: Step, k: int) -> tuple[pa.Table, Mapping[str, Any]]:
    """The k samples that the configured strategy chooses from the files of `scored`, and figures about them."""
    selection, seed, cpus = work.config.selection, work.config.run.seed, work.has.cpus

    def files(name: str, *columns: str) -> set_strategies.Files:
        paths, sizes = work.ledger.files(scored, name)
        return set_strategies.Files(where=work.ledger.root, paths=tuple(paths), sizes=tuple(sizes), columns=columns)

    match selection.strategy:
        case "k_centers":
            return set_strategies.k_centers(files("scores", "feature"), files("labeled", "feature"), k, cpus), {}
        case "badge":
            return set_strategies.badge(files("scores", "gradient", "feature"), k, seed, scored.round, cpus), {}
        case "cluster_margin":
            return set_strategies.cluster_margin(files("scores", "feature"), k, seed, scored.round, cpus), {}
    if selection.min_distance is not None:
        known = files("labeled", "feature")
        chosen, close = set_strategies.spread(files("scores", "feature"), known, k, selection.min_distance, cpus)
        return chosen, {"closer_than_min_distance": close}
    paths, _ = work.ledger.files(scored, "scores")
    if selection.per_group is not None:
        chosen, groups = top_k_of_groups(paths, work.ledger.root, k, selection.per_group)
        named = groups if selection.per_group == "group" else {work.info.classes[g]: n for g, n in groups.items()}
        return chosen, {"per_group": named}
    return top_k(paths, work.ledger.root, k), {}


def _random(work: Work, step: Step, k: int) -> pa.Table:
    """The k samples of highest random score that are not labeled and can be decoded."""
    id_type = arrow_type(work.info.id_type)
    while True:
        rejected = work.ledger.rejected()["id"].cast(id_type)
        exclude = pa.concat_arrays([work.labels(step.round - 1)["id"].combine_chunks(), rejected.combine_chunks()])
        chosen = random_choice(work.pool, k, work.config.run.seed, step.round, exclude)
        if chosen.num_rows < k:
            raise _too_few(step.round, k, chosen.num_rows)
        bad = _undecodable(work, chosen["id"].combine_chunks())
        if not bad.num_rows:
            return chosen.append_column("rank", pa.array(range(k), pa.int64()))
        _note_rejected(work, bad)


def _too_few(round_: int, wanted: int, left: int) -> ScoreError:
    return ScoreError(
        f"selection.budgets: round {round_} wants {wanted} samples, but only {left} usable ones are left in the pool; "
        f"{REMEDY}"
    )


def _undecodable(work: Work, ids: pa.Array) -> pa.Table:
    """(id, reason) of those of `ids` whose samples cannot be decoded; one pass over the pool."""
    form = work.form

    def check(rows: pa.Table) -> pa.Table:
        _, reasons = decode_column(rows["sample"], form)
        bad = pa.array([r is not None for r in reasons])
        found = pa.table({"id": rows["id"].cast(pa.string()), "reason": pa.array(reasons, pa.string())})
        return found.filter(bad).cast(REJECTED)

    checked = stream(work.pool, only=ids).map_batches(check, batch_format="pyarrow", batch_size=256, num_cpus=0.5)
    tables: list[Any] = list(checked.iter_batches(batch_format="pyarrow", batch_size=None))
    return pa.concat_tables([REJECTED.empty_table(), *(t.cast(REJECTED) for t in tables if t.num_rows)])


def _note_rejected(work: Work, found: pa.Table) -> None:
    """Record rejected samples; too many of them stop the run."""
    count = work.ledger.record_rejected(found)
    allowed = work.config.pool.max_rejected
    if count > allowed * work.info.rows:
        example = work.ledger.rejected().slice(0, 1).to_pylist()[0]
        raise ScoreError(
            f"pool.max_rejected: {count} of {work.info.rows} samples cannot be used, more than the allowed "
            f"share {allowed:g}; e.g. {example['id']!r}: {example['reason']}. See rejected.parquet; mend the "
            "pool or raise pool.max_rejected"
        )


def _chosen(work: Work, step: Step) -> pa.Table:
    return work.ledger.read_table(Step(step.round, "select"), "selected.parquet", selected_schema(work.info.id_type))


def _fetch(work: Work, step: Step, ids: pa.Array, *, label: bool) -> list[Any]:
    """Copy the chosen samples (and labels) from the pool to the run directory; the files written."""
    work.ledger.clear(step, "samples")
    out = work.ledger.place(step, "samples")
    out.fs.create_dir(out.path, recursive=True)
    stream(work.pool, only=ids, label=label).write_parquet(
        out.path, filesystem=out.fs, min_rows_per_file=10_000, ray_remote_args={"num_cpus": 0.25}
    )
    written = out.files()
    found = sum(pq.read_metadata(f.path, filesystem=out.fs).num_rows for f in written)
    if found != len(ids):
        raise PoolError(
            f"pool.path: {len(ids)} samples were selected, but the pool gave {found} of them; it has "
            "changed since the run began"
        )
    return written


def _label(work: Work, step: Step) -> Done:
    """The labels of the chosen samples: from the oracle (a column of the pool), or from people."""
    if (annotator := annotator_of(work.config.annotation)) is not None:
        return _collect(work, step, annotator)
    ids = _chosen(work, step)["id"].combine_chunks()
    written = _fetch(work, step, ids, label=True)
    fs = work.ledger.root.fs
    found = pa.concat_tables([pq.read_table(f.path, filesystem=fs, columns=["id", "label"]) for f in written])
    found = found.sort_by("id")
    labels = found.append_column("source", pa.array(["oracle"] * found.num_rows)).cast(labels_schema(work.info.id_type))
    return Done(
        outputs={"labels.parquet": labels},
        metrics={"labels": work.labels(step.round - 1).num_rows + len(ids)},
        written=written,
    )


def _request(work: Work, step: Step) -> Done:
    """What people are asked: the chosen samples, and what the proxy of the round before makes of them."""
    chosen = _chosen(work, step)
    written = _fetch(work, step, chosen["id"].combine_chunks(), label=False)
    guesses = None
    if step.round:
        source = Source(
            fs=work.ledger.root.fs,
            sample_column="sample",
            files=tuple(f.path for f in written),
            sizes=tuple(f.size for f in written),
        )
        proxy = work.ledger.read_network(Step(step.round - 1, "train"), proxies(work.config))
        guesses = predict(source, proxy, work.form, trusted=trusted(work.config), in_process=work.training.in_process)
    return Done(
        outputs={TABLE: request_table(chosen, guesses, work.info.id_type)},
        metrics={"samples": chosen.num_rows},
        written=written,
    )


def _collect(work: Work, step: Step, annotator: Annotator) -> Done:
    """Labels from people. LabelsWaiting where they have not given them yet."""
    request = request_of(work.config, work.ledger, work.info, step.round)
    take = wait_for_labels(annotator, request, work.config.annotation)
    result = labeled(take, work.info.id_type, work.config.annotation.kind)
    return Done(
        outputs=result.outputs,
        metrics={"labels": work.labels(step.round - 1).num_rows + result.labels.num_rows, **result.metrics},
        written=work.ledger.root.fs.get_file_info([p.path for p in request.samples]),
    )


def _label_chosen(work: Work, step: Step) -> Done:
    """Labels for what the round chose; an initial set of known labels alone asks for none."""
    if step.round == 0 and work.labels(-1).num_rows == work.config.selection.budgets[0]:
        return Done(
            outputs={"labels.parquet": labels_schema(work.info.id_type).empty_table()},
            metrics={"labels": work.labels(-1).num_rows},
        )
    return _label(work, step)


def _training_job(work: Work, step: Step, network: dict[str, bytes], recipe: cfg.Recipe, **more: Any) -> TrainingJob:
    samples = work.samples(step.round)
    labels, held = held_out(work.labels(step.round), work.config.pool.validation_share, work.config.run.seed)
    return TrainingJob(
        network=network,
        recipe=recipe,
        samples=samples,
        labels=labels,
        test=work.test,
        validation=samples if held.num_rows else work.validation,
        validation_labels=held if held.num_rows else None,
        form=work.form,
        seed=round_seed(work.config, step.round, step.phase),
        trusted=trusted(work.config),
        **more,
    )


def _train_proxy(work: Work, step: Step) -> Done:
    """Train the selecting network on all labels so far, from its initial weights (after a sync: pruned fused ones)."""
    origin = base(work.config, step.round)
    start = work.ledger.read_network(origin, proxies(work.config, "proxies" if origin.phase == INIT else "next"))
    # The statistics of a trained network's batch norms are off by what was pruned before them.
    trained = (work.config.network.weights is not None or origin.phase != INIT) and isinstance(
        networks.from_files(start, trusted(work.config)), (networks.Proxy, networks.Committee)
    )
    result = _train(work, step, _training_job(work, step, start, work.config.training, recalibrate=trained), "training")
    predicted = predict(
        work.samples(step.round),
        result.network,
        work.form,
        work.labels(step.round),
        trusted=trusted(work.config),
        in_process=work.training.in_process,
    )
    return Done(
        outputs={**_network_outputs(work, proxies(work.config), result), "doubts.parquet": doubts(predicted)},
        metrics=result.metrics,
        leftovers=("training",),
    )


def _grow(work: Work, step: Step) -> Done:
    """Take in the files that have come into the pool since it was last looked at. Where the next round would still find
    too few samples nothing is recorded, so that the same command looks again."""
    outputs, metrics = growth.grow(work.config, work.ledger, work.info)
    labels = work.labels(step.round).num_rows
    left = work.info.rows + metrics["samples"] - labels - work.ledger.rejected().num_rows
    if left < (wanted := to_choose(work.config, step.round + 1, labels)):
        raise _too_few(step.round + 1, wanted, left)
    return Done(outputs=outputs, metrics=metrics)


def _score(work: Work, step: Step) -> Done:
    """Score every sample of the pool that has no label with the round's proxy; the labeled ones where a set strategy
    needs their features, too."""
    config = work.config
    labeled = work.labels(step.round)["id"].combine_chunks()
    out = work.ledger.place(step, "scores")
    job = ScoringJob(
        strategy=config.selection.strategy,
        form=work.form,
        batch_size=SMALL_BATCH,
        features=config.scoring.features or config.selection.needs_features,
        gradients=STRATEGIES[config.selection.strategy].gradients,
        predicted=config.selection.per_group == "predicted",
        threads=work.scoring.cpus,
        gpu=work.scoring.gpus > 0,
        trusted=trusted(config),
    )
    macs = _macs(work)
    network = work.ledger.place(step, proxies(config))
    job = choose(work.ledger.root, config.scoring, network, job, work.scoring, work.info.rows * macs["proxy"])
    started = time.perf_counter()
    _score_into(work, step, "scores", with_groups(work.pool, config.pool), job, exclude=labeled, rows=work.info.rows)
    seconds = time.perf_counter() - started
    written = out.files()
    try:
        summary = summarise(
            [f.path for f in written],
            out,
            largest_score(config.selection.strategy, len(work.info.classes), config.pruning.committee),
        )
        expected = work.info.rows - len(labeled)
        if summary.rows != expected:
            raise ScoreError(
                f"round {step.round} scored {summary.rows} rows of {expected}: the pool changed meanwhile, or "
                "two drivers wrote to this run; the round's scores were removed, run again"
            )
    except ScoreError:
        work.ledger.clear(step, "scores", "scores-checkpoint")
        raise
    _note_rejected(work, summary.rejected)
    known: list[Any] = []
    if config.selection.needs_labeled:
        # Samples that people were asked about and left without a label are in the pool again, and no centers.
        source = work.samples(step.round)
        asked = pa.concat_tables(tables(source, [source.id_column]))[source.id_column].combine_chunks()
        skipped = asked.filter(pc.invert(pc.is_in(asked, value_set=labeled)))
        known = _score_into(work, step, "labeled", source, job, exclude=skipped, rows=len(labeled))
    return Done(
        outputs={},
        written=[*written, *known],
        leftovers=("scores-checkpoint", "labeled-checkpoint"),
        metrics={
            "samples": summary.scored,
            "samples_per_second": summary.scored / seconds,
            "rejected": summary.rejected.num_rows,
            "histogram": summary.histogram,
            "macs": summary.scored * macs["proxy"],
            "dense_macs": summary.scored * macs["dense"],
            "actors": [work.scoring.min_actors, work.scoring.max_actors],
            "inference": check(work.pool, network, job, work.scoring),
        },
    )


def _score_into(work: Work, step: Step, name: str, source: Source, job: ScoringJob, **more: Any) -> list[Any]:
    """Score `source` with the step's proxy into files below `name`, or go on with it; returns the files."""
    out, checkpoint = work.ledger.place(step, name), work.ledger.place(step, f"{name}-checkpoint")
    for place in (out, checkpoint):
        place.fs.create_dir(place.path, recursive=True)
    network = work.ledger.place(step, proxies(work.config))
    score_pool(source, network, job, work.scoring, out=out, checkpoint=checkpoint, **more)
    return out.files()


def _macs(work: Work) -> dict[str, int]:
    commit = work.ledger.committed(Step(-1, INIT))
    assert commit is not None
    return commit.metrics["macs_per_sample"]


def _fuse(work: Work, step: Step) -> Done:
    """Write the trained proxy's weights into the network that it was pruned from."""
    config = work.config
    origin = base(config, step.round)
    dense = networks.from_files(
        work.ledger.read_network(origin, "dense")
        if origin.phase == INIT
        else work.ledger.read_network(Step(origin.round, "finetune"), "fused"),
        trusted(config),
    )
    target = dense.network
    if config.fusion.target == "fused":
        proxy = networks.from_files(
            work.ledger.read_network(Step(step.round, "train"), proxies(config)), trusted(config)
        )
        target = fused_network(config, target, proxy)
    fused = networks.to_files(networks.Dense(network=target, spec=dense.spec))
    return Done(outputs={f"fused-initial/{k}": v for k, v in fused.items()})


def _finetune(work: Work, step: Step) -> Done:
    """Train the target network on all labels, with distillation from the trained proxy."""
    config = work.config
    distil = config.distillation if config.distillation.weight > 0 and config.fusion.target == "fused" else None
    teacher = work.ledger.read_network(Step(step.round, "train"), proxies(config)) if distil else None
    job = _training_job(
        work,
        step,
        work.ledger.read_network(Step(step.round, "fuse"), "fused-initial"),
        config.finetuning,
        teacher=teacher,
        distillation=distil,
        recalibrate=config.fusion.target == "fused",
    )
    result = _train(work, step, job, "finetuning")
    return Done(outputs=_network_outputs(work, "fused", result), metrics=result.metrics, leftovers=("finetuning",))


def _train(work: Work, step: Step, job: TrainingJob, section: str) -> TrainingResult:
    """Train by a section of the configuration; TrainingError where the network's outputs are no numbers any more."""
    result = train(job, work.training, work.ledger.place(step, section))
    if not math.isfinite(loss := result.metrics["test_loss"]):
        raise TrainingError(
            f"round {step.round}, {step.phase}: the loss on the test set is {loss}: the network diverged; lower "
            f"{section}.lr ({job.recipe.lr:g}) or raise {section}.warmup_epochs, in a run of another run.name"
        )
    return result


def _network_outputs(work: Work, name: str, result: TrainingResult) -> dict[str, bytes]:
    """A trained network's files, with what it takes to use it elsewhere."""
    files = {**result.network, PREPROCESSING_FILE: preprocessing_to_bytes(work.form, work.info.classes)}
    return {f"{name}/{k}": v for k, v in files.items()}


def _sync(work: Work, step: Step) -> Done:
    """Prune the fine-tuned fused network: the initial proxy of the next rounds."""
    fused = networks.from_files(work.ledger.read_network(Step(step.round, "finetune"), "fused"), trusted(work.config))
    proxy = make_selector(work.config, networks.Dense(network=fused.network, spec=fused.spec))
    return Done(outputs={f"{proxies(work.config, 'next')}/{k}": v for k, v in networks.to_files(proxy).items()})


def _report(work: Work, step: Step) -> Done:
    """The run's result, its page, all that was selected, and the final network under its final name."""
    result = summary(work.config, work.ledger)
    finetune = Step(work.last, "finetune")
    fused = {f"fused/{k}": v for k, v in work.ledger.read_network(finetune, "fused").items()}
    work.ledger.write_json("result.json", result)
    page = render(view_run(work.ledger))
    outputs = {**fused, "selected.parquet": _all_selected(work), "result.json": result, "report.html": page.encode()}
    return Done(outputs=outputs)


def _all_selected(work: Work) -> pa.Table:
    """Every round's choice in one table: (id, round, score, rank), in the order of rounds and ranks."""
    schema = selected_schema(work.info.id_type)
    tables = []
    for r in range(work.last + 1):
        chosen = work.ledger.read_table(Step(r, "select"), "selected.parquet", schema).sort_by("rank")
        tables.append(chosen.add_column(1, "round", pa.array([r] * chosen.num_rows, pa.int64())))
    return pa.concat_tables(tables)


PHASES: dict[str, Callable[[Work, Step], Done]] = {
    INIT: _init,
    "select": _select,
    REQUEST: _request,
    "label": _label_chosen,
    "train": _train_proxy,
    GROW: _grow,
    "score": _score,
    "fuse": _fuse,
    "finetune": _finetune,
    "sync": _sync,
    REPORT: _report,
}


def summary(config: Config, ledger: Ledger) -> dict[str, Any]:
    """What a run came to, from the ledger alone; the form of `result.json`."""

    def metrics(step: Step) -> dict[str, Any]:
        commit = ledger.committed(step)
        return dict(commit.metrics) if commit else {}

    rounds = []
    for r in range(len(config.selection.budgets)):
        phases = [s for s in steps(config) if s.round == r]
        rounds.append(
            {
                "round": r,
                "labels": label_count(config, ledger, r),
                "proxy_accuracy": metrics(Step(r, "train")).get("test_accuracy"),
                "fused_accuracy": metrics(Step(r, "finetune")).get("test_accuracy"),
                "selection_macs": metrics(Step(r, "score")).get("macs", 0),
                "dense_selection_macs": metrics(Step(r, "score")).get("dense_macs", 0),
                "training_macs": metrics(Step(r, "train")).get("macs", 0),
                "seconds": {s.phase: metrics(s).get("seconds", 0.0) for s in phases},
            }
        )
    init = metrics(Step(-1, INIT))
    return {
        "name": config.run.name,
        "seed": config.run.seed,
        "rounds": rounds,
        "proxy_accuracy": rounds[-1]["proxy_accuracy"],
        "fused_accuracy": rounds[-1]["fused_accuracy"],
        "selection_macs": sum(r["selection_macs"] for r in rounds),
        "dense_selection_macs": sum(r["dense_selection_macs"] for r in rounds),
        "seconds": sum(s for r in rounds for s in r["seconds"].values()) + init.get("seconds", 0.0),
        "parameters": init.get("parameters"),
        "macs_per_sample": init.get("macs_per_sample"),
        "rejected": ledger.rejected().num_rows,
    }
