"""What a run is: one typed, validated tree. `config/files.py` reads it from YAML and command-line overrides.

Every field has a default, so that the empty configuration is the embedded example (scikit-learn's digits).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationInfo,
    model_validator,
)

from prunefuse_ray.acquisition import AUTO as AUTO_STRATEGY
from prunefuse_ray.acquisition import auto
from prunefuse_ray.config.following import TEXTS, with_following
from prunefuse_ray.config.names import Named
from prunefuse_ray.config.networks import Distillation, Fusion, Network, Pruning, encoder_folder
from prunefuse_ray.config.pool import Pool
from prunefuse_ray.config.scoring import Prepared, Scoring
from prunefuse_ray.config.section import Address, PathOrUri, Positive, Section, unread
from prunefuse_ray.config.selection import Selection
from prunefuse_ray.config.sources import (
    POOL_SOURCES,
)
from prunefuse_ray.config.training import Coreset, Pretraining, Recipe, Workers
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.networks.fusion import FUSION_RULES
from prunefuse_ray.tasks import TASKS
from prunefuse_ray.tracking import TRACKERS

TrackerName = Annotated[str, Named(registry=TRACKERS, describe=lambda tracker: tracker.about)]
TaskName = Annotated[str, Named(registry=TASKS, describe=lambda task: task.about)]


IMAGE_FIELDS = (
    "image_column", "channels", "image_size", "other_sizes", "crop_ratio", "value_range", "max_pixels", "mean", "std",
)  # fmt: skip
TEXT_FIELDS = ("text_length", "text_form")
"""Fields of `pool` that other kinds of samples do not read."""


class Run(Section):
    """Where the run lives and what makes it repeatable."""

    name: str = Field("digits", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its directory is DIRECTORY/NAME."""
    directory: PathOrUri = "runs"
    """Parent of run directories: a local path, or a URI (s3://, gs://) that every node can reach."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of initialization, initial set, shuffling and augmentation: the same seed gives the same selected ids."""
    store_patience: float = Field(60.0, gt=0)
    """Seconds for which a request to an object store is tried again, with growing pauses, before the run ends with a
    message; the same command resumes."""
    trackers: list[TrackerName] = Field([])
    """Where the metrics of every round are logged besides the run directory: names of `prunefuse list trackers`
    (tensorboard, mlflow, wandb), or module:name for one of your own. They are configured by their own environment
    variables. A sweep has `loggers` instead."""
    retries: int = Field(3, ge=0)
    """How often a run is restarted automatically after Ray or the driver has died. Only where this command starts Ray
    on this machine; a job on a cluster is submitted again (RayJob: backoffLimit)."""


class Annotation(Section):
    """Who gives the labels."""

    renamed = {"picture_url": "image_url", "picture_size": "image_size"}

    kind: Literal["oracle", "files", "label_studio"] = "oracle"
    """oracle (pool.label_column; for benchmarks), files (people label in the browser with `prunefuse label`, or fill in
    a table, a round at a time), label_studio (a Label Studio server). While labels are awaited the command ends with
    exit code 3; the same command resumes the run."""
    labels_per_sample: Positive = 1
    """Labels by different annotators that a sample needs; the majority counts. Not for oracle."""
    accept_partial: bool = False
    """Go on with the labels that are there at the end of `wait` (`--accept-partial`): samples that nobody answered
    return to the pool."""
    wait: Annotated[float, Field(ge=0)] = 0.0
    """Seconds to wait for labels, looking again and again, before the command ends with exit code 3."""
    url: PathOrUri | None = Field(None, pattern=r"^https?://")
    """Address of the Label Studio server. Its token comes from the environment variable LABEL_STUDIO_API_KEY alone."""
    image_url: Address | None = None
    """Where annotators' browsers find the images, with {id} in it. Default: images travel inside the tasks."""
    image_size: Positive = 1024
    """Longer side in pixels to which larger images are scaled down when they travel inside Label Studio's tasks."""

    @model_validator(mode="after")
    def _complete(self, info: ValidationInfo) -> Annotation:
        if self.kind == "label_studio" and self.url is None:
            raise ValueError("url is missing: kind 'label_studio' needs it; set annotation.url")
        if self.image_url is not None and "{id}" not in self.image_url:
            raise ValueError(f"image_url '{self.image_url}' names no sample: put {{id}} where the id belongs")
        if self.kind == "oracle" and self.labels_per_sample > 1:
            fault = f"labels_per_sample {self.labels_per_sample} is for labels of people, and kind 'oracle' has one"
            self = unread(self, info, "labels_per_sample", f"{fault}: leave it out")
        for field in ("url", "image_url"):
            if self.kind != "label_studio" and getattr(self, field) is not None:
                self = unread(self, info, field, f"{field} is for kind 'label_studio', not '{self.kind}': leave it out")
        return self


class Report(Section):
    """The baseline that a finished run is compared with."""

    baseline: bool = True
    """Also fit the simplest model anyone would try on the same labels, and test it on the same test set: TF-IDF of
    words and pairs (texts), k-means features of patches (images), the vectors themselves, each with logistic regression
    (of numbers ridge regression). On large sets a part is used, and the run says so. Takes a minute or two."""


class Config(Section):
    """A whole run."""

    task: TaskName = "classification"
    """What the network is trained for, or module:name for a task of your own."""
    run: Run = Run()
    pool: Pool = Pool.model_validate({})
    annotation: Annotation = Annotation()
    network: Network = Network()
    pruning: Pruning = Pruning()
    selection: Selection = Selection()
    pretraining: Pretraining = Pretraining()
    """What the proxy learns from the pool before any label."""
    training: Recipe = Recipe()
    """The proxy's training, in every round from its initial weights."""
    finetuning: Recipe = Recipe()
    """The target network's training after fusion."""
    coreset: Coreset = Coreset()
    workers: Workers = Workers()
    fusion: Fusion = Fusion()
    distillation: Distillation = Distillation()
    scoring: Scoring = Scoring()
    prepared: Prepared = Prepared()
    report: Report = Report()

    @property
    def distilled(self) -> bool:
        """Whether the target learns from the proxy, too; one from scratch has none."""
        return self.distillation.weight > 0 and self.fusion.target == "fused"

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, tree: Any) -> Any:
        return with_following(tree) if isinstance(tree, Mapping) else tree

    @model_validator(mode="after")
    def _strategy_of_task(self) -> Config:
        known = TASKS[self.task].strategies
        for field in ("strategy", "initial"):
            name = getattr(self.selection, field)
            try:
                [known[n] for n in (auto.NEEDED if name == AUTO_STRATEGY else (name,))]
            except (KeyError, ConfigError):
                raise ValueError(
                    f"selection.{field} '{name}' makes no sense for task '{self.task}'; use one of {', '.join(known)}"
                ) from None
        return self

    @model_validator(mode="after")
    def _classes(self) -> Config:
        fewest, classes = TASKS[self.task].fewest_classes, self.pool.classes
        if (count := len(classes) if isinstance(classes, list) else classes) is not None and count < fewest:
            raise ValueError(f"pool.classes {classes} makes {count}: task '{self.task}' needs at least {fewest}")
        for field, recipe in (("training", self.training), ("finetuning", self.finetuning)):
            if TASKS[self.task].numbers and recipe.label_smoothing:
                raise ValueError(
                    f"{field}.label_smoothing {recipe.label_smoothing:g} spreads probability over classes, and task "
                    f"'{self.task}' has none: set it to 0"
                )
        return self

    @model_validator(mode="after")
    def _one_class(self) -> Config:
        task = TASKS[self.task]
        if task.one_class:
            return self
        selection, annotation = self.selection, self.annotation
        for field, value, unset in (
            ("selection.per_group", not task.by_group and selection.per_group == "predicted" and "predicted", "null"),
            ("selection.class_balance", selection.class_balance, "0"),
            ("selection.wanted_classes", selection.wanted_classes, "[]"),
            ("annotation.kind", not task.several and annotation.kind == "label_studio" and "label_studio", "files"),
            ("annotation.labels_per_sample", annotation.labels_per_sample > 1 and annotation.labels_per_sample, "1"),
            ("coreset.by", self.coreset.used and self.coreset.by, "none"),
            ("training.unlabeled.method", self.training.unlabeled.used and self.training.unlabeled.method, "none"),
            (
                "finetuning.unlabeled.method",
                self.finetuning.unlabeled.used and self.finetuning.unlabeled.method,
                "none",
            ),
        ):
            if value:
                raise ValueError(
                    f"{field} {value} goes by the one class of a sample, and task '{self.task}' has no such class: set "
                    f"it to {unset}"
                )
        return self

    @model_validator(mode="after")
    def _pixels(self, info: ValidationInfo) -> Config:
        task, selection = TASKS[self.task], self.selection
        if not task.pixels and selection.pixel_share < 1:
            raise ValueError(
                f"selection.pixel_share {selection.pixel_share:g} is of the pixels of an image, and task '{self.task}' "
                "has one label for the whole: leave it out"
            )
        if not task.pixels:
            if self.pool.mask_folder is not None:
                fault = f"pool.mask_folder holds masks, which task '{self.task}' does not read: leave it out"
                return self.model_copy(update={"pool": unread(self.pool, info, "mask_folder", fault)})
            return self
        if self.pool.text_column is not None or self.pool.vector_column is not None:
            raise ValueError(f"task '{self.task}' is for images: leave out pool.text_column and pool.vector_column")
        for field, value, unset in (
            ("selection.min_distance", selection.min_distance, "null"),
            ("selection.hold_back", selection.hold_back, "null"),
            ("scoring.features", self.scoring.features, "false"),
            ("pretraining.method", self.pretraining.used and self.pretraining.method, "none"),
        ):
            if value:
                raise ValueError(
                    f"{field} {value} reads one vector of features an image, which networks of task '{self.task}' do "
                    f"not give: set it to {unset}"
                )
        for section, recipe in (("training", self.training), ("finetuning", self.finetuning)):
            if wrong := [kind for kind in recipe.augment if kind not in ("crop", "flip")]:
                raise ValueError(
                    f"{section}.augment {wrong[0]} does not keep masks on their pixels: use crop and flip alone"
                )
        return self

    @model_validator(mode="after")
    def _features(self) -> Config:
        self.scoring.check_backend(features=self.scoring.features or self.selection.needs_features)
        return self

    @model_validator(mode="after")
    def _grouped(self) -> Config:
        if (self.selection.per_group == "group") != (self.pool.group_column is not None):
            raise ValueError(
                f"selection.per_group is {self.selection.per_group or 'not set'} and pool.group_column is "
                f"{self.pool.group_column or 'not set'}: groups need both per_group 'group' and the column that names "
                "them"
            )
        return self

    @model_validator(mode="after")
    def _modality(self, info: ValidationInfo) -> Config:
        of_images = self.pool.text_column is None and self.pool.vector_column is None
        others = TEXT_FIELDS if of_images else (*IMAGE_FIELDS, *(TEXT_FIELDS[:1] if self.pool.vector_column else ()))
        own = POOL_SOURCES[self.pool.source].defaults
        for name in others:
            if getattr(self.pool, name) != own.get(name, Pool.model_fields[name].default):
                what = "texts" if name in TEXT_FIELDS else "images"
                fault = f"pool.{name} is for {what}, but these samples are not {what}: leave it out"
                pool = unread(self.pool, info, name, fault)
                self = self.model_copy(update={"pool": pool})
        architecture = self.network.architecture
        encoder = encoder_folder(architecture) is not None
        if encoder and self.pool.text_column is None:
            raise ValueError(
                f"network.architecture '{architecture}' reads texts: set pool.text_column, or name another network"
            )
        if self.pool.tokenizer is not None and not encoder:
            raise ValueError(
                f"pool.tokenizer is for network.architecture transformers:FOLDER, not '{architecture}': leave it out"
            )
        if encoder and self.pool.tokenizer is None:
            raise ValueError(f"pool.tokenizer null leaves '{architecture}' without tokens: leave it out")
        if self.pool.text_column is None and self.pool.vector_column is None:
            return self
        for field, recipe in (("training", self.training), ("finetuning", self.finetuning)):
            if recipe.augment:
                raise ValueError(f"{field}.augment {recipe.augment} is for images: set it to [] for others")
            if recipe.unlabeled.used:
                raise ValueError(
                    f"{field}.unlabeled.method '{recipe.unlabeled.method}' has views of images only: set it to none "
                    "for others"
                )
        if self.pretraining.used:
            raise ValueError(f"pretraining.method '{self.pretraining.method}' is for images: set it to none for others")
        if self.pool.text_form != ("tokens" if encoder else "ngrams" if architecture == TEXTS else "bytes"):
            raise ValueError(
                f"pool.text_form '{self.pool.text_form}' is not what network.architecture '{architecture}' reads: "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _stoppable(self) -> Config:
        validated = self.pool.validation_path is not None or self.pool.validation_share > 0
        for field, recipe in (("training", self.training), ("finetuning", self.finetuning)):
            if recipe.patience and not validated:
                raise ValueError(
                    f"{field}.patience {recipe.patience} needs a validation set: set pool.validation_path or "
                    "pool.validation_share"
                )
        return self

    @model_validator(mode="after")
    def _augmentable(self) -> Config:
        for field, recipe in (("training", self.training), ("finetuning", self.finetuning)):
            if {"crop", "resized_crop"} <= set(recipe.augment):
                raise ValueError(f"{field}.augment has both crop and resized_crop: leave one out")
            for augmentation, why in POOL_SOURCES[self.pool.source].label_changing.items():
                if augmentation in recipe.augment:
                    raise ValueError(
                        f"{field}.augment '{augmentation}' {why}: leave it out for pool.source {self.pool.source}"
                    )
        return self

    @model_validator(mode="after")
    def _shareable(self) -> Config:
        workers = self.workers.count[1]
        for field, size in (
            ("training.batch_size", self.training.batch_size),
            ("finetuning.batch_size", self.finetuning.batch_size),
            *([("pretraining.batch_size", self.pretraining.batch_size)] if self.pretraining.used else []),
            ("selection.budgets", self.selection.budgets[0]),
        ):
            if size < workers:
                raise ValueError(
                    f"{field} {size} leaves some of {workers} workers without samples: raise it or lower workers.count"
                )
        if self.pretraining.method == "vicreg" and self.pretraining.batch_size < 2 * workers:
            raise ValueError(
                f"pretraining.batch_size {self.pretraining.batch_size} leaves some of {workers} workers without two "
                "samples to tell apart: raise it or lower workers.count"
            )
        return self

    @model_validator(mode="after")
    def _fusable(self) -> Config:
        if self.fusion.sync_every and self.fusion.target != "fused":
            raise ValueError("fusion.sync_every prunes a fused network, but fusion.target is 'scratch': set it to 0")
        if self.selection.selector != "proxy" and self.fusion.target == "fused":
            raise ValueError(
                f"fusion.target 'fused' needs a pruned proxy, but selection.selector is '{self.selection.selector}': "
                "set fusion.target to scratch"
            )
        members, known = self.pruning.committee, TASKS[self.task].strategies
        asked = [s.members for s in self.selection.later]
        asked += [known[name].members for name in known if name == self.selection.strategy]
        masks = self.selection.dropout_masks
        if any(asked) and members == 1 and not masks:
            raise ValueError(
                f"selection.strategy '{self.selection.strategy}' asks the members of a committee: set "
                "pruning.committee to 2 or more, or selection.dropout_masks to 10, say"
            )
        if masks and members > 1:
            raise ValueError(
                f"selection.dropout_masks {masks} and pruning.committee {members} are two committees: set the first to "
                "0, or the second to 1"
            )
        if masks and not any(asked):
            raise ValueError(
                f"selection.dropout_masks {masks} is for strategies that ask a committee, which "
                f"'{self.selection.strategy}' does not: use one of "
                f"{', '.join(n for n, s in known.items() if s.members and not s.select)}, or set it to 0"
            )
        if masks and self.scoring.features:
            raise ValueError("selection.dropout_masks gives no features: set scoring.features to false")
        if masks and any(known[n].members and known[n].select for n in known if n == self.selection.strategy):
            raise ValueError(
                f"selection.dropout_masks gives no features, which '{self.selection.strategy}' reads: use another "
                "strategy, or a committee of proxies (pruning.committee)"
            )
        if members > 1 and self.selection.selector != "proxy":
            raise ValueError(
                f"pruning.committee {members} is of proxies, but selection.selector is '{self.selection.selector}': "
                "set the first to 1, or the second to proxy"
            )
        if members > 1 and not FUSION_RULES[self.fusion.rule].committees:
            raise ValueError(
                f"fusion.rule '{self.fusion.rule}' takes no committee: use one that does, such as keep, or set "
                "pruning.committee to 1"
            )
        return self
