"""Weights that were trained elsewhere: read, checked against the architecture, and given a head for other classes.

A safetensors file, or a checkpoint that `torch.load(weights_only=True)` reads. Nothing in a file is executed.
"""

import dataclasses
import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from prunefuse_ray.networks.architectures import construct, first_line
from prunefuse_ray.networks.specs import NetworkError, NetworkSpec

WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "weights")
"""Keys under which training scripts put a state dict beside their optimiser's and schedule's."""
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
"""What data-parallel, compiled and Lightning modules put before every name."""
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What was taken over from a file."""

    tensors: int
    replaced: list[str]
    """Tensors of the head that keep their fresh initialisation, because the file has other classes (or no head)."""


def load_trained(network: nn.Module, spec: NetworkSpec, content: bytes) -> Loaded:
    """Put the weights in `content` into `network`, in place.

    A tensor of the head (one whose shape follows from the number of classes) that is missing or of another shape keeps
    its initial values. Half-precision weights become float32.

    Raises:
        NetworkError: a file that is neither safetensors nor a plain checkpoint; missing, unknown or misshapen tensors,
            with their names; values that are not finite.
    """
    present = network.state_dict()
    state = _unprefixed(_state_dict(content), present.keys())
    head = head_tensors(spec)
    replaced = sorted(n for n in head if n not in state or state[n].shape != present[n].shape)
    # Files from before torch 0.4.1 do not count batches; the count matters only where momentum is None.
    counters = {n for n in present if n.endswith("num_batches_tracked")}
    missing = sorted(present.keys() - state.keys() - set(replaced) - counters)
    unknown = sorted(state.keys() - present.keys())
    if missing or unknown:
        raise NetworkError(
            f"network.weights: not those of {spec.architecture}: {_some(missing, 'missing')}; "
            f"{_some(unknown, 'unknown')}; name the architecture that the file was trained with"
        )
    taken = {n: t for n, t in state.items() if n not in replaced}
    misshapen = [
        f"{n} is {tuple(t.shape)} instead of {tuple(present[n].shape)}"
        for n, t in taken.items()
        if t.shape != present[n].shape
    ]
    if misshapen:
        raise NetworkError(
            f"network.weights: other shapes than {spec.architecture} has for {spec.input_shape}: "
            f"{'; '.join(misshapen[:SHOWN])}{_more(misshapen)}; only the classifier may differ"
        )
    broken = sorted(n for n, t in taken.items() if not t.isfinite().all())
    if broken:
        raise NetworkError(
            f"network.weights: not finite in {', '.join(broken[:SHOWN])}{_more(broken)}; take another checkpoint"
        )
    network.load_state_dict(present | {n: t.to(present[n].dtype) for n, t in taken.items()}, strict=True)
    return Loaded(tensors=len(taken), replaced=replaced)


def head_tensors(spec: NetworkSpec) -> set[str]:
    """Names of the tensors whose shape follows from the number of classes, whatever the architecture calls them."""
    few = construct(spec, seed=0).state_dict()
    more = construct(dataclasses.replace(spec, classes=spec.classes + 1), seed=0).state_dict()
    return {name for name, tensor in few.items() if name in more and more[name].shape != tensor.shape}


def _state_dict(content: bytes) -> dict[str, Tensor]:
    """The tensors of a file, out of whatever a training script wrapped them in."""
    tree = _read(content)
    while isinstance(tree, Mapping) and not _is_state_dict(tree):
        inner = next((tree[key] for key in WRAPPERS if isinstance(tree.get(key), Mapping)), None)
        if inner is None:
            break
        tree = inner
    if not isinstance(tree, Mapping) or not _is_state_dict(tree):
        found = f"keys {sorted(map(str, tree))[:SHOWN]}" if isinstance(tree, Mapping) else type(tree).__name__
        raise NetworkError(
            f"network.weights: the file holds no state dict, but {found}; save network.state_dict(), alone or under "
            f"{' or '.join(map(repr, WRAPPERS[:3]))}"
        )
    return dict(tree)


def _is_state_dict(tree: Mapping[Any, Any]) -> bool:
    return bool(tree) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tree.items())


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


def _unprefixed(state: dict[str, Tensor], wanted: Any) -> dict[str, Tensor]:
    """Without the prefixes that all names share, unless the architecture's own names carry them."""
    while not state.keys() & set(wanted):
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _some(names: list[str], what: str) -> str:
    return f"{what}: {', '.join(names[:SHOWN])}{_more(names)}" if names else f"none {what}"


def _more(names: list[str]) -> str:
    return f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
