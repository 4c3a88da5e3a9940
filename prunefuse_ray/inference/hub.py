"""A finished network as a folder for the Hugging Face Hub: safetensors, config.json, a model card with figures.

`prunefuse_ray.load` reads the folder; `timm.create_model("local-dir:FOLDER")` reads a network of timm's, too, and
`"hf-hub:OWNER/NAME"` once it is on the Hub; not a proxy, whose shapes timm does not know. Nothing is uploaded:
`hf upload OWNER/NAME FOLDER` does that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

import prunefuse_ray
from prunefuse_ray import networks
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.sample_format import PREPROCESSING_FILE, Form, Preprocessing, preprocessing_from_bytes
from prunefuse_ray.data.vectors import VectorForm
from prunefuse_ray.errors import PlanError
from prunefuse_ray.inference.saved_networks import HUB_WEIGHTS
from prunefuse_ray.networks.specs import NetworkSpec
from prunefuse_ray.tasks import TASKS

PIPELINES = {
    ("classification", "image"): "image-classification",
    ("multi_label", "image"): "image-classification",
    ("segmentation", "image"): "image-segmentation",
    ("classification", "text"): "text-classification",
    ("classification", "vector"): "tabular-classification",
    ("regression", "vector"): "tabular-regression",
}
"""(task, kind of samples) -> what the Hub calls it."""


def hub_folder(files: Mapping[str, bytes], result: Mapping[str, Any] | None) -> dict[str, bytes]:
    """The files of the folder.

    Args:
        files: of the network (`saved_networks.network_files`).
        result: `result.json` of the run that it comes from, for the card; None where there is none.

    Raises:
        PlanError: a committee, which the Hub's libraries do not know.
    """
    if networks.NETWORK_FILE not in files:
        raise PlanError("--format huggingface: this is a committee of several networks: export RUN/fused, or a member")
    told = preprocessing_from_bytes(files[PREPROCESSING_FILE])
    description = json.loads(files[networks.NETWORK_FILE])
    spec, proxy = NetworkSpec.from_json(description["network"]), "pruning" in description
    return {
        HUB_WEIGHTS: files[networks.WEIGHTS_FILE],
        networks.NETWORK_FILE: files[networks.NETWORK_FILE],
        PREPROCESSING_FILE: files[PREPROCESSING_FILE],
        "config.json": json.dumps(_config(spec, told, proxy), indent=2).encode(),
        "README.md": card(spec, told, proxy, result).encode(),
    }


def _config(spec: NetworkSpec, told: Preprocessing, proxy: bool) -> dict[str, Any]:
    """In timm's form, which knows classifiers of any architecture; what timm does not know stands beside. A proxy has
    its name of prunefuse_ray alone: timm would build the network that it was pruned from."""
    names = {str(n): name for n, name in enumerate(told.classes)}
    library, _, name = spec.architecture.rpartition(":")
    tree: dict[str, Any] = {
        "architecture": name if library == "timm" and not proxy else spec.architecture,
        "num_classes": spec.classes,
        "label_names": told.classes,
        "id2label": names,
        "label2id": {name: int(n) for n, name in names.items()},
        "library": "prunefuse_ray",
        "task": told.task,
        "input_shape": list(spec.input_shape),
        **({} if told.units is None else {"units": told.units}),
    }
    if isinstance(told.form, ImageForm) and not proxy:
        form = told.form
        tree["pretrained_cfg"] = {
            "input_size": list(spec.input_shape), "num_classes": spec.classes, "mean": list(form.mean),
            "std": list(form.std), "crop_pct": form.crop_ratio, "interpolation": "bilinear",
            "fixed_input_size": library == "timm" and _has_fixed_size(name),
            "label_names": told.classes,
        }  # fmt: skip
    return tree


def _has_fixed_size(name: str) -> bool:
    """Whether timm builds this network for one size of input, which it has to be told."""
    import timm

    found = timm.get_pretrained_cfg(name)
    return found is not None and found.fixed_input_size


def card(spec: NetworkSpec, told: Preprocessing, proxy: bool, result: Mapping[str, Any] | None) -> str:
    """The model card: what the network is, how it is loaded, and what the run measured. It names no path."""
    metric = TASKS[told.task].metric
    head: dict[str, Any] = {"library_name": "prunefuse_ray", "tags": ["prunefuse_ray", "active-learning", "pruning"]}
    if pipeline := PIPELINES.get((told.task, _kind(told.form))):
        head["pipeline_tag"] = pipeline
    name = str(result["name"]) if result else spec.architecture
    what = f"A proxy, pruned from {spec.architecture}," if proxy else spec.architecture
    body = [f"# {name}", f"{what} for {_input(told.form)}, trained by prunefuse_ray {prunefuse_ray.__version__}"
            f"{_origin(result or {})}."]  # fmt: skip
    kind = "Targets" if TASKS[told.task].numbers else "Classes"
    body.append(f"{kind}: {', '.join(told.classes)}.")
    if told.units is not None:
        body.append(
            "Its plain outputs are in standard deviations of the labels, from their mean (`units` in config.json); "
            "`predict` gives the units of the labels."
        )
    if result is not None:
        head["model-index"] = [_index(name, pipeline or told.task, metric.name, result)]
        body += _figures(result, metric)
    body.append(
        "## Use\n\n```python\nimport prunefuse_ray\nfrom huggingface_hub import snapshot_download\n\n"
        'model = prunefuse_ray.load(snapshot_download("OWNER/NAME"))\nprint(next(model.predict(["sample"])))\n```'
    )
    body.append(
        "License, intended use and the origin of the data are not known to the program that wrote this: add them."
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n" + "\n\n".join(body) + "\n"


def _origin(result: Mapping[str, Any]) -> str:
    """What the run's proxies had to do with the network; nothing where that is not known, or there were none."""
    if result.get("target") != "fused":
        return ""
    asked = any(one["strategy"] != "random" for one in result["rounds"])
    return f": a pruned proxy of it {'selected the samples that were labeled, and ' * asked}was fused into it"


def _kind(form: Form) -> str:
    if isinstance(form, ImageForm):
        return "image"
    return "vector" if isinstance(form, VectorForm) else "text"


def _input(form: Form) -> str:
    if isinstance(form, ImageForm):
        return f"images of {form.height} x {form.width} pixels and {form.channels} channels"
    return f"{type(form).__name__.removesuffix('Form').lower()}s of length {form.length}"


def _index(name: str, pipeline: str, metric: str, result: Mapping[str, Any]) -> dict[str, Any]:
    value = {"type": metric, "name": f"test {metric}", "value": result[f"fused_{metric}"]}
    dataset = {"name": "held-out test set of the run", "type": "held-out"}
    return {"name": name, "results": [{"task": {"type": pipeline}, "dataset": dataset, "metrics": [value]}]}


def _figures(result: Mapping[str, Any], metric: Any) -> list[str]:
    """The run's rounds, and what they are compared with."""
    selector = "proxy" if result.get("selector", "proxy") == "proxy" else "selecting network"
    rows = [f"| labels | selected by | {selector} | this network |", "|---|---|---|---|"]
    for one in result["rounds"]:
        shown = [
            "" if (value := one[f"{network}_{metric.name}"]) is None else metric.text(value)
            for network in ("proxy", "fused")
        ]
        rows.append(f"| {one['labels']:,} | {one['strategy']} | {shown[0]} | {shown[1]} |")
    lines = [f"## Figures\n\n{metric.title} on a held-out test set, one run, seed {result['seed']}.", "\n".join(rows)]
    notes = []
    if (simplest := result.get(f"baseline_{metric.name}")) is not None:
        found, on = result.get("baseline") or {}, "the same labels"
        if found.get("labels", 0) < found.get("of_labels", 0):
            on = f"{found['labels']:,} of the same labels"
        if found.get("tested", 0) < found.get("of_tested", 0):
            on += f" and {found['tested']:,} of {found['of_tested']:,} test samples"
        notes.append(f"The simplest model on {on}: {metric.text(simplest)}.")
    if dense := result.get("dense_selection_macs"):
        share = f"{result['selection_macs'] / dense:.1%}"
        notes.append(
            f"Scoring the pool took {share} of the multiply-accumulates that the dense network would have needed."
        )
    if sizes := result.get("parameters"):
        notes.append(f"Parameters: {sizes['dense']:,}; the {selector} has {sizes['proxy']:,}.")
    return [*lines, *([" ".join(notes)] if notes else [])]
