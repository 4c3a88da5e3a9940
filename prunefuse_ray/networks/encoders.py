"""Encoders of texts by the library transformers, as classifiers: built from their configuration, and pruned by whole
attention heads and by units of the feed-forward layers.

The hidden width and the embeddings stay whole. So what the encoder has learned keeps its coordinates, every layer reads
and writes the same channels as before, and the added heads and units of a fused network can be silenced exactly, also
where layers are normalized after every block. Code that comes with a folder is never run.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from prunefuse_ray.networks.importance import IMPORTANCES
from prunefuse_ray.networks.indices import KeptIndices, whole
from prunefuse_ray.networks.specs import NetworkError, NetworkSpec, PruningSpec, first_line, unsuited

LIBRARY = "transformers"
MULTIPLE = 8
"""In training, batches are cut to their longest text, brought to a multiple of so many tokens."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Where the layers of a kind of encoder are, and what in one of them belongs to its heads and its units."""

    layers: str
    """Below the base model."""
    heads: tuple[str, ...]
    """Layers that make the queries, keys and values."""
    parts: int = 1
    """How many of these one of them makes, one after the other."""
    from_heads: str
    """The layer that reads the heads."""
    units: str
    """The layer that makes the hidden units."""
    halves: int = 1
    """2 where it makes their gates after them."""
    from_units: str
    offset: bool = False
    """Whether positions are counted from the number of the padding token on, which takes as many from the longest."""


_BERT: dict[str, Any] = {
    "layers": "encoder.layer",
    "heads": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "from_heads": "attention.output.dense",
    "units": "intermediate.dense",
    "from_units": "output.dense",
}
KINDS: dict[str, Kind] = {
    "bert": Kind(**_BERT),
    "electra": Kind(**_BERT),
    **{name: Kind(**_BERT, offset=True) for name in ("roberta", "xlm-roberta", "camembert")},
    "distilbert": Kind(
        layers="transformer.layer",
        heads=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        from_heads="attention.out_lin",
        units="ffn.lin1",
        from_units="ffn.lin2",
    ),
    "modernbert": Kind(
        layers="layers",
        heads=("attn.Wqkv",),
        parts=3,
        from_heads="attn.Wo",
        units="mlp.Wi",
        halves=2,
        from_units="mlp.Wo",
    ),
}
"""By transformers' `model_type`."""
UNREAD = (
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "num_labels", "problem_type", "torch_dtype",
    "transformers_version",
)  # fmt: skip
"""Of a configuration, what says nothing of the encoder."""


def encoder_spec(folder: str, content: bytes, *, classes: int, length: int) -> NetworkSpec:
    """The network of a folder whose `config.json` has this content, for texts of so many tokens.

    Raises NetworkError for encoders that cannot be pruned, code that would have to be run, and more tokens than it has
    positions for.
    """
    field = f"network.architecture: {LIBRARY}:{folder}"
    try:
        tree = json.loads(content)
        kind = tree.get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise NetworkError(f"{field}: its config.json is no configuration of an encoder ({error})") from error
    if "auto_map" in tree:
        raise NetworkError(
            f"{field}: is built by code of its own (auto_map in its config.json), which is never run; use an encoder "
            f"that transformers builds itself, one of {', '.join(KINDS)}"
        )
    if kind not in KINDS:
        raise NetworkError(
            f"{field}: is of the kind {kind!r}, whose heads and feed-forward layers are not known here; use one of "
            f"{', '.join(KINDS)}"
        )
    if tree.get("is_decoder"):
        raise NetworkError(f"{field}: is a decoder (is_decoder in its config.json); use an encoder")
    config = json.dumps({k: v for k, v in tree.items() if k not in UNREAD}, sort_keys=True)
    spec = NetworkSpec(architecture=f"{LIBRARY}:{kind}", classes=classes, input_shape=(length,), config=config)
    found = _config(spec)
    if KINDS[kind].offset and found.pad_token_id is None:
        raise NetworkError(
            f"{field}: its config.json has no pad_token_id, from which a {kind} counts its positions; add that of its "
            "tokenizer"
        )
    most = found.max_position_embeddings - (found.pad_token_id + 1 if KINDS[kind].offset else 0)
    if length > most:
        raise NetworkError(f"pool.text_length: {length} tokens, but the encoder reads at most {most}; set it to that")
    return spec


def vocabulary(spec: NetworkSpec) -> int:
    """How many tokens the encoder has embeddings for."""
    return _config(spec).vocab_size


@functools.lru_cache(maxsize=16)
def _config(spec: NetworkSpec) -> Any:
    try:
        from transformers import CONFIG_MAPPING
    except ImportError as error:
        raise NetworkError(
            f"network.architecture: {spec.architecture} needs the transformers extra; pip install "
            "'prunefuse-ray[transformers]'"
        ) from error
    assert spec.config is not None
    try:
        return CONFIG_MAPPING[spec.architecture.partition(":")[2]].from_dict(
            {**json.loads(spec.config), "num_labels": spec.classes}
        )
    except Exception as error:  # its checks raise errors of several kinds
        raise NetworkError(
            f"network.architecture: {spec.architecture} cannot be built from this config.json: {first_line(error)}"
        ) from error


# --- the network ---


class Encoder(nn.Module):
    """What an encoder of transformers becomes here: a network of one input and one output. Weights have the library's
    names.

    (N, L) int64, the number of each token + 1, 0 behind the end of the text -> logits (N, classes).
    """

    config: Any
    base_model_prefix: str

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            # Only here: to the last bit, scores may not depend on what else is in their batch.
            longest = int((x > 0).any(0).sum())
            x = x[:, : -(-max(1, longest) // MULTIPLE) * MULTIPLE]
        mask = x > 0
        tokens = torch.where(mask, x - 1, self.config.pad_token_id or 0)
        library: Any = super()
        return library.forward(input_ids=tokens, attention_mask=mask.long()).logits


@functools.cache
def _class(kind: str) -> Any:
    from transformers import CONFIG_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    library: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[CONFIG_MAPPING[kind]]
    return type(library.__name__, (Encoder, library), {})


def construct(spec: NetworkSpec) -> nn.Module:
    """The network with weights drawn from torch's generator. Raises NetworkError."""
    if spec.config is None:
        raise NetworkError(
            f"network.architecture: {spec.architecture}: give it with its configuration, as a folder with a "
            f"config.json: {LIBRARY}:FOLDER"
        )
    config = _config(spec)
    config._attn_implementation = "sdpa"
    try:
        return _class(config.model_type)(config)
    except Exception as error:  # numbers that do not go together raise whatever meets them first
        raise NetworkError(
            f"network.architecture: {spec.architecture} cannot be built from this config.json: {first_line(error)}"
        ) from error


def fresh_tensors(network: nn.Module) -> set[str]:
    """Of an encoder the tensors that a file of its pre-training may lack: all behind the base model, and its pooler."""
    if not isinstance(network, Encoder):
        return set()
    base = f"{network.base_model_prefix}."
    return {name for name in network.state_dict() if not name.startswith(base) or ".pooler." in name}


def file_names(network: nn.Module, names: list[str]) -> dict[str, str]:
    """Names of tensors in a file of pre-training -> the network's, in which they may differ: without the base model's
    (of the base model alone), or of the first BERT's normalizations. Without those of what has no place in a
    classifier: a pooler that it does not read, and counters of positions."""
    if not isinstance(network, Encoder):
        return {name: name for name in names}
    present = network.state_dict().keys()
    base = f"{network.base_model_prefix}."
    found = {}
    for name in names:
        new = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        found[name] = new if new in present or f"{base}{new}" not in present else f"{base}{new}"
    unread = ("position_ids", "token_type_ids")
    return {
        name: new
        for name, new in found.items()
        if not (new.endswith(unread) or (".pooler." in f".{new}" and new not in present))
    }


# --- pruning ---


@dataclass(frozen=True, kw_only=True)
class Group:
    """Heads of an attention, or units of a feed-forward layer: each is `size` channels of the layers in `made_by`, that
    is rows, once for each of their `parts`, and columns of the layer `read_by`."""

    count: int
    size: int
    made_by: tuple[str, ...]
    parts: int
    read_by: str

    def rows(self, kept: Tensor, parts: int) -> Tensor:
        """The channels (int64, rising) of the heads or units that are kept (rising)."""
        inside = torch.arange(self.size)
        one = (kept[:, None] * self.size + inside).flatten()
        return torch.cat([one + part * self.count * self.size for part in range(parts)])


def groups(network: nn.Module) -> Iterator[Group]:
    """Every group of an encoder that has not been pruned, in the order of its layers."""
    assert isinstance(network, Encoder)
    kind, heads = KINDS[network.config.model_type], network.config.num_attention_heads
    layers = f"{network.base_model_prefix}.{kind.layers}"
    for number in range(len(cast(nn.ModuleList, network.get_submodule(layers)))):
        at = f"{layers}.{number}."
        width, hidden = (
            network.get_parameter(f"{at}{name}.weight").shape[1] for name in (kind.from_heads, kind.from_units)
        )
        yield Group(
            count=heads,
            size=width // heads,
            made_by=tuple(at + name for name in kind.heads),
            parts=kind.parts,
            read_by=at + kind.from_heads,
        )
        yield Group(count=hidden, size=1, made_by=(at + kind.units,), parts=kind.halves, read_by=at + kind.from_units)


def kept_indices(network: nn.Module, pruning: PruningSpec) -> KeptIndices:
    """What is left of an encoder's tensors: of every group the most important heads or units; ties go by position.

    Raises NetworkError where no attention can lose a head, or for an importance that heads do not have.
    """
    state = network.state_dict()
    kept = whole(state)
    generator = torch.Generator().manual_seed(pruning.seed)
    for group in groups(network):
        if group.count == 1:
            raise unsuited(group.read_by, "its attention has one head, which cannot be pruned; use another encoder")
        of_group = _most_important(_vectors(state, group), _of_units(pruning, group.size), generator)
        for name in group.made_by:
            rows = group.rows(of_group, group.parts)
            kept[f"{name}.weight"] = (rows, None)
            if f"{name}.bias" in state:
                kept[f"{name}.bias"] = (rows,)
        kept[f"{group.read_by}.weight"] = (None, group.rows(of_group, 1))
    return kept


def _vectors(state: dict[str, Tensor], group: Group) -> Tensor:
    """Everything that belongs to each head or unit, (count, ...)."""
    made = [state[f"{name}.weight"] for name in group.made_by]
    made += [state[f"{name}.bias"][:, None] for name in group.made_by if f"{name}.bias" in state]
    flat = [w.reshape(group.parts, group.count, -1).transpose(0, 1).flatten(1) for w in made]
    read = state[f"{group.read_by}.weight"].T.reshape(group.count, -1)
    return torch.cat([*flat, read], 1).float().cpu()


_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "magnitude": lambda x: x.norm(dim=1),
    "magnitude_l1": lambda x: x.abs().sum(1),
    "lamp": lambda x: x.norm(dim=1),  # within a layer its order is that of the norms
    "fpgm": lambda x: torch.cdist(x, x).sum(1),
}
"""Importances (count,) of heads or units from all their weights (count, ...)."""


def _of_units(pruning: PruningSpec, size: int) -> PruningSpec:
    """The pruning of heads or units of so many channels each: so many of these that their channels are a multiple of
    `round_to`, which counts channels."""
    if pruning.round_to is None:
        return pruning
    multiple = pruning.round_to // math.gcd(pruning.round_to, size)
    return replace(pruning, round_to=multiple if multiple > 1 else None)


def _most_important(vectors: Tensor, pruning: PruningSpec, generator: torch.Generator) -> Tensor:
    """The numbers (rising) of the heads or units that are left after the last step."""
    left = torch.arange(len(vectors))
    for step in range(1, pruning.steps + 1):
        if pruning.importance == "random":
            scores = torch.rand(len(left), generator=generator)
        elif pruning.importance in _SCORES:
            scores = _SCORES[pruning.importance](vectors[left])
        else:
            raise NetworkError(
                f"pruning.importance: {pruning.importance} ({IMPORTANCES[pruning.importance].about}) cannot be "
                "computed for attention heads; use another one, such as magnitude"
            )
        order = torch.sort(scores, stable=True, descending=True).indices
        left = left[order[: pruning.kept(len(vectors), step)].sort().values]
    return left
