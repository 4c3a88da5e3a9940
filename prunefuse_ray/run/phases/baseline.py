"""The phase `baseline`: the simplest model anyone would try, on the labels of the last round."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from threadpoolctl import threadpool_limits

from prunefuse_ray.acquisition import random_scores
from prunefuse_ray.acquisition.draws import BASELINE
from prunefuse_ray.data.ids import ids_to_numpy
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.data.labeled_set import own_labels
from prunefuse_ray.data.pool import Source, groups
from prunefuse_ray.data.prepared import readable
from prunefuse_ray.data.sample_format import Form
from prunefuse_ray.data.texts import NgramForm, TextForm, TokenForm
from prunefuse_ray.distributed.remote import over
from prunefuse_ray.method.steps import Step
from prunefuse_ray.run.context import Done, RunContext
from prunefuse_ray.tasks import Task
from prunefuse_ray.tasks.baseline import Compared, Features
from prunefuse_ray.training import baseline

TESTED = {True: 10_000, False: 50_000}
"""Of a larger test set so many samples are tested, of images and of others."""
HELD = 2**31
"""Bytes of decoded samples at most, to fit to, to test, and to learn features from; for a moment in three copies."""
NGRAMS = 1_024
PIXEL_OUTPUTS = 2**27
"""What is said of the pixels that are tested, at most: half a GiB, of which figures hold two or three."""


def run(context: RunContext, step: Step) -> Done:
    """Fit the baseline on the labels so far, and test it on the networks' test set; of large sets on a part."""
    form = context.form
    if isinstance(form, TextForm | TokenForm):  # whatever the network reads
        form = NgramForm(length=NGRAMS)
    labels, most = context.labels(context.last), context.task.baseline_samples
    fit = max(1, HELD // math.prod(form.shape))
    labeled = _drawn(labels, min(fit, baseline.LABELED if most is None else most))
    task = context.task.fitted(labeled["label"])
    x, y_N = _samples(context.samples(context.last), form, labeled, task)
    own, tested = own_labels(context.test), TESTED[isinstance(form, ImageForm)] if most is None else most
    if task.pixels:  # 300 of 512 x 512 pixels and 19 classes would take 6 GB
        tested = max(1, min(tested, PIXEL_OUTPUTS // (len(context.info.classes) * math.prod(form.network_shape[1:]))))
    test, truth_N = _samples(context.test, form, _drawn(own, min(fit, tested)), task)

    def features() -> Features:
        if isinstance(form, NgramForm):
            return baseline.of_texts(x, test)
        if isinstance(form, ImageForm):
            return baseline.of_images(x, test, context.drawn(min(fit, baseline.POOL), *BASELINE)[1])
        return baseline.of_vectors(form.numbers(x), form.numbers(test))

    compared = Compared(labeled=x, targets_N=y_N, test=test, classes=context.info.classes, features=features)
    # Its steps are so small that on a machine with other work threads wait for each other: a minute instead of seconds.
    with threadpool_limits(1):
        answer = task.baseline_of(compared)
    found = _tested(task, answer.outputs_NC, truth_N)
    metrics = {metric.measured: found[metric.name] for metric in (task.metric, *task.beside)}
    remark = task.baseline_remark(compared, lambda outputs: _tested(task, outputs, truth_N), answer)
    return Done(
        outputs={},
        metrics={
            **metrics,
            "about": f"{answer.about} ({remark})" if remark else answer.about,
            "labels": len(y_N),
            "of_labels": labels.num_rows,
            "tested": len(truth_N),
            "of_tested": own.num_rows,
        },
    )


def _tested(task: Task, outputs_NC: npt.NDArray[np.floating], truth_N: npt.NDArray[Any]) -> dict[str, float]:
    evaluation = task.evaluation()
    evaluation.add(torch.from_numpy(outputs_NC), torch.from_numpy(truth_N))
    return evaluation.result()


def _drawn(labels: pa.Table, most: int) -> pa.Table:
    """Labels (id, label), at most so many, by a hash of the id."""
    order = np.argsort(random_scores(ids_to_numpy(labels["id"]), *BASELINE), kind="stable")[-most:]
    return labels.take(pa.array(np.sort(order)))


def _samples(
    source: Source, form: Form, labels: pa.Table, task: Task
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    """The samples that `labels` (id, label) names and that can be read, and their targets."""
    wanted = labels["id"].combine_chunks().cast(pa.int64() if pa.types.is_integer(labels["id"].type) else pa.string())
    parts = list(over(readable, groups(source), form, wanted, size=sum(source.sizes)))
    ids = pa.concat_arrays([ids.cast(wanted.type) for ids, _ in parts])
    place = pc.index_in(ids, value_set=wanted).to_numpy()
    y_N = task.targets(labels["label"], form)[place]
    _, first = np.unique(place, return_index=True)  # what people left without a label may have been asked twice
    return np.concatenate([values for _, values in parts])[first], y_N[first]
