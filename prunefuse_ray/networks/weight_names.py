"""Which tensor of a file belongs where in a network, whatever wrapped the network when the file was written."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from prunefuse_ray.errors import few
from prunefuse_ray.networks.specs import NetworkError

WRAPPER_PARTS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""What DistributedDataParallel, AveragedModel, torch.compile, FSDP, checkpointing and DeepSpeed put into names, before
whichever module they wrap."""
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Match:
    """Where the tensors of a file belong."""

    names: dict[str, str]
    """Name in the network -> name in the file."""
    unknown: list[str]
    """What belongs to the network by its name, and is not there: another depth or variant of the architecture."""
    left_out: list[str]
    """What belongs to something else: a loss, metrics, another network."""


def match(given: Collection[str], wanted: Collection[str], *, optional: Collection[str]) -> Match:
    """Names of a network in the names of a file.

    The file's names may begin with anything (Lightning's attribute, for one), as long as the network's begin alike. Of
    several beginnings the one with most of the network counts. Raises NetworkError where the whole network is there
    more than once.

    Args:
        given: names in the file.
        wanted: names in the network.
        optional: those of `wanted` that may be missing.
    """
    plain = _unwrapped(wanted)
    if len(set(plain.values())) < len(plain):  # a network with modules of such names of its own
        plain = {name: name for name in wanted}
        file_names = {name: name for name in given}
    else:
        file_names = _unwrapped(given)
    places = {short: name for name, short in plain.items()}
    under: dict[str, dict[str, str]] = {}
    """Beginning -> name in the network -> name in the file."""
    doubled: dict[str, NetworkError] = {}
    for name, short in file_names.items():
        for start, rest in _splits(short):
            if rest in places and (first := under.setdefault(start, {}).setdefault(places[rest], name)) != name:
                doubled[start] = _twice(name, first)
    complete = [start for start, there in under.items() if set(wanted) - set(optional) <= there.keys()]
    if len(complete) > 1 and "" not in complete:
        raise _twice(*(f"{start}.*" for start in complete[:2]))
    best = "" if "" in complete else max(under, key=lambda start: len(under[start]), default="")
    if best in doubled:
        raise doubled[best]
    names = under.get(best, {})
    children = {short.partition(".")[0] for short in places}
    others = sorted(set(given) - set(names.values()))
    unknown = [name for name in others if _is_own(best, file_names[name], children)]
    return Match(names=names, unknown=unknown, left_out=[name for name in others if name not in unknown])


def some(names: Iterable[str], separator: str = ", ") -> str:
    """The first few of them, and how many more there are."""
    listed = list(names)
    return few(listed, SHOWN, separator) if listed else "none"


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    return {name: ".".join(part for part in name.split(".") if part not in WRAPPER_PARTS) for name in names}


def _splits(name: str) -> Iterable[tuple[str, str]]:
    parts = name.split(".")
    return ((".".join(parts[:i]), ".".join(parts[i:])) for i in range(len(parts)))


def _is_own(start: str, name: str, children: Collection[str]) -> bool:
    """Whether a name stands for a part of the network's own. A number is a place in a nn.Sequential, which may be
    longer in the file."""
    if start and not name.startswith(f"{start}."):
        return False
    child = name[len(start) + 1 if start else 0 :].partition(".")[0]
    return child in children or child.isdecimal()


def _twice(first: str, second: str) -> NetworkError:
    return NetworkError(
        f"network.weights: the file holds this network twice, as {first} and as {second}; save the one that you want "
        "alone"
    )
