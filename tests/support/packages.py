"""A package of somebody else's, installed as far as Python can tell."""

from collections.abc import Mapping
from pathlib import Path


def install(directory: Path, name: str, source: str, entry_points: Mapping[str, Mapping[str, str]]) -> None:
    """Write one module and its metadata into a directory that is on the path.

    Args:
        entry_points: group -> name -> reference.
    """
    metadata = directory / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, names in entry_points.items():
        lines += [f"[{group}]", *(f"{entry} = {reference}" for entry, reference in names.items())]
    (metadata / "entry_points.txt").write_text("\n".join([*lines, ""]))
    (directory / f"{name}.py").write_text(source)
