"""Networks as bytes: safetensors for the weights, JSON for the structure. The caller does the I/O.

Nothing is pickled. What is read is checked against the architecture that it names before any of it is used.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, TypeAlias

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from prunefuse_ray.networks.architectures import construct, is_custom
from prunefuse_ray.networks.committee import Committee
from prunefuse_ray.networks.indices import KeptIndices, Proxy, kept_shape
from prunefuse_ray.networks.specs import NetworkError, NetworkSpec, PruningSpec
from prunefuse_ray.networks.structure import refill

WEIGHTS_FILE = "weights.safetensors"
NETWORK_FILE = "network.json"
FORMAT = 1


@dataclass
class Dense:
    """A dense or fused network, and the name by which it is rebuilt."""

    network: nn.Module
    spec: NetworkSpec


Selector: TypeAlias = Proxy | Dense | Committee
"""What can select samples; what can be saved."""


def to_files(saved: Selector) -> dict[str, bytes]:
    """The contents of WEIGHTS_FILE and NETWORK_FILE; of a committee those of its members, below 0/, 1/, ...

    Raises NetworkError for what could not be read back: weights other than float32, or names that a wrapper (a
    compiled or data-parallel module) has changed.
    """
    if isinstance(saved, Committee):
        return {f"{i}/{name}": file for i, m in enumerate(saved.members) for name, file in to_files(m).items()}
    for name, tensor in saved.network.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise NetworkError(f"weights: {name} is {tensor.dtype}; save the float32 weights")
        if isinstance(saved, Proxy) and name not in saved.kept:
            raise NetworkError(f"weights: {name} has no kept indices; save the network without its wrapper")
    description: dict[str, Any] = {"format": FORMAT, "network": saved.spec.to_json()}
    if isinstance(saved, Proxy):
        description |= {"pruning": saved.pruning.to_json(), **_kept_to_json(saved.kept)}
    # Clones, because safetensors refuses tensors that are views of shared memory.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in saved.network.state_dict().items()}
    weights = safetensors.torch.save(state)
    description["sha256"] = _digest(description, weights)
    return {WEIGHTS_FILE: weights, NETWORK_FILE: json.dumps(description, sort_keys=True).encode()}


def _digest(description: dict[str, Any], weights: bytes) -> str:
    """Of both files together; `sha256` itself aside."""
    told = {key: value for key, value in description.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode() + weights).hexdigest()


def from_files(files: dict[str, bytes], trusted: Collection[str] = ()) -> Selector:
    """The network that `to_files` wrote, on the CPU in training mode; bit-equal weights.

    The structure comes from the saved shapes, never from importances. Raises NetworkError for anything missing,
    unknown, or inconsistent with the architecture.

    Args:
        trusted: architectures `package.module:function` that the reader's own configuration names. Any other such
            name is refused: to build it, Python would import and call what the file says.
    """
    if NETWORK_FILE not in files and any(name.endswith(f"/{NETWORK_FILE}") for name in files):
        return _committee(files, trusted)
    for name in (WEIGHTS_FILE, NETWORK_FILE):
        if name not in files:
            raise NetworkError(f"{name}: missing; found {sorted(files)}")
    description = _parse(files[NETWORK_FILE])
    spec = NetworkSpec.from_json(description["network"])
    if is_custom(spec.architecture) and spec.architecture not in trusted:
        raise NetworkError(
            f"{NETWORK_FILE}: names code of its own, {spec.architecture!r}, which the configuration does not name: "
            "set network.architecture to it if you trust the file (from Python: give it as `trusted`)"
        )
    state = _weights(files[WEIGHTS_FILE])
    network = construct(spec, seed=0)
    dense = network.state_dict()
    if dense.keys() != state.keys():
        missing, unknown = sorted(dense.keys() - state.keys()), sorted(state.keys() - dense.keys())
        raise NetworkError(
            f"{WEIGHTS_FILE}: tensors {missing[:3]} are missing and {unknown[:3]} unknown for {spec.architecture}"
        )
    kept = _kept_from_json(description, dense) if "pruning" in description else None
    for name, tensor in dense.items():
        shape = tuple(tensor.shape) if kept is None else kept_shape(tensor.shape, kept[name])
        if tuple(state[name].shape) != shape or state[name].dtype != tensor.dtype:
            raise NetworkError(
                f"{WEIGHTS_FILE}: {name} is {state[name].dtype} {tuple(state[name].shape)} "
                f"instead of {tensor.dtype} {shape}"
            )
    # What an earlier version wrote has no digest.
    if "sha256" in description and description["sha256"] != _digest(description, files[WEIGHTS_FILE]):
        raise NetworkError(
            f"{WEIGHTS_FILE}, {NETWORK_FILE}: one of them is not what was saved (their digest differs); restore them "
            "from a copy"
        )
    network.train()
    if kept is None:
        network.load_state_dict(state)  # keeps weights tied that the architecture ties
        return Dense(network, spec)
    refill(network, state)
    return Proxy(network, kept, spec, PruningSpec.from_json(description["pruning"]))


def _committee(files: dict[str, bytes], trusted: Collection[str]) -> Committee:
    numbers = sorted({name.partition("/")[0] for name in files if "/" in name}, key=lambda n: (len(n), n))
    if len(numbers) == 1:
        raise NetworkError(
            f"{numbers[0]}/{NETWORK_FILE}: is there alone; of a committee the other members are missing, and a network "
            f"that is no committee's is read from its own directory, .../{numbers[0]}"
        )
    members: list[Proxy] = []
    for number in numbers:
        own = {name.removeprefix(f"{number}/"): file for name, file in files.items() if name.startswith(f"{number}/")}
        member = from_files(own, trusted)
        if not isinstance(member, Proxy) or (members and member.spec != members[0].spec):
            raise NetworkError(f"{number}/{NETWORK_FILE}: is no member of one committee with those before it")
        members.append(member)
    return Committee(members)


def _kept_to_json(kept: KeptIndices) -> dict[str, Any]:
    """Each distinct index list once: coupled layers share theirs."""
    lists: list[list[int]] = []
    numbers: dict[tuple[int, ...], int] = {}

    def number(index: Tensor | None) -> int | None:
        if index is None:
            return None
        positions = tuple(index.tolist())
        if positions not in numbers:
            numbers[positions] = len(lists)
            lists.append(list(positions))
        return numbers[positions]

    tensors = {name: [number(index) for index in dims] for name, dims in kept.items()}
    return {"indices": lists, "kept": tensors}


def _kept_from_json(description: dict[str, Any], dense: dict[str, Tensor]) -> KeptIndices:
    lists, tensors = description["indices"], description["kept"]
    if not isinstance(lists, list) or not isinstance(tensors, dict) or tensors.keys() != dense.keys():
        raise NetworkError(f"{NETWORK_FILE}: kept indices are not those of the network's tensors")
    positions = [_positions(number, values) for number, values in enumerate(lists)]
    kept: KeptIndices = {}
    for name, tensor in dense.items():
        dims = tensors[name]
        if not isinstance(dims, list) or len(dims) != tensor.ndim:
            raise NetworkError(f"{NETWORK_FILE}: kept indices of {name} are not for {tensor.ndim} dimensions")
        for size, number in zip(tensor.shape, dims, strict=True):
            if number is None:
                continue
            if type(number) is not int or not 0 <= number < len(positions):
                raise NetworkError(f"{NETWORK_FILE}: {name} refers to index list {number!r}, which does not exist")
            if positions[number][-1] >= size:
                raise NetworkError(f"{NETWORK_FILE}: kept positions of {name} exceed its size {size}")
        kept[name] = tuple(None if number is None else positions[number] for number in dims)
    return kept


def _positions(number: int, values: object) -> Tensor:
    if not isinstance(values, list) or not values or not all(type(v) is int and 0 <= v < 2**62 for v in values):
        raise NetworkError(f"{NETWORK_FILE}: index list {number} is not a list of positions")
    index = torch.tensor(values, dtype=torch.int64)
    if not bool((index[1:] > index[:-1]).all()):
        raise NetworkError(f"{NETWORK_FILE}: index list {number} is not strictly increasing")
    return index


def _parse(content: bytes) -> dict[str, Any]:
    try:
        description = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise NetworkError(f"{NETWORK_FILE}: not JSON: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise NetworkError(f"{NETWORK_FILE}: not a description of format {FORMAT}")
    keys = {"format", "network"}
    if description.keys() - {"sha256"} not in (keys, keys | {"pruning", "indices", "kept"}):
        raise NetworkError(f"{NETWORK_FILE}: unexpected keys {sorted(description)}")
    return description


def _weights(content: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise NetworkError(f"{WEIGHTS_FILE}: not a safetensors file: {error}") from error
