"""What a run is: one typed, validated tree. `config/files.py` reads it from YAML and command-line overrides.

Every field has a default, so that the empty configuration is the embedded example (scikit-learn's digits).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from prunefuse_ray.acquisition import AUTO as AUTO_STRATEGY
from prunefuse_ray.acquisition import STRATEGIES, Strategy, auto
from prunefuse_ray.config.names import Named
from prunefuse_ray.config.sources import (
    EXAMPLE,
    POOL_SOURCES,
    SOURCE_FIELDS,
    growing,
    source_defaults,
    taking,
)
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.networks.backends import AUTO, BACKENDS
from prunefuse_ray.networks.fusion import FUSION_RULES
from prunefuse_ray.networks.importance import IMPORTANCES
from prunefuse_ray.networks.specs import unknown_importance
from prunefuse_ray.tasks import TASKS

logger = logging.getLogger(__name__)

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
BackendName = Annotated[
    str,
    Named(
        registry=BACKENDS,
        describe=lambda backend: backend.help,
        besides={AUTO: "the fastest one for a large pool, torch for a small one"},
    ),
]
InitialName = Annotated[str, Named(registry=STRATEGIES, describe=lambda strategy: strategy.wants)]
StrategyName = Annotated[
    str,
    Named(
        registry=STRATEGIES,
        describe=lambda strategy: strategy.wants,
        besides={AUTO_STRATEGY: f"what the rule of {auto.__name__} says in each round"},
    ),
]
SourceName = Annotated[str, Named(registry=POOL_SOURCES, describe=lambda source: source.help)]
TaskName = Annotated[str, Named(registry=TASKS, describe=lambda task: task.about)]
FusionRuleName = Annotated[str, Named(registry=FUSION_RULES, describe=lambda rule: rule.help)]
Augmentation = Literal["crop", "resized_crop", "flip", "cutout"]


STORE_OPTIONS = {"endpoint_override", "region", "scheme", "tls_ca_file_path"}
"""What may stand in the query of a URI. Signatures, keys and tokens may not."""


def _no_credentials(value: str) -> str:
    """Paths are written to config.yaml, logs and reports; a secret in one would travel with them."""
    scheme, _, rest = value.partition("://")
    options = {part.partition("=")[0] for part in rest.partition("?")[2].split("&")} if "?" in rest else set()
    if "@" in rest.partition("/")[0] or (scheme != "file" and rest and options - STORE_OPTIONS):
        raise ValueError(
            "holds credentials, or an option that may be one; give credentials by the environment or the machine's "
            f"role, not in the path. After a question mark stand {', '.join(sorted(STORE_OPTIONS))} only; as a "
            "wildcard in a URI use * or [...]"
        )
    return value


def _as_int(value: Any) -> Any:
    """The command line gives strings, and a literal of integers takes none."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


PathOrUri = Annotated[str, AfterValidator(_no_credentials)]


def _each_without_credentials(value: str | list[str]) -> str | list[str]:
    """Checked after the choice between one and several: else the fault would be told with the value, twice."""
    for path in [value] if isinstance(value, str) else value:
        _no_credentials(path)
    if not value:
        raise ValueError("is empty; name a file, a directory or a pattern")
    return value


Paths = Annotated[str | list[str], AfterValidator(_each_without_credentials)]


RECORDED = "recorded"
"""Context of validation: the tree is not a person's, but what a run or a sweep has recorded."""


class Section(BaseModel):
    """A part of the tree: unknown keys are errors, and the docstrings under the fields are the command's help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
    renamed: ClassVar[Mapping[str, str]] = {}
    """Fields under the names that they had in earlier versions -> their names now."""

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, tree: Any, info: ValidationInfo) -> Any:
        """Earlier names are still read: with a note, but where they stand in what an earlier version recorded."""
        if not isinstance(tree, Mapping) or not (old := cls.renamed.keys() & tree.keys()):
            return tree
        for name in sorted(old if info.context != RECORDED else ()):
            logger.warning("%s: the field '%s' is now called '%s'", cls.__name__.lower(), name, cls.renamed[name])
        return {cls.renamed.get(name, name): value for name, value in tree.items()}


class Run(Section):
    """Where the run lives and what makes it repeatable."""

    name: str = Field("digits", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its directory is DIRECTORY/NAME."""
    directory: PathOrUri = "runs"
    """Parent of run directories: a local path, or a URI (s3://, gs://) that every node can reach."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of initialisation, initial set, shuffling and augmentation: the same seed gives the same selected ids."""
    store_patience: float = Field(60.0, gt=0)
    """Seconds for which a request to an object store is tried again, with growing pauses, before the run ends with a
    message; the same command goes on."""
    retries: int = Field(3, ge=0)
    """How often a run goes on by itself after Ray, or the driver, died under it. Only where this command starts Ray on
    this machine; a job on a cluster is submitted again (RayJob: backoffLimit)."""


class Pool(Section):
    """The unlabeled samples, the held-out test set, and how images become tensors. `prunefuse list sources` shows which
    of the fields a source takes."""

    unasked: ClassVar[tuple[str, ...]] = ()
    """Fields that a source needs and that are not needed here."""

    source: SourceName = EXAMPLE
    """Kind of pool, or module:name for one of your own."""
    path: Paths | None = None
    """Pool: a file, a directory, a pattern (train-*.parquet), or a list of them; local paths or URIs."""
    test_path: Paths | None = None
    """Held-out test set of the same form as the pool; never selected from, only reported."""
    validation_path: Paths | None = None
    """Validation set of the same form: each training keeps the weights of its best epoch on it."""
    validation_share: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Share of the labeled set that is held out as the validation set, the same samples in every round."""
    known_labels: PathOrUri | None = None
    """Labels that exist already: Parquet or CSV with columns id, label (a number or a class name). They belong to the
    initial set, and selection.budgets counts them."""
    id_column: str | None = "id"
    """Column of unique ids (string or integer); null: file name and row number."""
    image_column: str = "image"
    """Column of images: encoded (binary, or {bytes, path}) or uint8 tensors (height x width x channels). Of WebDataset,
    the extension of the member that is the sample's image (`jpg`, `left.jpg`); `image`: whichever is an image."""
    text_column: str | None = None
    """Column of texts (strings) in place of images; the network reads their bytes."""
    text_length: Positive = 1024
    """Bytes of a text that the network reads; longer texts are cut, shorter ones filled up."""
    label_column: str = "label"
    """Column of integer labels 0 .. classes-1, asked only for selected samples. Where people give the labels
    (annotation.kind), only the test set needs it."""
    group_column: str | None = None
    """Column of strings or integers (site, patient, camera, ...) by which `selection.per_group: group` shares out the
    choice; samples without a value are a group of their own."""
    sample_key: Literal["first_dot", "last_dot"] = "first_dot"
    """Where the key of a WebDataset sample ends in the names of its members: at the first dot, which is WebDataset's
    own rule, or at the last one, for names that hold dots themselves (cat.v2.0001.jpg)."""
    classes: Annotated[int, Field(ge=2)] | list[str] | None = None
    """Number of classes, or their names in the order of the labels. Default: what the files name."""
    channels: Annotated[Literal[1, 3], BeforeValidator(_as_int)] = 3
    """Channels of the network's input: 3 (RGB) or 1 (grey). Images of another mode are converted."""
    image_size: tuple[Positive, Positive] | None = None
    """Height and width of the network's input in pixels. Default: those of the pool's first readable image."""
    other_sizes: Literal["resize", "reject"] = "resize"
    """An image of another size: scale its shorter side and crop the centre, or record it as rejected."""
    crop_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the scaled image's shorter side that the centre crop keeps; torchvision's presets use 0.875 (256 to
    224)."""
    value_range: tuple[float, float] | None = None
    """Values of images of more than 8 bits that become black and white, such as [0, 4095] for 12 bits in 16. Default:
    the range of the type for 16 bits, 0..1 for floats; 32-bit integers and other floats are rejected without it."""
    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 50_000_000
    """An image with more pixels than this is rejected unread (decompression bombs); Pillow itself opens none of more
    than 178,956,970."""
    max_rejected: Share = 0.01
    """Share of the pool that may be unreadable before the run stops."""
    max_overlap: Share = 0.01
    """Share of the test set, or of the validation set, whose very bytes may also lie in the pool. They are counted and
    named; above this the run is refused. A file or an id in both is always refused."""
    mean: list[float] = [0.5]
    """Per-channel mean that is subtracted from pixels scaled to 0..1; one value serves all channels."""
    std: list[Annotated[float, Field(gt=0)]] = [0.25]
    """Per-channel standard deviation that pixels are divided by; one value serves all channels."""
    allow_growth: bool = False
    """Take in new files that appear in the pool between two rounds. Removed or changed files stay an error."""

    @field_validator("path", "test_path", "validation_path", mode="before")
    @classmethod
    def _single(cls, value: Any) -> Any:
        """One path is one path, whether it came from a file or from the command line, which makes a list of it."""
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    @field_validator("classes", mode="before")
    @classmethod
    def _number_of_classes(cls, value: Any) -> Any:
        """The command line makes a list of what may be one."""
        return _as_int(value[0]) if isinstance(value, list) and len(value) == 1 else _as_int(value)

    @model_validator(mode="before")
    @classmethod
    def _as_the_source_has_it(cls, tree: Any) -> Any:
        return {**source_defaults(tree.get("source", EXAMPLE)), **tree} if isinstance(tree, Mapping) else tree

    @model_validator(mode="after")
    def _suits_the_source(self) -> Pool:
        source = POOL_SOURCES[self.source]
        for field in source.needs:
            if field not in self.unasked and getattr(self, field) is None:
                raise ValueError(f"{field} is missing: source '{self.source}' needs it; set pool.{field}")
        for field in SOURCE_FIELDS:
            if field not in source.fields and getattr(self, field) != Pool.model_fields[field].default:
                instead = " and use validation_share" if field == "validation_path" else ""
                raise ValueError(
                    f"{field} is for pool.source {taking(field)}, not '{self.source}': leave it out{instead}"
                )
        if self.allow_growth and not source.may_grow:
            raise ValueError(f"allow_growth is for pool.source {growing()}, not '{self.source}': set it to false")
        return self

    @model_validator(mode="after")
    def _complete(self) -> Pool:
        if self.validation_path is not None and self.validation_share:
            raise ValueError("validation_path and validation_share are both set: give one validation set")
        if self.crop_ratio < 1 and self.other_sizes == "reject":
            raise ValueError("crop_ratio crops scaled images, but other_sizes is 'reject': set one of them back")
        for field in ("mean", "std"):
            if len(getattr(self, field)) not in (1, self.channels):
                raise ValueError(
                    f"{field} has {len(getattr(self, field))} values: give one for all channels, or {self.channels}"
                )
        if self.value_range is not None and self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"value_range {list(self.value_range)}: give [black, white], the smaller value first")
        if isinstance(self.classes, list) and len(set(self.classes)) < max(2, len(self.classes)):
            raise ValueError("classes needs at least two different names")
        return self


class UntestedPool(Pool):
    """A pool that may stand alone, without a test set."""

    unasked: ClassVar[tuple[str, ...]] = ("test_path",)


class Annotation(Section):
    """Who gives the labels."""

    renamed = {"picture_url": "image_url", "picture_size": "image_size"}

    kind: Literal["oracle", "files", "label_studio"] = "oracle"
    """oracle (pool.label_column; for benchmarks), files (a CSV to fill in, a round at a time), label_studio (a Label
    Studio server). While labels are awaited the command ends with exit code 3; the same command again goes on."""
    labels_per_sample: Positive = 1
    """Labels by different annotators that a sample needs; the majority counts. Not for oracle."""
    accept_partial: bool = False
    """Go on with the labels that are there (`--accept-partial`): samples without one return to the pool."""
    wait: Annotated[float, Field(ge=0)] = 0.0
    """Seconds to wait for labels, looking again and again, before the command ends with exit code 3."""
    url: PathOrUri | None = Field(None, pattern=r"^https?://")
    """Address of the Label Studio server. Its token comes from the environment variable LABEL_STUDIO_API_KEY alone."""
    image_url: PathOrUri | None = None
    """Where annotators' browsers find the images, with {id} in it. Default: images travel inside the tasks."""
    image_size: Positive = 1024
    """Longer side in pixels to which larger images are scaled down when they travel inside Label Studio's tasks."""

    @model_validator(mode="after")
    def _complete(self) -> Annotation:
        if self.kind == "label_studio" and self.url is None:
            raise ValueError("url is missing: kind 'label_studio' needs it; set annotation.url")
        if self.image_url is not None and "{id}" not in self.image_url:
            raise ValueError(f"image_url '{self.image_url}' names no sample: put {{id}} where the id belongs")
        return self


class Network(Section):
    """The dense network: the one the user wants trained."""

    architecture: str = "resnet20"
    """resnet8/14/20/32/44/56/110/164, another built-in name, torchvision:NAME, or package.module:function for one's
    own."""
    weights: PathOrUri | None = None
    """Trained weights of the dense network (a path or URI): safetensors, or a checkpoint that holds tensors alone.
    The proxy is pruned from them; a head for another number of classes is made anew."""


def committee_ratio(pruning: Mapping[str, Any]) -> float | None:
    """The pruning ratio that follows from the fields of this section, not yet validated: that of its committee's
    members. None where it names no committee of two or more, or a ratio itself."""
    size = str(pruning.get("committee", 1))
    return 1 - 1 / int(size) if "ratio" not in pruning and size.isdecimal() and int(size) > 1 else None


class Pruning(Section):
    """How the proxy is cut out of the dense network at initialisation."""

    ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Pruning ratio: share of the channels of every layer that is removed."""
    importance: str = Field(
        "magnitude",
        description="What a channel is judged by: " + "; ".join(f"{n}: {i.about}" for n, i in IMPORTANCES.items()),
    )
    steps: Positive = 1
    """Number of pruning steps on the way to the ratio."""
    committee: Positive = 1
    """Disjoint proxies that together cover the dense network; above 1 the ratio is 1 - 1 / committee (its default
    then, also where a file or a sweep's base has another). They are trained side by side, vote, and are fused into one
    network."""
    round_to: Positive | None = None
    """Round kept channel counts down to a multiple of this (hardware); refused where a layer would stay unpruned."""

    @model_validator(mode="before")
    @classmethod
    def _even_shares(cls, tree: Any) -> Any:
        """The share that a committee leaves each member follows from its size."""
        ratio = committee_ratio(tree) if isinstance(tree, dict) else None
        return tree if ratio is None else {"ratio": ratio, **tree}

    @field_validator("importance")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in IMPORTANCES:
            raise ValueError(unknown_importance(value))
        return value

    @model_validator(mode="after")
    def _partition(self) -> Pruning:
        if self.committee > 1 and abs(self.ratio - (1 - 1 / self.committee)) > 1e-9:
            raise ValueError(
                f"ratio {self.ratio:g} does not make {self.committee} disjoint proxies: leave it out, or set it to "
                f"{1 - 1 / self.committee:g}"
            )
        if self.committee > 1 and (self.steps > 1 or self.round_to is not None):
            raise ValueError(
                f"committee {self.committee} is cut in one step and by equal shares: leave out steps and round_to"
            )
        return self


def _needs_no_training(strategy: Strategy) -> bool:
    """Whether it makes sense of the pool before any label: by chance, or by features alone."""
    return strategy.score is None or bool(strategy.select and not strategy.by_score and not strategy.gradients)


class Selection(Section):
    """Which samples get labeled, and how many."""

    strategy: StrategyName = "least_confidence"
    """Acquisition strategy: what makes a sample wanted. Or module:name for one of your own."""
    initial: InitialName = "random"
    """Strategy of the initial set. One that selects by features (typiclust, say) reads those of the selecting network
    before any training: worth it with trained weights (network.weights)."""
    per_group: Literal["predicted", "group"] | None = None
    """Choose equally many of each class that the network predicts (predicted), or of each value of pool.group_column
    (group), as far as there are so many. Only with strategies that score each sample for itself."""
    class_balance: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Prefer classes with few labels: the power of the inverse frequency of the class that the network expects, with
    which scores are multiplied; 0: no preference. Only with strategies that go by scores."""
    wanted_classes: list[str] = []
    """Classes, by name, of which more samples are wanted: scores of others count an eighth, under the strategy
    rare_classes nothing. Only with strategies that go by scores."""
    min_distance: Annotated[float, Field(gt=0)] | None = None
    """Leave out samples whose features are nearer than this (Euclidean distance) to a better one or a labeled one.
    Only with strategies that score each sample for itself."""
    hold_back: Annotated[float, Field(gt=0)] | None = None
    """Hold back samples that belong to no class: those that are farther, by features, from every labeled sample than
    this many times the distance within which 95 % of the labeled ones have another. For pools with foreign samples,
    once every class has labels; 2 is a careful start."""
    selector: str = Field("proxy", pattern=r"^(proxy|dense|svp:.+)$")
    """Network that selects: proxy (PruneFuse), dense (classic active learning), svp:ARCHITECTURE (another network)."""
    budgets: Annotated[list[Positive], Field(min_length=1)] = [50, 100, 150, 200, 250]
    """Label budgets, one per round, rising; the first is the random initial set, the last the whole budget."""

    @model_validator(mode="after")
    def _fair(self) -> Selection:
        for field in ("per_group", "min_distance"):
            value = getattr(self, field)
            refused = [s for s in self.later if s.score is None or s.select is not None]
            if value is not None and refused:
                why = "selects a set of its own" if refused[0].select is not None else "asks no network"
                others = [name for name, s in STRATEGIES.items() if s.score is not None and s.select is None]
                raise ValueError(
                    f"{field} {value} cannot be combined with strategy '{self.strategy}', which {why}: leave it out, "
                    f"or set strategy to one that scores each sample for itself ({', '.join(others)})"
                )
        if self.per_group is not None and self.min_distance is not None:
            raise ValueError(
                f"per_group {self.per_group} and min_distance {self.min_distance:g} cannot be combined: leave one out"
            )
        return self

    @model_validator(mode="after")
    def _weighable(self) -> Selection:
        for field in ("class_balance", "wanted_classes"):
            if getattr(self, field) and any(s.score is None or (s.select and not s.by_score) for s in self.later):
                able = [n for n, s in STRATEGIES.items() if s.score is not None and (s.by_score or not s.select)]
                raise ValueError(
                    f"{field} weighs scores, and strategy '{self.strategy}' does not go by them: leave it out, or set "
                    f"strategy to one of {', '.join(able)}"
                )
        if self.hold_back is not None and any(s.score is None for s in self.later):
            raise ValueError(f"hold_back {self.hold_back:g} reads features, and strategy '{self.strategy}' has none")
        if any(s.wanted for s in self.later) and not self.wanted_classes:
            raise ValueError(f"strategy '{self.strategy}' asks for classes: name them in selection.wanted_classes")
        if not _needs_no_training(STRATEGIES[self.initial]):
            able = [name for name, strategy in STRATEGIES.items() if _needs_no_training(strategy)]
            raise ValueError(f"initial '{self.initial}' asks a trained network: use one of {', '.join(able)}")
        return self

    @property
    def later(self) -> list[Strategy]:
        """The strategies by which the rounds after the initial set may select."""
        names = auto.STRATEGIES if self.strategy == AUTO_STRATEGY else (self.strategy,)
        return [STRATEGIES[name] for name in names]

    @property
    def needs_features(self) -> bool:
        """Whether any selection may read the penultimate features."""
        return any(map(self.reads_features, [*self.later, STRATEGIES[self.initial]]))

    def reads_features(self, strategy: Strategy) -> bool:
        """Whether a selection by `strategy` reads the penultimate features."""
        return strategy.select is not None or self.min_distance is not None or self.hold_back is not None

    def reads_labeled(self, strategy: Strategy) -> bool:
        """Whether it reads those of the labeled samples, too."""
        return strategy.labeled or self.min_distance is not None or self.hold_back is not None

    @field_validator("budgets")
    @classmethod
    def _rising(cls, value: list[int]) -> list[int]:
        if any(b <= a for a, b in itertools.pairwise(value)):
            raise ValueError(
                f"{value} does not rise: each budget counts all labels so far, so give e.g. [50, 100, 150]"
            )
        return value


class Recipe(Section):
    """How one network is trained."""

    epochs: Positive = 30
    """Passes over the labeled set."""
    min_steps: Annotated[int, Field(ge=0)] = 300
    """Fewest optimiser steps of a whole training. Where so few samples are labeled that `epochs` passes take fewer,
    each epoch passes over the labeled set several times; 0: never."""
    batch_size: Positive = 32
    """Samples per optimiser step, over all workers together."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate of SGD at this batch size."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's form of momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """L2 penalty on weights (not on biases and normalisation parameters)."""
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
    scaled), flip (left-right), cutout (a quarter square)."""
    smallest_crop: Annotated[float, Field(gt=0.0, le=1.0)] = 0.08
    """Smallest share of the image's area that resized_crop takes."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Epochs without a better validation accuracy after which training stops; 0: never. Needs a validation set."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward and backward pass: auto is bf16 (autocast) where the device has it in hardware."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Epochs between evaluations on the test set; 0: only after the last."""

    @model_validator(mode="after")
    def _schedule(self) -> Recipe:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} leaves nothing of {self.epochs} epochs: lower it below epochs"
            )
        if self.schedule == "step" and any(m >= self.epochs for m in self.milestones):
            raise ValueError(f"milestones {self.milestones} reach beyond the last of {self.epochs} epochs")
        return self


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
    the temporary directory (TMPDIR) of its node."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Worker failures that training survives, each going on from the last epoch's checkpoint; -1: any number."""

    @field_validator("count")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        return _min_max(value)


class Fusion(Section):
    """How the trained proxy goes back into the dense network."""

    rule: FusionRuleName = "keep"
    """What becomes of the weights that the proxy did not have."""
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor of the rule `scaled` on the weights that function_preserving sets to zero."""
    target: Literal["fused", "scratch"] = "fused"
    """Start of the target network: fused with the proxy, or the dense initialisation alone (comparisons)."""
    evaluate: Literal["last", "every"] = "last"
    """Train the target after the last round only, or after every round (an accuracy per label budget)."""
    sync_every: Annotated[int, Field(ge=0)] = 0
    """T_sync: every so many rounds the fused network is fine-tuned and pruned for the next rounds' proxy; 0: never."""


class Distillation(Section):
    """Knowledge distillation from the trained proxy while the fused network is fine-tuned."""

    weight: Share = 0.0
    """Weight w of the distillation term: loss = (1-w) CE + w T^2 KL(proxy || fused). The paper's method has one; by
    default it is off, since a teacher weaker than its pupil costs accuracy (README)."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Temperature T of both softmaxes."""
    decay: Literal["none", "linear"] = "linear"
    """Keep the weight, or let it fall linearly to zero over the fine-tuning."""


class Scoring(Section):
    """How the pool is scored."""

    actors: tuple[Positive, Positive] | None = None
    """Smallest and largest number of scoring actors. Default: from one to what the cluster's CPUs (GPUs) can hold,
    those that its autoscaler could add included."""
    cpus: Positive = 1
    """CPUs, and threads, of one scoring actor. It fixes the arithmetic: change it and last bits of scores change."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of one scoring actor; with a GPU, images are decoded by separate CPU tasks."""
    batch_size: Positive | None = None
    """Samples per forward pass; the last one is padded, so every pass has the same shape. Default: measured once for
    a large pool, 64 for a small one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of scoring (training has its own). auto: bf16 for a large pool where the device is fast in it."""
    backend: BackendName = AUTO
    """What runs the network."""
    features: bool = False
    """Also write each sample's penultimate features (float32)."""

    @field_validator("actors")
    @classmethod
    def _ordered(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        return None if value is None else _min_max(value)

    @model_validator(mode="after")
    def _possible(self) -> Scoring:
        self.check_backend(features=self.features)
        return self

    def check_backend(self, *, features: bool) -> None:
        """ValueError where the backend that was asked for cannot do what else is asked for."""
        if self.backend == AUTO:
            return
        device, precision = "cuda" if self.gpus else "cpu", None if self.precision == "auto" else self.precision
        if why := BACKENDS[self.backend].refusal(device=device, precision=precision, features=features):
            raise ValueError(f"scoring.backend: {why}")


class Prepared(Section):
    """The prepared pool: samples as they were decoded, kept for later passes, trials and trainings."""

    format: Literal["auto", "raw", "jpeg", "none"] = "auto"
    """raw (decoded bytes, exact), jpeg (photographs in about a fifth of the room; quality 95, which changes pixels a
    little), none (decode in every pass). auto: raw for images that are worth it."""
    directory: PathOrUri | None = None
    """Where it lies: a local path (each node then has its own), or a URI. Default: .prepared in run.directory, shared
    by all runs there."""
    max_gb: Annotated[float, Field(gt=0)] | None = None
    """GiB that all prepared pools there may take. What does not fit is decoded in every pass; what was used longest ago
    is removed. Default: 100, and no more than half of what is free on a local disk."""


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
    training: Recipe = Recipe()
    """The proxy's training, in every round from its initial weights."""
    finetuning: Recipe = Recipe()
    """The target network's training after fusion."""
    workers: Workers = Workers()
    fusion: Fusion = Fusion()
    distillation: Distillation = Distillation()
    scoring: Scoring = Scoring()
    prepared: Prepared = Prepared()

    @model_validator(mode="after")
    def _strategy_of_task(self) -> Config:
        known = TASKS[self.task].strategies
        for field in ("strategy", "initial"):
            name = getattr(self.selection, field)
            try:
                [known[n] for n in (auto.STRATEGIES if name == AUTO_STRATEGY else (name,))]
            except (KeyError, ConfigError):
                raise ValueError(
                    f"selection.{field} '{name}' makes no sense for task '{self.task}'; use one of {', '.join(known)}"
                ) from None
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
    def _modality(self) -> Config:
        if self.pool.text_column is None:
            return self
        for field, recipe in (("training", self.training), ("finetuning", self.finetuning)):
            if recipe.augment:
                raise ValueError(f"{field}.augment {recipe.augment} is for images: set it to [] for texts")
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
            ("selection.budgets", self.selection.budgets[0]),
        ):
            if size < workers:
                raise ValueError(
                    f"{field} {size} leaves some of {workers} workers without samples: raise it or lower workers.count"
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
        members = self.pruning.committee
        if any(s.members for s in self.selection.later) and members == 1:
            raise ValueError(
                f"selection.strategy '{self.selection.strategy}' asks the members of a committee: set "
                "pruning.committee to 2 or more"
            )
        if members > 1 and self.selection.selector != "proxy":
            raise ValueError(
                f"pruning.committee {members} is of proxies, but selection.selector is '{self.selection.selector}': "
                "set one of them back"
            )
        if members > 1 and not FUSION_RULES[self.fusion.rule].committees:
            raise ValueError(
                f"fusion.rule '{self.fusion.rule}' takes no committee: use one that does, such as keep, or set "
                "pruning.committee to 1"
            )
        return self


def _min_max(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] > value[1]:
        raise ValueError(f"{list(value)} has its minimum above its maximum: give [smallest, largest]")
    return value
