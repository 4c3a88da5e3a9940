"""The baseline in words: a model that anyone would try first, on the same labels and the same test set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunefuse_ray.report.names import names
from prunefuse_ray.tasks.task import Metric


def words(result: Mapping[str, Any], metric: Metric) -> list[str]:
    """What the baseline of a finished run came to, and plainly whether the target network loses to it; nothing where
    there is none."""
    found, baseline = result.get("baseline"), result.get(f"baseline_{metric.name}")
    if not found or baseline is None:
        return []
    parts = f"{found['labels']:,} labels"
    if found["labels"] < found["of_labels"]:
        parts += f" (drawn from {found['of_labels']:,})"
    if found["tested"] < found["of_tested"]:
        parts += f", {found['tested']:,} of {found['of_tested']:,} test samples"
    told = [f"baseline {metric.text(baseline)}: {found['about']}; {parts}"]
    fused = result.get(f"fused_{metric.name}")
    if fused is not None and fused < baseline and metric.text(fused) != metric.text(baseline):
        lost = metric.difference(fused - baseline)
        _, target = names(result.get("selector"), result.get("target"))
        verdict = f"The {target} network LOSES to the baseline ({lost}): use that, or another network or recipe."
        if found["tested"] < found["of_tested"]:
            verdict += " But the network was tested on all test samples: compare the two on the same ones first."
        told.append(verdict)
    return told
