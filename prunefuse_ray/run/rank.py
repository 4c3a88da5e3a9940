"""Scoring without a loop: any saved network over any pool, into a directory of its own.

The directory is kept like a run's (`ledger.py`): the same call goes on with the rows that are missing, and another
network, pool or configuration is refused.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field, field_validator

from prunefuse_ray import config as cfg
from prunefuse_ray import networks, progress
from prunefuse_ray.acquisition import AUTO, STRATEGIES
from prunefuse_ray.config.files import differences, to_tree
from prunefuse_ray.data import inventory
from prunefuse_ray.data.account import lines
from prunefuse_ray.data.leaks import check_outside
from prunefuse_ray.data.pool import PoolInfo, Source
from prunefuse_ray.data.prepared import open_prepared, pool_name
from prunefuse_ray.data.sample_format import (
    PREPROCESSING_FILE,
    Form,
    Preprocessing,
    form_of,
    preprocessing_from_bytes,
    tokenizer_file,
)
from prunefuse_ray.data.survey import check_unchanged, materialize, source_of, survey
from prunefuse_ray.data.texts import NgramForm, TextForm, TokenForm, tokenizer_of
from prunefuse_ray.data.vectors import VectorForm
from prunefuse_ray.distributed.resources import observe, plan_scoring, start_ray
from prunefuse_ray.distributed.shared_directory import SharedDirectory
from prunefuse_ray.errors import ConfigError, LedgerError, PoolError
from prunefuse_ray.inference.predictor import check_classes, check_task, read_network
from prunefuse_ray.inference.saved_networks import network_files, network_place
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run.ledger import EXECUTION_FIELDS, Ledger
from prunefuse_ray.run.recorded import read_recorded
from prunefuse_ray.schemas import REJECTED, arrow_type, selected_schema
from prunefuse_ray.scoring.backend_choice import SMALL_BATCH
from prunefuse_ray.scoring.predictions import export
from prunefuse_ray.scoring.score_pass import ScorePass, check_rejected, fitting, score
from prunefuse_ray.scoring.scorer import ScoringJob
from prunefuse_ray.selection.top_k import top_k
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS

SCORE, RANK, PREDICT = Step(-1, "score"), Step(-1, "rank"), Step(-1, "predict")
PREDICTIONS = "predictions"


class Strategy(cfg.Section):
    """By what samples are ranked."""

    strategy: str = "least_confidence"
    """Acquisition strategy: least_confidence, margin, entropy; of a committee also bald, vote_entropy,
    consensus_kl, variance."""

    pixel_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of an image's pixels, the most uncertain ones, whose mean is its score; of networks of task
    segmentation."""

    @field_validator("strategy")
    @classmethod
    def _scores(cls, value: str) -> str:
        if of_rounds(value if value == AUTO else STRATEGIES.check(value)):
            able = [n for n, s in STRATEGIES.loadable().items() if s.score and s.select is None and not s.wanted]
            raise ValueError(f"'{value}' gives no scores by which samples are ranked; use one of {', '.join(able)}")
        return value


def of_rounds(name: str) -> bool:
    """Whether it is a strategy that chooses in the rounds of a run, and gives no scores by which samples are ranked."""
    strategy = None if name == AUTO else STRATEGIES[name]
    return strategy is None or strategy.score is None or strategy.select is not None or strategy.wanted


class Ranking(cfg.Section):
    """What is scored, and how; sections of a run's configuration."""

    pool: cfg.UntestedPool = cfg.UntestedPool.model_validate({})
    scoring: cfg.Scoring = cfg.Scoring()
    prepared: cfg.Prepared = cfg.Prepared()
    selection: Strategy = Strategy()


class _Weights(cfg.Section):
    weights_sha256: str


class _Recorded(Ranking):
    """A pass as its directory records it."""

    network: _Weights
    top: int


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """What a pass came to."""

    root: Place
    scored: int
    rejected: int
    ranked: int
    seconds: float
    """0 where everything had been done before."""


def rank(
    config: Ranking,
    network: str,
    out: str,
    top: int,
    trusted: str | Collection[str] | None = None,
    tell: inventory.Tell = lambda _: None,
    predictions: bool = False,
) -> Ranked:
    """Score every sample of the pool with the network in the directory `network`, and rank the `top` highest.

    Writes below `out`: scores/*.parquet (id, score, rejected, converted[, feature]), ranked.parquet (id, score, rank),
    and rejected.parquet where there are such samples.

    Args:
        trusted: the network's architecture where that is code of one's own (`package.module:function`).
        tell: is told the account of the pool, before a new pass begins.
        predictions: also write what the network says of every sample: predictions/*.parquet (id, prediction,
            probability, words).

    Raises:
        PruneFuseError: something that the user can put right; nothing was written, or nothing was lost.
    """
    place = network_place(network)
    files = network_files(place)
    saved = read_network(files, place, trusted)
    config = _as_trained(config, files, saved.spec)
    told = preprocessing_from_bytes(files[PREPROCESSING_FILE]) if PREPROCESSING_FILE in files else None
    if told is not None:
        check_task(told, place, trusted)
        check_classes(told, place, saved.spec)
    task = cfg.Config().task if told is None else told.task
    if predictions and told is None:
        raise ConfigError(f"--predictions: the network has no {PREPROCESSING_FILE}, which says what its outputs mean")
    config = _with_strategy(config, task, saved)
    by = _scored_by(config.selection.strategy, task, saved, predictions)
    if config.selection.pixel_share < 1 and not TASKS[task].pixels:
        raise ConfigError(
            f"selection.pixel_share: {config.selection.pixel_share:g} is of the pixels of an image, and the network's "
            f"task, '{task}', has one label for the whole sample: leave it out"
        )
    ledger = Ledger(Place.at(out))
    tree = to_tree(config) | {
        "network": {"weights_sha256": hashlib.sha256(_weights(files)).hexdigest()},
        "top": top,
    }
    started = time.perf_counter()
    if ledger.exists:
        _check_same(ledger, tree)
        if ledger.committed(RANK) is not None and (not predictions or ledger.committed(PREDICT) is not None):
            with suppress(PoolError):  # what was scored may be gone by now
                _check_unchanged(config, PoolInfo.from_json(ledger.read_pool()))
            return _result(ledger, 0.0)
    start_ray()
    SharedDirectory(ledger.root).check()
    progress.tell(doing="while scoring")
    tokens = told.form if told is not None and isinstance(told.form, TokenForm) else None
    try:
        info, form, source = _open(config, ledger, tree, tell, tokens)
        if ledger.committed(SCORE) is None:
            _score(config, ledger, place, saved, task, info, form, source, by)
        ledger.clear(SCORE, "scores-checkpoint")  # here, since a kill may come right after the commit
        if ledger.committed(RANK) is None:
            _rank(ledger, info, top if by == config.selection.strategy else 0)
        if predictions and ledger.committed(PREDICT) is None:
            assert told is not None
            _predict(ledger, source, files, form, told, saved, info.bytes)
    finally:
        ledger.unlock()
    return _result(ledger, time.perf_counter() - started)


def _weights(files: Mapping[str, bytes]) -> bytes:
    """All weights, a committee's members in their order."""
    return b"".join(content for name, content in files.items() if name.endswith(networks.WEIGHTS_FILE))


def _scored_by(strategy: str, task: str, saved: networks.Selector, predictions: bool) -> str:
    """The strategy whose scores are written: the one that is asked for. Where none of the task ranks by one network
    alone (numbers), predictions can be had all the same: beside scores of 0, and nothing is ranked."""
    known = TASKS[task].strategies
    alone = [n for n, s in known.items() if s.score is not None and not (s.members or s.wanted)]
    ranks = any(known[n].select is None for n in alone)
    if predictions and alone and not ranks and not isinstance(saved, networks.Committee):
        return alone[0]
    _check_strategy(strategy, task, saved)
    return strategy


def _check_strategy(strategy: str, task: str, saved: networks.Selector) -> None:
    known = TASKS[task].strategies
    try:
        asked = known[strategy]
    except KeyError:
        able = [name for name, s in known.items() if s.score is not None and s.select is None and not s.wanted]
        raise ConfigError(
            f"selection.strategy: '{strategy}' makes no sense for task '{task}', which the network was trained for; "
            f"use one of {', '.join(able)}"
        ) from None
    if asked.members and not isinstance(saved, networks.Committee):
        alone = [n for n, s in known.items() if s.score is not None and not (s.members or s.select or s.wanted)]
        raise ConfigError(
            f"selection.strategy: '{strategy}' asks the members of a committee, and this is a single network; use "
            + (", ".join(alone) if alone else "the directory of a committee: RUN/rounds/NNN/proxies")
        )


def _result(ledger: Ledger, seconds: float) -> Ranked:
    scores, ranked = ledger.committed(SCORE), ledger.committed(RANK)
    assert scores is not None
    assert ranked is not None
    return Ranked(
        root=ledger.root,
        scored=scores.metrics["samples"],
        rejected=scores.metrics["rejected"],
        ranked=ranked.metrics["ranked"],
        seconds=seconds,
    )


def _as_trained(config: Ranking, files: Mapping[str, bytes], spec: networks.NetworkSpec) -> Ranking:
    """The configuration with the pool's images or texts in the form that the network was trained on.

    Raises ConfigError where a field that was given says otherwise, or where nobody says.
    """
    pool = config.pool
    told: dict[str, Any] = {}
    if PREPROCESSING_FILE in files:
        form = preprocessing_from_bytes(files[PREPROCESSING_FILE]).form
        told = _pool_fields(form)
        if isinstance(form, TokenForm):
            _check_tokenizer(pool, form)
    elif pool.vector_column is not None:
        told = {}
    elif len(spec.input_shape) == 3:  # size and channels at least are fixed; mean and std are the configuration's
        told = {"channels": spec.input_shape[0], "image_size": tuple(spec.input_shape[1:])}
    else:
        told = {
            "text_length": spec.input_shape[0],
            "text_form": "tokens" if spec.config else "bytes" if len(spec.input_shape) == 1 else "ngrams",
        }
    for field, value in told.items():
        given = getattr(pool, field)
        given = list(given) if isinstance(given, tuple | list) else given
        wanted = list(value) if isinstance(value, tuple | list) else value
        if isinstance(given, list) and isinstance(wanted, list) and len(given) == 1:
            given = given * len(wanted)
        if field in pool.model_fields_set and given is not None and given != wanted:
            raise ConfigError(f"pool.{field}: {given}, but the network was trained with {wanted}; leave the field out")
    vectors = len(spec.input_shape) == 3 and spec.input_shape[1:] == (1, 1)
    if vectors != (pool.vector_column is not None):
        remedy = "vectors: name their column" if vectors else "no vectors: leave it out"
        raise ConfigError(f"pool.vector_column: the network reads {remedy}")
    texts = len(spec.input_shape) < 3
    if texts != (pool.text_column is not None):
        raise ConfigError(
            f"pool.text_column: the network reads {'texts' if texts else 'images'}; "
            f"{'name the column of texts' if texts else 'leave it out'}"
        )
    # What a run's file says beyond the samples is not asked here.
    unasked = dict.fromkeys(
        ("test_path", "test_version", "validation_path", "validation_version", "known_labels", "classes")
    )
    return config.model_copy(update={"pool": pool.model_copy(update={**told, **unasked, "test_samples": 0})})


def _check_tokenizer(pool: cfg.Pool, form: TokenForm) -> None:
    """ConfigError where another tokenizer was given than lies beside the network."""
    given = pool.tokenizer
    if given is not None and tokenizer_of(tokenizer_file(given), given) != form.tokenizer:
        raise ConfigError(f"pool.tokenizer: '{given}' is not what the network was trained with; leave the field out")


def _pool_fields(form: Form) -> dict[str, Any]:
    """The fields of `pool` that make this form."""
    if isinstance(form, TextForm | NgramForm):
        return {"text_length": form.length, "text_form": "bytes" if isinstance(form, TextForm) else "ngrams"}
    if isinstance(form, TokenForm):
        return {"text_length": form.length, "text_form": "tokens"}
    if isinstance(form, VectorForm):
        return {}
    return {
        "image_size": (form.height, form.width),
        "channels": form.channels,
        "crop_ratio": form.crop_ratio,
        "other_sizes": "resize" if form.resize else "reject",
        "value_range": form.value_range,
        "mean": list(form.mean),
        "std": list(form.std),
    }


def _check_same(ledger: Ledger, tree: Mapping[str, Any]) -> None:
    old = to_tree(read_recorded(ledger.root / "config.yaml", _Recorded, "--out"))
    changed = [d for d in differences(old, tree) if not d.startswith(EXECUTION_FIELDS)]
    if changed:
        lines = "\n  ".join(changed)
        raise LedgerError(
            f"{ledger.root.path} holds scores of another network, pool or configuration:\n  {lines}\n"
            "Give the same ones to go on with it, or another --out"
        )


def _check_unchanged(config: Ranking, info: PoolInfo) -> None:
    """LedgerError where the pool has other files than were scored."""
    try:
        check_unchanged(config.pool, info)
    except LedgerError as error:
        raise LedgerError(str(error).replace("another --run.name", "another --out")) from error


def _open(
    config: Ranking, ledger: Ledger, tree: Mapping[str, Any], tell: inventory.Tell, tokens: TokenForm | None
) -> tuple[PoolInfo, Form, Source]:
    """Check the pool, then make or reopen the directory.

    Args:
        tokens: the form of a network that reads tokens, whose tokenizer is kept beside it.
    """
    if ledger.exists:
        ledger.lock()
        _check_same(ledger, tree)  # another command may have begun it since
        info = PoolInfo.from_json(ledger.read_pool())
        _check_unchanged(config, info)
    else:
        check_outside(config.pool, ledger.root, "--out")
        found = survey(config.pool, labeled=False)
        info, taken = found.info, inventory.checked(inventory.take(found, form=tokens), config.pool, tell)
        ledger.lock()
        if ledger.exists:
            raise LedgerError(
                f"{ledger.root.path}: another command began to score here meanwhile; run the same command again, or "
                "another --out"
            )
        tell(lines(taken.inventory.to_json(), ledger.root.uri))
        materialize(found, ledger.root)
        inventory.write(taken, ledger.root)
        ledger.create(tree, info.to_json())
    form = tokens or form_of(config.pool, info)
    prepared = open_prepared(config.prepared, _beside(ledger.root), form, info.rows, tell, name=pool_name(config.pool))
    source = source_of(config.pool, ledger.root, "path", labeled=False)
    if info.version is not None:  # of a table: what was written meanwhile is read, by the numbers of the rows before
        _check_unchanged(config, info)
    return info, form, replace(source, prepared=prepared)


def _beside(root: Place) -> Place:
    """Where passes of several directories share what is decoded; not in the root of a disk, nor outside of a bucket."""
    return root.parent if root.parent.path.strip("/") else root


def _score(
    config: Ranking,
    ledger: Ledger,
    network: Place,
    saved: networks.Selector,
    task: str,
    info: PoolInfo,
    form: Form,
    source: Source,
    by: str,
) -> None:
    if form.network_shape != saved.spec.input_shape:
        raise ConfigError(f"pool: its samples are {form.network_shape}, but the network takes {saved.spec.input_shape}")
    macs = networks.macs(saved.network, saved.spec.input_shape)
    planned = plan_scoring(config.scoring, observe(), info.rows * macs, info.rows)
    plan = replace(planned, check=ledger.check_lease)
    what = ScorePass(
        root=ledger.root,
        record=ledger.write_file,
        source=source,
        rows=info.rows,
        exclude=pa.array([], arrow_type(info.id_type)),
        network=network,
        macs=macs,
        classes=saved.spec.classes,
        members=len(saved.members) if isinstance(saved, networks.Committee) else 1,
        out=ledger.place(SCORE, "scores"),
        checkpoint=ledger.place(SCORE, "scores-checkpoint"),
    )
    job = ScoringJob(
        strategy=by,
        task=task,
        form=form,
        batch_size=SMALL_BATCH,
        features=config.scoring.features,
        pixel_share=config.selection.pixel_share,
        threads=plan.cpus,
        gpu=plan.gpus > 0,
        gpu_share=plan.gpu_share,
        trusted=(saved.spec.architecture,),
    )
    started = time.perf_counter()
    with fitting("scoring", config.scoring, "--out"):
        scored = score(what, config.scoring, job, plan, lambda: ledger.clear(SCORE, "scores", "scores-checkpoint"))
    rejected = scored.rejected.sort_by("id").cast(REJECTED)
    check_rejected(
        rejected,
        info.rows,
        config.pool.max_rejected,
        "Mend the pool and give another --out, or raise pool.max_rejected",
    )
    metrics = {**scored.metrics, "seconds": max(time.perf_counter() - started, scored.metrics["seconds"])}
    ledger.commit(SCORE, {"rejected.parquet": rejected} if rejected.num_rows else {}, metrics, scored.written)


def _with_strategy(config: Ranking, task: str, saved: networks.Selector) -> Ranking:
    """Where no strategy was given, and the default makes no sense for the task, the first one that does."""
    chosen, known = config.selection, TASKS[task].strategies
    if "strategy" in chosen.model_fields_set or chosen.strategy in known:
        return config
    committee = isinstance(saved, networks.Committee)
    able = [n for n, s in known.items() if s.score is not None and s.select is None and (committee or not s.members)]
    first = next(iter(able), next(iter(known)))
    return config.model_copy(update={"selection": chosen.model_copy(update={"strategy": first})})


def _predict(
    ledger: Ledger,
    source: Source,
    files: Mapping[str, bytes],
    form: Form,
    told: Preprocessing,
    saved: networks.Selector,
    size: float,
) -> None:
    ledger.clear(PREDICT, PREDICTIONS)
    out = ledger.place(PREDICT, PREDICTIONS)
    out.fs.create_dir(out.path, recursive=True)
    count = export(
        source,
        {name: content for name, content in files.items() if name != PREPROCESSING_FILE},
        form,
        told.classes,
        out,
        task=told.task,
        size=size,
        units=told.units,
        trusted=(saved.spec.architecture,),
    )
    ledger.commit(PREDICT, {}, {"predictions": count}, out.files())


def _rank(ledger: Ledger, info: PoolInfo, top: int) -> None:
    commit = ledger.committed(SCORE)
    assert commit is not None
    k = min(top, commit.metrics["samples"])
    schema = selected_schema(info.id_type)
    chosen = top_k(ledger.files(SCORE, "scores")[0], ledger.root, k).cast(schema) if k else schema.empty_table()
    ledger.commit(RANK, {"ranked.parquet": chosen}, {"ranked": k})
