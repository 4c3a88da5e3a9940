"""Saved networks on storage: where they lie, and their files. A committee lies in a directory whose sub-directories 0,
1, ... hold its members."""

from __future__ import annotations

import itertools

from prunefuse_ray import networks
from prunefuse_ray.data.sample_format import PREPROCESSING_FILE
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.storage import Place

HUB_WEIGHTS = "model.safetensors"
"""The name of the weights in a folder of the Hugging Face Hub."""
FILES = (networks.WEIGHTS_FILE, networks.NETWORK_FILE)


def network_place(path: str) -> Place:
    """The directory of a network at `path`: itself, or `fused` in a run directory. LedgerError where there is none."""
    place = Place.at(path)
    for candidate in (place, place / "fused"):
        if any((where / networks.NETWORK_FILE).exists() for where in (candidate, candidate / "0")):
            return candidate
    raise LedgerError(
        f"{place.path}: holds no {networks.NETWORK_FILE}; give a network's directory (RUN/fused, "
        "RUN/rounds/NNN/proxies/0; of a committee RUN/rounds/NNN/proxies) or a finished run's"
    )


def network_files(place: Place) -> dict[str, bytes]:
    """The files of a network's directory, as `networks.from_files` takes them, and its preprocessing if it has one; of
    a committee's member it lies beside the members."""
    names = list(FILES)
    if not (place / networks.NETWORK_FILE).exists():
        members = itertools.takewhile(lambda i: (place / str(i) / networks.NETWORK_FILE).exists(), itertools.count())
        names = [f"{i}/{name}" for i in members for name in FILES]
    found = {name: (place / name).read_bytes() for name in (*names, PREPROCESSING_FILE) if (place / name).exists()}
    if networks.WEIGHTS_FILE not in found and (place / HUB_WEIGHTS).exists():
        found[networks.WEIGHTS_FILE] = (place / HUB_WEIGHTS).read_bytes()
    beside = place.parent / PREPROCESSING_FILE
    if PREPROCESSING_FILE not in found and place.name.isdecimal() and beside.exists():
        found[PREPROCESSING_FILE] = beside.read_bytes()
    return found
