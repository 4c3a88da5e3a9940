"""Weights that were trained elsewhere: read, checked against the architecture, and given a head for other classes.

A safetensors file, a checkpoint that `torch.load(weights_only=True)` reads, or the index of several such files.
Nothing in a file is executed. What is taken from it under which name is decided in weight_names.py.
"""

import dataclasses
import io
import json
import pickle
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from prunefuse_ray.networks.architectures import construct
from prunefuse_ray.networks.encoders import file_names, fresh_tensors
from prunefuse_ray.networks.specs import NetworkError, NetworkSpec, first_line
from prunefuse_ray.networks.weight_names import match, some

WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "weights")
"""Keys under which training scripts put a state dict beside their optimizer's and schedule's. The first one counts."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What was taken over from a file."""

    tensors: int
    replaced: list[str]
    """Tensors of the head that keep their fresh initialization, because the file has other classes (or no head)."""
    left_out: list[str]
    """What the file holds besides: a loss, metrics, the counter of an average, a second network."""
    converted: dict[str, int]
    """Type in the file -> how many of its tensors became float32."""

    def notes(self) -> list[str]:
        """What people should know, a line each."""
        found = []
        if self.replaced:
            found.append(f"a new head: {some(self.replaced)} start fresh")
        if self.left_out:
            found.append(f"left out of the file, since the network has no place for it: {some(self.left_out)}")
        if self.converted:
            found.append(f"converted to float32: {', '.join(f'{n} tensors of {t}' for t, n in self.converted.items())}")
        return found


def load_trained(
    network: nn.Module, spec: NetworkSpec, content: bytes, shards: Mapping[str, bytes] | None = None
) -> Loaded:
    """Put the weights in `content` into `network`, in place.

    Names may carry what wrappers put into them (DistributedDataParallel, FSDP, torch.compile, AveragedModel,
    Lightning), at any depth. A tensor of the head (one whose shape follows from the number of classes) that is missing
    or of another shape keeps its initial values. Other precisions become float32.

    Args:
        shards: where `content` is an index, the files of `shard_names(content)`.

    Raises:
        NetworkError: a file that is neither safetensors nor a plain checkpoint; missing, unknown or misshapen tensors,
            with their names; the same network twice; values that are not finite.
    """
    present = network.state_dict()
    given_state, beside = _state_dict(content, shards or {})
    renamed = file_names(network, list(given_state))
    state = {new: given_state[name] for name, new in renamed.items()}
    beside += [name for name in given_state if name not in renamed]
    head = head_tensors(spec) | fresh_tensors(network)
    # Files from before torch 0.4.1 do not count batches; the count matters only where momentum is None.
    counters = {n for n in present if n.endswith("num_batches_tracked")}
    found = match(state, present, optional=head | counters)
    replaced = sorted(n for n in head if n not in found.names or state[found.names[n]].shape != present[n].shape)
    missing = sorted(present.keys() - found.names.keys() - set(replaced) - counters)
    if missing or found.unknown:
        raise NetworkError(
            f"network.weights: not those of {spec.architecture}: missing: {some(missing)}; unknown: "
            f"{some(found.unknown)}; name the architecture that the file was trained with"
        )
    given = {n: state[f] for n, f in found.names.items() if n not in replaced}
    if misshapen := [
        f"{n} is {_form(t)} instead of {_form(present[n])}" for n, t in given.items() if not _fits(t, present[n])
    ]:
        raise NetworkError(
            f"network.weights: other shapes than {spec.architecture} has for {spec.input_shape}: "
            f"{some(misshapen, '; ')}; only the classifier may differ"
        )
    taken = {n: t.to(present[n].dtype) for n, t in given.items()}
    if broken := sorted(n for n, t in taken.items() if not t.isfinite().all()):
        raise NetworkError(f"network.weights: not finite in {some(broken)}; take another checkpoint")
    network.load_state_dict(present | taken, strict=True)
    converted = Counter(_type(t) for n, t in given.items() if t.is_floating_point() and t.dtype != taken[n].dtype)
    return Loaded(tensors=len(taken), replaced=replaced, left_out=[*found.left_out, *beside], converted=dict(converted))


def head_tensors(spec: NetworkSpec) -> set[str]:
    """Names of the tensors whose shape follows from the number of classes, whatever the architecture calls them."""
    few = construct(spec, seed=0).state_dict()
    more = construct(dataclasses.replace(spec, classes=spec.classes + 1), seed=0).state_dict()
    return {name for name, tensor in few.items() if name in more and more[name].shape != tensor.shape}


def shard_names(content: bytes) -> list[str]:
    """The names of the files over which an index (`model.safetensors.index.json`) says that a network is spread; none
    where `content` is no index. They lie beside it. Raises NetworkError for names that lead elsewhere."""
    if content[:1] != b"{":
        return []
    try:
        names = sorted(set(json.loads(content)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    for name in names:
        if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\?"):
            raise NetworkError(f"network.weights: the index names the file {name!r}; give files beside it")
    return names


def _fits(tensor: Tensor, wanted: Tensor) -> bool:
    # Numbers of another kind (quantized, complex) are not what they look like.
    same_kind = tensor.is_floating_point() == wanted.is_floating_point() and not tensor.is_complex()
    return tensor.shape == wanted.shape and same_kind and not tensor.is_quantized


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {_type(tensor)}"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _state_dict(content: bytes, shards: Mapping[str, bytes]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file, out of whatever a training script wrapped them in; and the names of what is left of that:
    other state dicts, and states that are no tensors."""
    if shards:
        return _sharded(json.loads(content)["weight_map"], shards)
    beside: list[str] = []
    tree, path = _read(content), ""
    while isinstance(tree, Mapping):
        inner = [key for key in tree if isinstance(tree[key], Mapping) and _holds_state_dict(tree[key])]
        named = [key for key in WRAPPERS if key in inner]
        if not named and len(inner) != 1:
            break
        chosen = named[0] if named else inner[0]
        beside += [f"{path}{key}" for key in inner if key != chosen]
        tree, path = tree[chosen], f"{path}{chosen}."
    if not _is_state_dict(tree):
        found = f"keys {some(sorted(map(str, tree)))}" if isinstance(tree, Mapping) else f"a {type(tree).__name__}"
        raise NetworkError(
            f"network.weights: the file holds no state dict, but {found}; save network.state_dict(), alone or under "
            f"{' or '.join(map(repr, WRAPPERS[:3]))}"
        )
    beside += [f"{path}{name}" for name, value in tree.items() if not isinstance(value, Tensor)]
    return {name: value for name, value in tree.items() if isinstance(value, Tensor)}, beside


def _sharded(places: Mapping[str, str], shards: Mapping[str, bytes]) -> tuple[dict[str, Tensor], list[str]]:
    """`_state_dict` of the files that an index names: of each, the tensors that it says are there."""
    state: dict[str, Tensor] = {}
    beside: list[str] = []
    for file, content in shards.items():
        tensors, more = _state_dict(content, {})
        state |= {name: tensor for name, tensor in tensors.items() if places.get(name) == file}
        beside += [*more, *(f"{file}: {name}" for name in tensors if places.get(name) != file)]
    if lost := sorted(places.keys() - state.keys()):
        raise NetworkError(f"network.weights: {some(lost)}: not in the files that the index names for them")
    return state, beside


def _is_state_dict(tree: object) -> TypeGuard[Mapping[str, Any]]:
    """Names and tensors; modules may add states of another kind under `_extra_state`."""
    return (
        isinstance(tree, Mapping)
        and any(isinstance(value, Tensor) for value in tree.values())
        and all(
            isinstance(name, str) and (isinstance(value, Tensor) or name.endswith("_extra_state"))
            for name, value in tree.items()
        )
    )


def _holds_state_dict(tree: Mapping[Any, Any]) -> bool:
    return _is_state_dict(tree) or any(isinstance(tree.get(key), Mapping) for key in WRAPPERS)


def _read(content: bytes) -> Any:
    if zipfile.is_zipfile(io.BytesIO(content)) or content[:1] == b"\x80":
        try:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise NetworkError(
                "network.weights: the checkpoint holds more than tensors and plain values, which could run code when "
                f"it is read ({first_line(error)[:160]}); save network.state_dict() alone, or as safetensors"
            ) from error
        except Exception as error:  # a damaged archive fails in many ways; each means the same here
            raise NetworkError(f"network.weights: a damaged checkpoint: {first_line(error)}") from error
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise NetworkError(
            f"network.weights: neither safetensors nor a checkpoint that torch.load(weights_only=True) reads: {error}"
        ) from error
