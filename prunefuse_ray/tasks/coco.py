"""Masks as COCO writes them: run lengths (RLE) and polygons of annotations, of one image.

Run lengths go down the columns, first those of what is not there. Compressed they are a text: each number (from the
fourth on its difference from the last but one) in groups of five bits from the lowest, a sixth bit where more follow,
and 48 added (`rleToString` in cocodataset/cocoapi, common/maskApi.c).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Mask = npt.NDArray[np.uint8]

MOST_PIXELS = 178_956_970
"""Of a mask, as of an image: Pillow's own limit."""


def mask_of(given: Any, classes: Sequence[str], *, ignored: int) -> Mask | None:
    """Class numbers (H, W) of what COCO's annotations of one image say; None where it cannot be understood.

    Args:
        given: JSON, or what it parses to: a list of annotations; or an object with `annotations` and `height` and
            `width`, which polygons need, and `rest`, the class (name or number) of pixels that no annotation has.
            Without it they are left out. An annotation has a `category` (a class's name) or a `category_id` (its
            number, from 0), and a `segmentation`. Where several have a pixel, the last one counts.
        ignored: the number of what is left out.
    """
    try:
        tree = json.loads(given) if isinstance(given, str | bytes) else given
        whole = tree if isinstance(tree, Mapping) else {"annotations": tree}
        size = (whole["height"], whole["width"]) if "height" in whole else None
        found = [
            (_class(one, classes), decoded(one["segmentation"], size or _size(one["segmentation"])))
            for one in whole["annotations"]
        ]
        size = size or (found[0][1].shape[0], found[0][1].shape[1])
        rest = ignored if whole.get("rest") is None else _class({_key(whole["rest"]): whole["rest"]}, classes)
        mask = np.full(_checked(size), rest, np.uint8)
        for number, inside in found:
            if inside.shape != mask.shape:
                return None
            mask[inside] = number
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError):
        return None
    return mask


def annotations_of(mask: Mask, classes: Sequence[str], *, ignored: int) -> list[dict[str, Any]]:
    """A mask (H, W) of class numbers as annotations of the classes that it has, in the order of their numbers; what is
    left out is in none."""
    return [
        {"category": classes[c], "category_id": int(c), "segmentation": encoded(mask == c)}
        for c in np.unique(mask)
        if c != ignored
    ]


def encoded(inside: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Compressed run lengths of pixels (H, W)."""
    flat = inside.T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], ends, [len(flat)]])).tolist()
    if len(flat) and flat[0]:
        runs.insert(0, 0)
    text = []
    for i, run in enumerate(runs):
        x, more = run - (runs[i - 2] if i > 2 else 0), True
        while more:
            bits, x = x & 31, x >> 5
            more = x != (-1 if bits & 16 else 0)
            text.append(chr(48 + bits + 32 * more))
    return {"size": list(inside.shape), "counts": "".join(text)}


def decoded(segmentation: Any, size: Any) -> npt.NDArray[np.bool_]:
    """The pixels (H, W) of run lengths, compressed or not, or of polygons (x, y, x, y, ...; Pillow draws them, edges
    included). ValueError, TypeError or KeyError where it is neither, or of another size."""
    height, width = _checked(size)
    if not isinstance(segmentation, Mapping):
        canvas = Image.new("1", (width, height))
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(np.asarray(polygon, float)).all():
                raise ValueError("no polygon")
            ImageDraw.Draw(canvas).polygon([float(n) for n in polygon], fill=1)
        return np.asarray(canvas, bool)
    if tuple(segmentation["size"]) != (height, width):
        raise ValueError("of another size")
    counts = segmentation["counts"]
    runs = np.array(_runs(counts) if isinstance(counts, str) else counts, np.int64)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError("runs of another length")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _runs(text: str) -> list[int]:
    runs: list[int] = []
    x = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("no run lengths")
        x |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            x -= (1 << shift) if bits & 16 else 0
            runs.append(x + (runs[-2] if len(runs) > 2 else 0))
            x = shift = 0
    if shift:
        raise ValueError("run lengths that end too early")
    return runs


def _class(annotation: Mapping[str, Any], classes: Sequence[str]) -> int:
    """The number of an annotation's class; ValueError where it has none, or two."""
    name, number = annotation.get("category"), annotation.get("category_id")
    if name is not None:
        found = list(classes).index(name)
        if number not in (None, found):
            raise ValueError("two classes")
        return found
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(classes):
        raise ValueError("no class")
    return number


def _key(given: Any) -> str:
    return "category" if isinstance(given, str) else "category_id"


def _size(segmentation: Any) -> Any:
    return segmentation["size"]


def _checked(size: Any) -> tuple[int, int]:
    height, width = size
    if not (type(height) is type(width) is int and height > 0 and width > 0 and height * width <= MOST_PIXELS):
        raise ValueError("no size")
    return height, width
