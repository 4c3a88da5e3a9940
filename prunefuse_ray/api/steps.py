"""The steps of the method on a network, a training loop and data of one's own: prune, score, select, fuse, export."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, default_collate

from prunefuse_ray import networks
from prunefuse_ray.acquisition import STRATEGIES, Chance, Strategy
from prunefuse_ray.acquisition.ranking import best, ranked
from prunefuse_ray.errors import ConfigError, ScoreError, few
from prunefuse_ray.inference.onnx import checked_onnx
from prunefuse_ray.inference.predictor import Predictor
from prunefuse_ray.networks import NetworkSpec, Proxy, PruningSpec
from prunefuse_ray.networks.committee import Members
from prunefuse_ray.networks.specs import VALUES, first_line
from prunefuse_ray.selection.rows import Rows, matrices, vector_column
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS
from prunefuse_ray.tasks.classification import CLASSIFICATION
from prunefuse_ray.tasks.segmentation import SEGMENTATION

if TYPE_CHECKING:
    import ray.data

logger = logging.getLogger(__name__)

BATCH = 64
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def prune(
    network: nn.Module,
    example: Tensor,
    *,
    ratio: float = 0.5,
    importance: str = "magnitude",
    steps: int = 1,
    round_to: int | None = None,
    seed: int = 0,
) -> Proxy:
    """A proxy of a network of your own: a copy without the least important channels of every layer.

    Keep `network` as it is: `fuse` returns the proxy's weights to it. Train `proxy.network` as any other.

    Args:
        network: gives logits (N, C), or (N, C, H, W) for every pixel, of inputs (N, ...). At initialization (the
            method), or trained. A network wrapped by `torch.compile` or for several GPUs is unwrapped: wrap the proxy
            again.
        example: one input or more, (N, ...), with the batch axis: shows the shape that structures are followed by.
        ratio: share of the channels of every layer that goes; about (1 - ratio)² of the work remains.
        importance: what a channel is judged by; `prunefuse run --help` lists them.
        steps: number of pruning steps on the way.
        round_to: keep a multiple of so many channels.
        seed: of the importance `random`.

    Raises:
        NetworkError: the structure cannot be followed, naming the module.

    Kousar, Bhatti, Moon 2026 (arXiv 2603.26138), section 3.
    """
    _check_example(example)
    network = _as_written(_module(network, "network"))
    with _named("example", example[:1]):
        logits = _logits(_in_evaluation(network), example[:1])
    spec = NetworkSpec(
        architecture=type(network).__name__,
        classes=int(logits.shape[1]),
        input_shape=tuple(example.shape[1:]),
        real=example.ndim != 4 and example.is_floating_point(),
        values=min([VALUES, *(m.num_embeddings for m in network.modules() if isinstance(m, nn.Embedding))]),
    )
    pruning = PruningSpec(ratio=ratio, importance=importance, steps=steps, round_to=round_to, seed=seed)
    with torch.device("cpu"):  # whatever the default device of the caller is
        proxy = networks.prune(network, spec, pruning)
    proxy.origin = _digest(network)
    return proxy


def fuse(network: nn.Module, proxy: Proxy, rule: str = "keep", **parameters: float) -> nn.Module:
    """A network of the dense one's shape that holds the trained proxy's weights, ready to be fine-tuned.

    Args:
        network: the one that `prune` was given; it is not changed.
        proxy: what `prune` gave, trained.
        rule: what becomes of the weights that the proxy did not have; `prunefuse list fusion-rules` shows them.
        parameters: those of the rule (`epsilon` of `scaled`).

    Raises:
        NetworkError: a proxy of another network, or a rule that cannot be applied to it.
    """
    if not isinstance(proxy, Proxy):
        raise ConfigError(
            f"proxy: a {type(proxy).__name__}; give the Proxy that `prune` gave, whose `network` you have trained"
        )
    network = _as_written(_module(network, "network"))
    with torch.device("cpu"):
        fused = networks.fuse(network, replace(proxy, network=_as_written(proxy.network)), rule, **parameters)
    if proxy.origin and proxy.origin != _digest(network):
        raise networks.NetworkError(
            "network: has other weights than the one that the proxy was pruned from; give that one, as it was then "
            "(a cell that makes the network anew, or training it, changes them)"
        )
    return fused


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scored samples: in memory (`table`), or as a stream (`dataset`) that is scored when it is read."""

    strategy: str
    classes: int
    table: pa.Table | None = None
    """(id, score[, feature][, gradient]) in the order of the data."""
    dataset: ray.data.Dataset | None = field(default=None, repr=False)
    """The same columns, of a `ray.data.Dataset`."""
    numbered: bool = False
    """Whether the ids are only the places of the samples in their data, so that those of other data say nothing."""

    def to_table(self) -> pa.Table:
        """All rows in memory."""
        if self.table is not None:
            return self.table
        assert self.dataset is not None
        with closing(_tables(self.dataset)) as found:
            batches = [b for b in found if b.num_rows]
        return pa.concat_tables([_plain(b) for b in batches]) if batches else pa.table({"id": [], "score": []})

    def __bool__(self) -> bool:
        return True  # else `if scores` would count, and so score, a whole stream

    def __len__(self) -> int:
        return self.table.num_rows if self.table is not None else self.dataset.count()  # type: ignore[union-attr]


def score(
    network: nn.Module | Proxy,
    data: Any,
    strategy: str = "margin",
    *,
    ids: Sequence[Any] | npt.NDArray[Any] | Tensor | None = None,
    prepare: Callable[[Any], Tensor] | None = None,
    id_column: str = "id",
    input_column: str = "image",
    batch_size: int = BATCH,
    device: str | torch.device | None = None,
    actors: int | tuple[int, int] | None = None,
    task: str = CLASSIFICATION.name,
) -> Scores:
    """Score each sample by a strategy (higher = more wanted), with the features that the strategy reads.

    Args:
        network: a proxy, or any module that gives logits (N, C), or what else the task reads. It is copied, and put
            into evaluation mode.
        data: a torch Dataset or DataLoader (of inputs, or of tuples that begin with them), a tensor (N, ...), any
            iterable of batches, or a `ray.data.Dataset`, which is scored by actors when its scores are read.
        strategy: a name; `prunefuse list strategies` shows them.
        ids: of the samples, in their order; default: their places in `data`, which of a Subset are not those in its
            dataset: give its `indices`. Of a Ray dataset `id_column` names them.
        prepare: makes inputs of a batch (of a Ray dataset: a dict of arrays; of a Dataset whose samples make no batch,
            such as Pillow images: a list of them). Default: inputs as they are, as float32 unless they are integers.
        id_column, input_column: of a Ray dataset.
        batch_size: of datasets and Ray datasets; the last one of a Ray dataset is filled up, so that a score does not
            depend on the batch that a sample is in.
        device: default: a GPU where there is one; of a Ray dataset, a GPU of the cluster for each actor where it has
            any.
        actors: number of scoring actors of a Ray dataset, or the smallest and the largest. Default: one, and what the
            cluster has room for.
        task: what the network's outputs mean; `prunefuse list tasks` shows all.

    Raises:
        ConfigError: no such strategy for the task, one that needs a committee, shuffled data, data that drop samples
            without ids, or a missing column.
        NetworkError: features are wanted, and the network does not end in an `nn.Linear`.
    """
    found = _strategy(strategy, task)
    if found.score is None or found.members or found.wanted:
        why = "asks no network" if found.score is None else "needs a committee, or wanted classes: use a run"
        raise ConfigError(f"strategy: '{strategy}' {why}; name another one")
    if isinstance(network, Predictor) and not isinstance(network.network, Members):
        network = network.network  # the units of the labels are added to what a network ends in
    module = network.network if isinstance(network, Proxy) else _module(network, "network")
    if _is_ray(data):
        if ids is not None:
            raise ConfigError("ids: a Ray dataset has them in a column of its own; name it by id_column")
        columns = (id_column, input_column)
        return _score_stream(_as_written(module), data, strategy, task, prepare, columns, batch_size, device, actors)
    scorer = _Scorer(module, strategy, task, device)
    parts = [scorer(_inputs(batch, prepare)) for batch in _batches(data, batch_size, prepared=prepare is not None)]
    count = sum(part.num_rows for part in parts)
    if not count:
        raise ConfigError("data: holds no sample")
    given = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else ids
    try:
        names = pa.array(range(count) if given is None else list(given))
    except (pa.ArrowException, OverflowError) as error:
        raise ConfigError(f"ids: are not all of one type, numbers or strings ({error})") from error
    if names.null_count or pa.types.is_nested(names.type) or isinstance(names.type, pa.BaseExtensionType):
        kind = "None" if names.null_count else f"values of type {names.type}"
        raise ConfigError(f"ids: hold {kind}; give a number or a string for each sample")
    if ids is None and (said := _length(data)) not in (None, count):
        raise ConfigError(
            f"data: hold {said} samples, but {count} came out (drop_last, or a collate_fn or `prepare` that leaves "
            "some out, do that), so nobody would know which sample has which score; name those that come out by `ids`"
        )
    if len(names) != count:
        raise ConfigError(f"ids: {len(names)}, but the data hold {count} samples; give one for each, in their order")
    if len(names.unique()) != count:
        again = [i for i, n in Counter(names.to_pylist()).items() if n > 1]
        raise ConfigError(f"ids: several samples have the id {few(again, 5)}; an id must name one sample")
    table = pa.concat_tables(parts).add_column(0, "id", names)
    return Scores(strategy=strategy, classes=scorer.clusters, table=table, numbered=ids is None)


def select(
    scores: Scores,
    k: int,
    *,
    labeled: Scores | None = None,
    initial: bool = False,
    seed: int = 0,
    round: int = 0,
) -> pa.Table:
    """The k most wanted samples: (id, score, rank) in the order of selection, ties by id.

    A strategy that selects a set sees all candidates at once; of a large pool it works in two rounds on Ray, as a run
    does.

    Args:
        labeled: scores of the samples that have labels, by the same network and strategy: for strategies that begin
            with them (k_centers, the coverage strategies, cal).
        initial: there are no labels yet: the strategy selects the first ones, by features alone (typiclust, k_centers,
            prob_cover, max_herding, facility_location).
        seed, round: what random draws depend on.

    Raises:
        ScoreError: fewer than k samples, scores or features that are not finite.
        ConfigError: the strategy begins with labeled samples, and none were given, or those of another strategy;
            `initial` of one that asks a trained network; ids that name several samples, or labeled ones (where both
            scores have ids that the caller gave).
    """
    if not isinstance(scores, Scores):
        raise ConfigError(f"scores: a {type(scores).__name__}; give what `score` gave")
    strategy = STRATEGIES[scores.strategy]
    _check_labeled(strategy, labeled, initial)
    if labeled is not None and labeled.table is None:
        labeled = replace(labeled, table=labeled.to_table(), dataset=None)  # a stream is scored once
    found = _selected(scores, strategy, k, labeled, seed, round)
    if labeled is not None and not scores.numbered and not labeled.numbered:
        candidates = found["id"] if scores.table is None else scores.table["id"]
        if known := sorted(set(candidates.to_pylist()) & set(labeled.to_table()["id"].to_pylist()), key=str):
            raise ConfigError(
                f"scores: hold samples that have labels, {few(known, 5)}; score those without labels only"
            )
    counts = pc.value_counts(found["id"])
    again = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    if again:
        raise ConfigError(f"scores: several samples have the id {few(again, 5)}; an id must name one sample")
    return found


def _check_labeled(strategy: Strategy, labeled: Scores | None, initial: bool) -> None:
    """ConfigError where a strategy lacks what it begins with, or has it of another one."""
    if initial and labeled is not None:
        raise ConfigError(
            "initial: selects the first samples to label, and `labeled` holds some; leave one of them out"
        )
    if initial and not strategy.needs_no_training:
        able = [name for name, other in STRATEGIES.loadable().items() if other.select and other.needs_no_training]
        raise ConfigError(f"initial: '{strategy.name}' asks a trained network; score by one of {', '.join(able)}")
    if initial or not strategy.labeled:
        return
    if labeled is None:
        first = ", or initial=True where there are none yet" if strategy.needs_no_training else ""
        raise ConfigError(
            f"labeled: strategy '{strategy.name}' begins with the labeled samples; give what `score` makes of "
            f"them{first}"
        )
    if labeled.strategy != strategy.name:
        raise ConfigError(
            f"labeled: scored by '{labeled.strategy}', but the scores are of '{strategy.name}', which begins with the "
            "labeled samples; score both by it"
        )


def _selected(scores: Scores, strategy: Strategy, k: int, labeled: Scores | None, seed: int, round: int) -> pa.Table:
    if not isinstance(k, Integral) or k < 1:
        raise ConfigError(f"k: {k}; give a whole number, one or more")
    if strategy.select is None and scores.dataset is not None:
        return ranked(_best_of(scores.dataset, k))
    table = scores.to_table()
    _check(table, k)
    if strategy.select is None:
        return ranked(best(table.select(["id", "score"]), k))
    columns = ("gradient", "feature") if strategy.gradients else ("feature",)
    if labeled is not None and strategy.labeled:
        for name in columns:
            mine, theirs = (t.schema.field(name).type.list_size for t in (table, labeled.to_table()))
            if mine != theirs:
                raise ConfigError(
                    f"labeled: {theirs} numbers in a {name}, and the scores have {mine}; score both by the same network"
                )
    chance = Chance(seed=int(seed), round=int(round), classes=scores.classes)
    return _select_set(strategy, table, None if labeled is None else labeled.to_table(), columns, k, chance)


def export(network: nn.Module, example: Tensor, path: str | os.PathLike[str], *, classes: Sequence[str] = ()) -> None:
    """Write a network as ONNX, `input` (N, ...) to `logits` (N, C), once ONNX Runtime has computed the same logits.

    Args:
        example: inputs (N, ...), whose first axis stays free.
        classes: names of the classes, for the file's metadata.

    Raises:
        PlanError: the extra `onnx` is not installed, the network cannot be exported, or the logits differ.
    """
    module = _in_evaluation(_as_written(_module(network, "network"))).cpu()
    _check_example(example)
    x = example.cpu()
    names = [str(name) for name in classes]
    with _named("example", x[:1]), torch.inference_mode():
        outputs = module(x[:1].clone())
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise networks.NetworkError(f"network: gives {shape} for 1 input; logits (N, C) are needed: wrap it")
    if names and len(names) != outputs.shape[1]:
        raise ConfigError(
            f"classes: {len(names)} names, but the network gives {outputs.shape[1]} logits; give one name for each"
        )
    content = checked_onnx(module, x, {"classes": names} if names else {})
    Place.at(os.fspath(path)).write_bytes(content)


# --- scoring ----------------------------------------------------------------------------------------------------------


class _Scorer:
    """Inputs (N, ...) in, (score[, feature][, gradient]) out."""

    def __init__(self, network: nn.Module, strategy: str, task: str, device: str | torch.device | None) -> None:
        self.strategy, self.task = _strategy(strategy, task), TASKS[task]
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = _in_evaluation(network).to(self.device)
        self.clusters = 0
        """Of the last batch's logits: the number of classes, or `Task.clusters`."""
        self.form: nn.Module | None = None if self.strategy.select is not None else self.network
        self.told = False

    @torch.inference_mode()
    def __call__(self, inputs: Tensor) -> pa.Table:
        x = inputs.to(self.device, copy=True)  # a network may work in place, and the data are the caller's
        with _named("data", x):
            if self.form is None:
                self.form = networks.with_features(self.network, x[:1])
            outputs = self.form(x)
        # A tuple of the network's own is none of logits and features, whatever it holds.
        logits, features = (outputs, None) if self.form is self.network else outputs
        _check_logits(logits, x, self.task.output_axes)
        one_class = self.task is CLASSIFICATION or self.task is SEGMENTATION
        if one_class and networks.are_probabilities(logits):
            raise networks.NetworkError("network: gives probabilities; logits are needed: leave its softmax out")
        if one_class and logits.shape[1] < 2:
            raise networks.NetworkError(
                f"network: gives one logit; {self.task.name} needs one for each class, so two for yes and no: "
                "torch.cat([torch.zeros_like(z), z], 1) makes them of one"
            )
        # Of an untrained network all logits may lie there, too: nothing is refused.
        if self.task.several and not self.told and len(logits) >= 4 and bool(((logits >= 0) & (logits <= 1)).all()):
            self.told = True
            logger.warning(
                "network: all outputs lie between 0 and 1; if it ends in a sigmoid, leave that out: logits are needed"
            )
        self.clusters = self.task.clusters(logits.shape[1])
        p_NC = self.task.probabilities(logits.float().cpu().numpy())
        assert self.strategy.score is not None
        columns: dict[str, Any] = {"score": pa.array(self.strategy.score(p_NC), pa.float32(), from_pandas=False)}
        if features is not None:
            columns["feature"] = vector_column(features.float().cpu().numpy())
        if self.strategy.gradients:
            columns["gradient"] = vector_column(self.task.gradient_factor(p_NC))
        return pa.table(columns)


class _StreamScorer:
    """An actor: a batch of a Ray dataset in, (id, score[, feature][, gradient]) out."""

    def __init__(
        self, network: nn.Module, strategy: str, task: str, prepare: Any, columns: tuple[str, str], size: int,
        device: Any,
    ):  # fmt: skip
        self.scorer, self.prepare = _Scorer(network, strategy, task, device), prepare
        (self.id, self.input), self.size = columns, size

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> pa.Table:
        ids = pa.array(batch[self.id])
        # Of whole numbers with a gap among them Ray makes floats, and of the gap NaN.
        if ids.null_count or (pa.types.is_floating(ids.type) and not pc.all(pc.is_finite(ids)).as_py()):
            raise ConfigError(f"data: column '{self.id}' leaves samples without an id; fill it in, or drop these rows")
        x = _inputs(batch if self.prepare else batch[self.input], self.prepare)
        if len(x) != len(ids):
            raise ConfigError(f"prepare: gives {len(x)} inputs for a batch of {len(ids)} samples; give one for each")
        if len(x) < self.size:  # the same shape in every pass: a score must not depend on its batch
            x = torch.cat([x, x[:1].expand(self.size - len(x), *x.shape[1:])])
        return self.scorer(x).slice(0, len(ids)).add_column(0, "id", ids)


def _score_stream(
    network: nn.Module, data: Any, strategy: str, task: str, prepare: Any, columns: tuple[str, str],
    batch_size: int, device: Any, actors: int | tuple[int, int] | None,
) -> Scores:  # fmt: skip
    import ray
    from ray.data import ActorPoolStrategy

    from prunefuse_ray.distributed.resources import STREAM_CPUS

    wanted = columns[:1] if prepare else columns
    names = data.columns() or []
    if missing := [name for name in wanted if name not in names]:
        raise ConfigError(
            f"data: has no column '{missing[0]}' ({', '.join(names)}); name it by id_column or input_column"
        )
    module = _in_evaluation(network).cpu()  # a machine without a GPU could not unpickle it
    first = _StreamScorer(module, strategy, task, prepare, columns, 1, "cpu")
    first(data.take_batch(1, batch_format="numpy"))  # what is wrong is said here, and not by an actor
    total = ray.cluster_resources()
    # The actors' machines decide, not the driver's, which may have another number of GPUs. An actor sees its own alone.
    gpu = torch.device(device).type == "cuda" if device else total.get("GPU", 0) >= 1
    where = "cuda" if gpu else device or "cpu"
    free = total.get("GPU", 0) if gpu else total.get("CPU", 0) - STREAM_CPUS
    span = (int(actors), int(actors)) if isinstance(actors, int | Integral) else actors
    least, most = span or (1, max(1, int(free)))
    dataset = data.map_batches(
        _StreamScorer,
        fn_constructor_args=(module, strategy, task, prepare, columns, batch_size, where),
        compute=ActorPoolStrategy(min_size=least, max_size=most),
        batch_size=batch_size,
        batch_format="numpy",
        num_gpus=1 if gpu else None,
    )
    return Scores(strategy=strategy, classes=first.scorer.clusters, dataset=dataset)


def _is_ray(data: Any) -> bool:
    """Whether this is a dataset of Ray's, without importing Ray. ConfigError for what iterates over one."""
    modules = [t.__module__ for t in type(data).__mro__]
    if "ray.data.dataset" not in modules and any(module.startswith("ray.data") for module in modules):
        raise ConfigError(
            f"data: a {type(data).__name__} of Ray's, whose order may differ each time; give the ray.data.Dataset "
            "itself"
        )
    return "ray.data.dataset" in modules


def _batches(data: Any, size: int, *, prepared: bool) -> Iterator[Any]:
    if hasattr(data, "iloc"):  # of pandas, whose [] looks for labels
        data = data.to_numpy()
    if isinstance(data, Mapping):
        raise ConfigError(f"data: a {type(data).__name__}; give the samples alone: a Dataset, a DataLoader, a tensor")
    if isinstance(data, Tensor):
        yield from data.split(size)
    elif isinstance(data, DataLoader):
        if not _in_order(data):
            raise ConfigError(
                "data: this DataLoader shuffles, or draws by a sampler of its own, or has several workers for an "
                "IterableDataset or with in_order=False, so nobody would know which sample has which score; give one "
                "without (of some samples: torch.utils.data.Subset, with its indices as ids)"
            )
        with torch.random.fork_rng(devices=[]):  # an iterator draws a seed for its workers
            batches = iter(data)
        yield from batches
    elif isinstance(data, IterableDataset) or hasattr(data, "__getitem__"):
        # Whoever goes through a loader draws from its generator, and the user's is the user's.
        collate = _Collate(prepared=prepared)
        with torch.device("cpu"):  # where the generator is, wherever the caller's tensors are made
            batches = iter(DataLoader(data, batch_size=size, collate_fn=collate, generator=torch.Generator()))
        yield from batches
    elif isinstance(data, Iterable):
        yield from data
    else:
        raise ConfigError(
            f"data: a {type(data).__name__}; give a Dataset, a DataLoader, a tensor or a ray.data.Dataset"
        )


def _in_order(loader: DataLoader[Any]) -> bool:
    """Whether samples come in the order of the dataset."""
    if loader.num_workers > 1 and not loader.in_order:
        return False
    if isinstance(loader.dataset, IterableDataset):
        return loader.num_workers < 2
    if loader.batch_sampler is None:
        return type(loader.sampler) is SequentialSampler
    # A class of the caller's may give batches in any order, whatever it is made of.
    return type(loader.batch_sampler) is BatchSampler and type(loader.batch_sampler.sampler) is SequentialSampler


def _length(data: Any) -> int | None:
    """How many samples the data say that they hold. The length of any other iterable is that of its batches, as is that
    of a dataset which gives whole ones (`batch_size=None`)."""
    if isinstance(data, DataLoader) and data.batch_sampler is None:
        return None
    held: Any = data.dataset if isinstance(data, DataLoader) else data
    try:
        return len(held) if isinstance(held, IterableDataset) or hasattr(held, "__getitem__") else None
    except TypeError:
        return None


class _Collate:
    """Inputs alone: labels may be missing, or of any kind. What makes no batch is a list, for `prepare`; so is all that
    comes after it, since a single sample always makes a batch."""

    def __init__(self, *, prepared: bool) -> None:
        self.prepared, self.listed = prepared, False

    def __call__(self, samples: list[Any]) -> Any:
        inputs = [s[0] if isinstance(s, tuple | list) else s for s in samples]
        if self.listed:
            return inputs
        try:
            return default_collate(inputs)
        except (TypeError, RuntimeError) as error:  # of another type; of unequal shapes
            if self.prepared:
                self.listed = True
                return inputs
            raise ConfigError(
                f"data: samples of {type(inputs[0]).__name__} make no batch ({error}); give `prepare`, which makes a "
                "tensor of a list of them"
            ) from error


def _inputs(batch: Any, prepare: Callable[[Any], Tensor] | None) -> Tensor:
    if prepare is not None:
        found = prepare(batch)
        if not isinstance(found, Tensor):
            raise ConfigError(f"prepare: gives a {type(found).__name__}; give the inputs as a tensor (N, ...)")
        return found
    first = batch[0] if isinstance(batch, tuple | list) else batch
    if isinstance(first, np.ndarray):
        try:  # Ray gives rows of unequal shape, and some tensors, as objects
            first = torch.from_numpy(np.stack(list(first)) if first.dtype == object else np.array(first))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"data: these samples make no batch ({first_line(error)}); give `prepare`, which makes a tensor of one"
            ) from error
    if not isinstance(first, Tensor):
        raise ConfigError(f"data: batches of {type(first).__name__}; give `prepare`, which makes a tensor of one")
    return first.float() if first.is_floating_point() else first


def _digest(network: nn.Module) -> str:
    """Of the parameters alone: statistics change whenever the network is run in training mode."""
    digest = hashlib.sha256()
    for name, tensor in network.named_parameters():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _module(network: Any, name: str) -> nn.Module:
    """ConfigError where it is none."""
    if isinstance(network, Proxy):
        raise ConfigError(f"{name}: a Proxy; give its `network`")
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{name}: a {type(network).__name__}; give an nn.Module")
    return network


def _as_written(network: nn.Module) -> nn.Module:
    """The network that `torch.compile` or torch's wrappers for several GPUs are around: it would be compiled again at
    every step of ours, and its weights have other names in there."""
    while isinstance(network, WRAPPERS) or getattr(network, "_orig_mod", None) is not None:
        network = network.module if isinstance(network, WRAPPERS) else network._orig_mod  # type: ignore[assignment]
    return network


def _check_example(example: Any) -> None:
    if not isinstance(example, Tensor) or example.ndim < 2:
        raise ConfigError("example: give one input or more as a tensor, with the batch axis first")


@contextmanager
def _named(name: str, x: Tensor) -> Iterator[None]:
    """What fails inside is said with the shape that the network was given."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        shape = f"{tuple(x.shape)}, {str(x.dtype).removeprefix('torch.')}"
        raise ConfigError(
            f"{name}: the network cannot run on inputs of {shape} ({first_line(error)}); the first axis is the batch, "
            "the others as the network takes them"
        ) from error


def _in_evaluation(network: nn.Module) -> nn.Module:
    found = networks.copied(network).eval()
    try:
        return found.requires_grad_(False)
    except ValueError as error:  # of layers that are to be made by their first input
        raise networks.NetworkError(f"network: {first_line(error)}; run lazy layers on one input first") from error


def _logits(network: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        device = next(network.parameters()).device
        logits = network(x.to(device, copy=True))
    _check_logits(logits, x, 4 if isinstance(logits, Tensor) and logits.ndim == 4 else 2)
    return logits


def _check_logits(logits: Any, x: Tensor, axes: int = 2) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != axes or len(logits) != len(x):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        wanted = "(N, C)" if axes == 2 else "(N, C, H, W)"
        raise networks.NetworkError(f"network: gives {shape} for {len(x)} inputs; logits {wanted} are needed: wrap it")


def _strategy(name: str, task: str) -> Strategy:
    """ConfigError where the task has no such strategy."""
    if name == "auto":
        raise ConfigError("strategy: 'auto' decides in a run, round by round; name one, such as margin")
    known = TASKS[task].strategies
    if name not in known and TASKS[task] is not CLASSIFICATION:
        raise ConfigError(f"strategy: '{name}' makes no sense for task '{task}'; use one of {', '.join(known)}")
    return known[name]


# --- selection --------------------------------------------------------------------------------------------------------


def _plain(table: pa.Table) -> pa.Table:
    """Ray's own tensor types as lists of fixed size."""
    for name in ("feature", "gradient"):
        if name in table.column_names and isinstance(table.schema.field(name).type, pa.ExtensionType):
            column = table[name].combine_chunks()
            values = np.stack([np.asarray(row) for row in column.to_numpy(zero_copy_only=False)])
            table = table.set_column(table.column_names.index(name), name, vector_column(values.astype(np.float32)))
    return table


def _tables(dataset: Any) -> Generator[pa.Table]:
    """What fails in an actor is raised as it was there. Close it, so that the context is as before."""
    from prunefuse_ray.distributed.remote import plain_errors

    context = dataset.context  # of the caller's dataset, too
    before, context.raise_original_map_exception = context.raise_original_map_exception, True
    logger = logging.getLogger("ray.data.exceptions")  # it would call a mistake in `prepare` one of Ray's
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with plain_errors():
            yield from dataset.iter_batches(batch_format="pyarrow", batch_size=None)
    finally:
        context.raise_original_map_exception = before
        logger.setLevel(level)


def _best_of(dataset: ray.data.Dataset, k: int) -> pa.Table:
    """The k rows of highest score of a stream; a batch and k rows are in memory at a time."""
    top: pa.Table | None = None
    with closing(_tables(dataset)) as batches:
        for batch in batches:
            rows = batch.select(["id", "score"])
            _check_finite(rows)
            top = best(rows if top is None else pa.concat_tables([top, rows]), k)
    if top is None or top.num_rows < k:
        raise ScoreError(f"k: {k} samples are wanted, but there are {0 if top is None else top.num_rows}")
    return top


def _check(table: pa.Table, k: int) -> None:
    _check_finite(table)
    if table.num_rows < k:
        raise ScoreError(f"k: {k} samples are wanted, but there are {table.num_rows}")


def _check_finite(table: pa.Table) -> None:
    broken = table.filter(pc.invert(pc.is_finite(table["score"])))["id"].to_pylist()
    if broken:
        raise ScoreError(f"scores are not finite, of the samples {few(broken, 5)}: the network has diverged")


def _select_set(
    strategy: Strategy, table: pa.Table, labeled: pa.Table | None, columns: tuple[str, ...], k: int, chance: Chance
) -> pa.Table:
    from prunefuse_ray.selection.set_selection import in_two_rounds, rounds_of
    from prunefuse_ray.selection.shards import Shards

    rows = _rows(table, columns).sorted()
    known = None if labeled is None or not strategy.labeled else _rows(labeled, columns)
    if (cut := rounds_of(strategy, rows, known, k)) is None:
        assert strategy.select is not None
        with Shards(rows, 0, known) as shards:
            return strategy.select(shards, k, chance)
    from prunefuse_ray.distributed.resources import settings_kept, start_ray

    with settings_kept():
        start_ray()
        return in_two_rounds(strategy, rows, known, k, chance, cut)


def _rows(table: pa.Table, columns: tuple[str, ...]) -> Rows:
    table = table.combine_chunks()
    scores = table["score"].to_numpy().astype(np.float32)
    vectors = [np.array(m) for m in matrices(table, columns)]
    ids = table["id"].combine_chunks()
    return Rows(ids=ids.chunk(0) if isinstance(ids, pa.ChunkedArray) else ids, scores=scores, vectors=vectors)
