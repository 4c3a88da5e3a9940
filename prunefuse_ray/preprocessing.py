"""What a network expects of its samples and what its outputs mean, as a small file beside it; no Ray."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, TypeAlias

from prunefuse_ray.errors import LedgerError
from prunefuse_ray.images import ImageForm
from prunefuse_ray.texts import TextForm

Form: TypeAlias = ImageForm | TextForm

PREPROCESSING_FILE = "preprocessing.json"
FORMAT = 1


def preprocessing_to_bytes(form: Form, classes: list[str]) -> bytes:
    """The contents of PREPROCESSING_FILE: the form of the samples and the names of the classes."""
    kind = "image" if isinstance(form, ImageForm) else "text"
    tree = {"format": FORMAT, "kind": kind, "classes": classes, "form": asdict(form)}
    return (json.dumps(tree, indent=1, sort_keys=True) + "\n").encode()


def preprocessing_from_bytes(content: bytes) -> tuple[Form, list[str]]:
    """What `preprocessing_to_bytes` wrote. Raises LedgerError for anything else."""
    try:
        tree: dict[str, Any] = json.loads(content)
        if tree["format"] != FORMAT:
            raise ValueError(f"format {tree['format']!r}")
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in tree["form"].items()}
        form: Form = {"image": ImageForm, "text": TextForm}[tree["kind"]](**fields)
        return form, [str(name) for name in tree["classes"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerError(
            f"{PREPROCESSING_FILE}: not a description of format {FORMAT} ({error}); take it from the run again"
        ) from error
