"""The sections `pretraining`, `training`, `finetuning` and `workers`: how a network is trained, on what, and where."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from prunefuse_ray.config.section import Positive, Section, Share, min_max, unread

Augmentation = Literal["crop", "resized_crop", "flip", "cutout"]
Precision = Literal["auto", "fp32", "bf16"]


class Unlabeled(Section):
    """What a training learns from samples of the pool that have no label, beside those that have one."""

    method: Literal["none", "fixmatch"] = "none"
    """fixmatch: where the network is sure of a weakly augmented view of a sample (`augment`), its prediction is the
    label of a strongly augmented view (colors, rotations, shears, shifts, cutout), after Sohn et al. 2020 (arXiv
    2001.07685). For images."""
    steps: Positive = 4000
    """Smallest number of optimizer steps, instead of `min_steps`: the labeled batches of `epochs` alone are too few to
    learn from a pool."""
    macs: Annotated[float, Field(gt=0)] | None = None
    """Compute budget in multiply-accumulates, instead of `steps`, counted as if the network were sure of every sample.
    Training makes at least `epochs` passes over the labels, whatever the budget."""
    ratio: Positive = 4
    """Unlabeled samples per labeled sample in a batch."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Probability at and above which the network counts as sure."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the unlabeled loss."""
    alignment: bool = True
    """Distribution alignment (Berthelot et al. 2020, arXiv 1911.09785): the guesses are rescaled so that, over many
    batches, classes have the same shares as among the labels that were chosen at random (all labels where none
    were)."""

    @property
    def used(self) -> bool:
        return self.method != "none"


RATES = {"sgd": 0.1, "adamw": 1e-3}
"""Learning rates by default: AdamW's steps are as long as the rate, and with SGD's it learns nothing."""


class Recipe(Section):
    """How one network is trained."""

    epochs: Positive = 30
    """Passes over the labeled set."""
    min_steps: Annotated[int, Field(ge=0)] = 300
    """Smallest number of optimizer steps of a whole training. If `epochs` passes over the labeled set would take fewer,
    each epoch passes over it several times; 0: never."""
    batch_size: Positive = 32
    """Samples per optimizer step, over all workers together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd, or adamw (Loshchilov and Hutter, arXiv 1711.05101), which is usual for transformers; it needs a learning
    rate of 1e-3 or less, and has 1e-3 by default."""
    lr: Annotated[float, Field(gt=0)] = RATES["sgd"]
    """Peak learning rate at this batch size."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD; for AdamW, its first beta."""
    nesterov: bool = True
    """Nesterov momentum; for SGD only."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """L2 penalty on weights (not on biases and normalization parameters); for AdamW, decoupled from the gradient."""
    schedule: Literal["cosine", "step"] = "cosine"
    """cosine: warm-up, then cosine to zero. step: `lr` times `step_factor` at each of `milestones`."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 3.0
    """Epochs of warm-up: the learning rate rises from zero to `lr` (cosine), or is `lr` * `step_factor` (step)."""
    milestones: list[Positive] = []
    """Epochs at which the step schedule multiplies the learning rate by `step_factor`."""
    step_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor of the step schedule."""
    label_smoothing: Share = 0.1
    """Share of the target probability that is spread over all classes."""
    augment: list[Augmentation] = ["crop"]
    """Augmentations, on the device: crop (pad by an eighth and crop), resized_crop (a random part of the image,
    scaled), flip (left-right), cutout (blanks a rectangle of half the height and width)."""
    smallest_crop: Annotated[float, Field(gt=0.0, le=1.0)] = 0.08
    """Smallest share of the image's area that resized_crop takes."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Epochs without a better metric on the validation set after which training stops; 0: never. Needs that set."""
    precision: Precision = "auto"
    """Arithmetic of the forward and backward pass: auto is bf16 (autocast) where the device has it in hardware."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Epochs between evaluations on the test set; 0: only after the last."""
    unlabeled: Unlabeled = Unlabeled()
    """Semi-supervised training."""

    @model_validator(mode="after")
    def _sure(self) -> Recipe:
        if self.unlabeled.used and self.unlabeled.threshold >= 1 - self.label_smoothing:
            raise ValueError(
                f"label_smoothing {self.label_smoothing:g} teaches probabilities of no more than about "
                f"{1 - self.label_smoothing:g}, and unlabeled.threshold is {self.unlabeled.threshold:g}: no sample "
                "would pass; set label_smoothing to 0"
            )
        return self

    @model_validator(mode="after")
    def _schedule(self, info: ValidationInfo) -> Recipe:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} leaves nothing of {self.epochs} epochs: lower it below epochs"
            )
        if self.schedule != "step" and self.milestones:
            return unread(
                self, info, "milestones",
                f"milestones {self.milestones} are of schedule 'step', not '{self.schedule}': set schedule to step, or "
                "milestones to []",
            )  # fmt: skip
        if self.schedule == "step" and any(m >= self.epochs for m in self.milestones):
            raise ValueError(f"milestones {self.milestones} reach beyond the last of {self.epochs} epochs: lower them")
        return self


class Coreset(Section):
    """Fine-tune the target network on a part of the labeled samples alone."""

    by: Literal["none", "random", "el2n", "forgetting"] = "none"
    """none: on all labeled samples. el2n: on those with the largest errors early in the proxy's training (Paul et al.
    2021, arXiv 2107.07075). forgetting: on those that it forgot most often (Toneva et al. 2019, arXiv 1812.05159).
    random: on a random part, for comparison. For one class per sample."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The part that is kept. Below a third, the hardest samples alone are worse than a random part."""

    @property
    def used(self) -> bool:
        return self.by != "none"

    @property
    def by_hardness(self) -> bool:
        return self.by in ("el2n", "forgetting")

    def kept(self, labels: int) -> int:
        """Of so many labeled samples."""
        return math.ceil(round(self.share * labels, 6)) if self.used else labels  # .55 of 100 is 55


class Pretraining(Section):
    """What the network that selects learns from the pool before it sees a label; every round begins with that."""

    method: Literal["none", "auto", "rotation", "vicreg"] = "none"
    """rotation: tell by which of four angles a square sample is rotated (Gidaris et al. 2018, arXiv 1803.07728).
    vicreg: similar features for two strongly augmented views of a sample, different ones otherwise (Bardes et al. 2022,
    arXiv 2105.04906). auto: rotation where the first label budget has at most 250 labels per class, nothing above that.
    For images."""
    epochs: Annotated[float, Field(gt=0)] = 8.0
    """Passes over the pool."""
    macs: Annotated[float, Field(gt=0)] | None = None
    """Multiply-accumulates that it may take, in place of `epochs`."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Samples per optimizer step, over all workers together."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate of SGD (Nesterov momentum 0.9) at this batch size: 5 % of the steps of warm-up, then cosine to
    zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """L2 penalty on weights (not on biases and normalization parameters)."""
    precision: Precision = "auto"
    """Arithmetic of the forward and backward pass: auto is bf16 (autocast) where the device has it in hardware."""

    @property
    def used(self) -> bool:
        return self.method != "none"


class Workers(Section):
    """Where training runs."""

    count: tuple[Positive, Positive] = (1, 1)
    """Smallest and largest number of training workers; they differ in elastic training. [1, 1] on one machine
    trains inside the driver, without the start-up of a worker group."""
    cpus: Positive = 1
    """CPUs of one training worker."""
    gpu: bool = False
    """One GPU per training worker."""
    sample_memory_gb: Annotated[float, Field(ge=0)] = 8.0
    """Memory (GiB) for the decoded labeled samples in one training worker; a larger set is decoded once into a file in
    the temporary directory (TMPDIR) of its node. Unlabeled samples (pretraining, unlabeled) may take as much again."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Worker failures that training survives, each going on from the last epoch's checkpoint; -1: any number."""

    @field_validator("count")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        return min_max(value)
