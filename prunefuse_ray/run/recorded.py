"""What a run, a sweep or a pass of scoring has recorded of its configuration, read in the terms of this version.

Configurations are compared by what they mean, not by how they were written: a field that came later, or has another
name by now, does not make an old run another one.
"""

from __future__ import annotations

import yaml

from prunefuse_ray.config.files import Tree, validated
from prunefuse_ray.errors import ConfigError, LedgerError
from prunefuse_ray.registry import UNTRUSTED, reading_files
from prunefuse_ray.storage import Place


def read_recorded(file: Place, model: type[Tree], afresh: str = "--run.name") -> Tree:
    """The configuration in `file`.

    Args:
        afresh: the option that names another directory.

    Raises:
        LedgerError: the file cannot be read, or holds what this version does not take.
    """
    try:
        tree = yaml.safe_load(file.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise LedgerError(f"{file.path}: cannot be read ({error}); is this a run directory?") from error
    if not isinstance(tree, dict):
        raise LedgerError(f"{file.path}: is damaged; restore it, or start afresh under another {afresh}")
    try:
        with reading_files():
            return validated(model, tree, recorded=True)
    except ConfigError as error:
        if UNTRUSTED in str(error):
            raise LedgerError(f"{file.path}: {error}") from error
        lines = "\n  ".join(str(error).splitlines())
        raise LedgerError(
            f"{file.path} was recorded by another version of prunefuse_ray, and this one does not take it:\n  {lines}\n"
            f"Go on with the version that recorded it, or start afresh under another {afresh}"
        ) from error
