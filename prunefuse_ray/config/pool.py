"""The sections `pool`: the samples, the held-out sets, and how images become tensors."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from prunefuse_ray.config.names import Named
from prunefuse_ray.config.section import PathOrUri, Paths, Positive, Section, Share, as_int, unread
from prunefuse_ray.config.sources import (
    EXAMPLE,
    POOL_SOURCES,
    SOURCE_FIELDS,
    growing,
    source_defaults,
    taking,
)
from prunefuse_ray.errors import ConfigError


def _version(value: Any) -> Any:
    if isinstance(value, float):
        raise ValueError(f"{value} is a number with a point, which no version is: write the name of a tag in quotes")
    return as_int(value)


Version = Annotated[int | str | None, BeforeValidator(_version)]

SourceName = Annotated[str, Named(registry=POOL_SOURCES, describe=lambda source: source.help)]


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
    test_samples: Annotated[int, Field(ge=0)] = 0
    """Instead of test_path: draw this many samples of the pool, by a hash of their ids, as the test set. They get their
    labels together with the initial set (selection.budgets does not count them), and are never selected or
    learned from; the draw depends on no seed. Those of pool.known_labels that are drawn are labels of the test set."""
    validation_path: Paths | None = None
    """Validation set of the same form: each training keeps the weights of its best epoch on it."""
    validation_share: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Share of the labeled set that is held out as the validation set, the same samples in every round."""
    version: Version = None
    """Version of the table to read: a number (Delta, Lance), the id of a snapshot (Iceberg), or the name of a
    tag (Iceberg, Lance) or branch (Iceberg). Default: the newest one, which the run records. A run may go on with the
    version that it recorded when the table has changed since."""
    test_version: Version = None
    """The same for the table that test_path names."""
    validation_version: Version = None
    """The same for the table that validation_path names."""
    known_labels: PathOrUri | None = None
    """Labels that exist already: Parquet or CSV with columns id, label (a number or a class name). They belong to the
    initial set, and selection.budgets counts them."""
    id_column: str | None = "id"
    """Column of unique ids (string or integer); null: file name and row number."""
    image_column: str = "image"
    """Column of images: encoded (binary, or {bytes, path}) or uint8 tensors (height x width x channels). Of WebDataset,
    the extension of the member that is the sample's image (`jpg`, `left.jpg`); `image`: whichever is an image."""
    text_column: str | None = None
    """Column of texts (strings) in place of images."""
    vector_column: str | None = None
    """Column of vectors in place of images: lists of numbers, all of one length, such as the embeddings of a foundation
    model. Those with NaN or infinite numbers are rejected."""
    text_form: Literal["ngrams", "bytes", "tokens"] = "bytes"
    """What a network reads of a text: its words and pairs of words (ngrams), its bytes, or what `tokenizer` makes of it
    (tokens). Default: ngrams for textngrams (the default architecture of texts), tokens for transformers:FOLDER,
    bytes for others."""
    text_length: Positive = 1024
    """Distinct n-grams, or bytes or tokens, that the network reads of a text; longer texts are truncated, shorter ones
    padded. Default for tokens: 256."""
    tokenizer: PathOrUri | None = None
    """For text_form tokens: a tokenizer.json, or the folder that has one. Default: the encoder's folder, which
    network.architecture names. The run keeps a copy beside its networks."""
    label_column: str | Annotated[list[str], Field(min_length=2)] = "label"
    """Column of labels (integers 0 .. classes-1, names in `classes`, or what the task takes); read only for selected
    samples. Or several columns that together form one label: the targets of task regression, or a column of 0 and 1
    for each class of multi_label. If people give the labels (annotation.kind), only the test set needs it."""
    mask_folder: str | None = None
    """Of image folders, for task segmentation: the folder beside `path` (`test_path`, ...) that holds a PNG of the same
    name for every image, its mask: with path data/images and mask_folder masks, data/masks/a/1.png is the mask of
    data/images/a/1.jpg."""
    group_column: str | None = None
    """Column of strings or integers (site, patient, camera, ...) by which `selection.per_group: group` shares out the
    selection; samples without a value are a group of their own."""
    sample_key: Literal["first_dot", "last_dot"] = "first_dot"
    """How the key of a WebDataset sample is cut from a member's name: at the first dot (WebDataset's own rule) or at
    the last one, for names that contain dots (cat.v2.0001.jpg)."""
    classes: Annotated[int, Field(ge=1)] | list[str] | None = None
    """Number of classes, or their names in the order of the labels. Default: what the files name. For task regression
    those of the targets; default: label_column's."""
    channels: Annotated[Literal[1, 3], BeforeValidator(as_int)] = 3
    """Channels of the network's input: 3 (RGB) or 1 (gray). Images of another mode are converted."""
    image_size: tuple[Positive, Positive] | None = None
    """Height and width of the network's input in pixels. Default: those of the pool's first readable image."""
    other_sizes: Literal["resize", "reject"] = "resize"
    """An image of another size: scale its shorter side and crop the center, or record it as rejected."""
    crop_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the scaled image's shorter side that the center crop keeps; torchvision's presets use 0.875 (256 to
    224)."""
    value_range: tuple[float, float] | None = None
    """[black, white]: the values that become 0 and 255 in gray images of more than 8 bits, such as [0, 4095]. Default:
    the range of the type for 16 bits, 0..1 for floats; 32-bit integers and other floats are rejected without it."""
    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 50_000_000
    """An image with more pixels than this is rejected unread (decompression bombs); Pillow itself opens none of more
    than 178,956,970."""
    max_rejected: Share = 0.01
    """Share of the pool that may be unreadable before the run stops."""
    max_overlap: Share = 0.01
    """Share of the test set, or of the validation set, that may be in the pool too, byte for byte. Such samples are
    counted and named; above this share the run is refused. A file or an id in both is always refused."""
    mean: list[float] = [0.5]
    """Per-channel mean that is subtracted from pixels scaled to 0..1; one value serves all channels."""
    std: list[Annotated[float, Field(gt=0)]] = [0.25]
    """Per-channel standard deviation that pixels are divided by; one value serves all channels."""
    allow_growth: bool = False
    """Take in new files that appear in the pool between two rounds. Removed or changed files stay an error."""

    @field_validator("path", "test_path", "validation_path", "label_column", mode="before")
    @classmethod
    def _single(cls, value: Any) -> Any:
        """One of them is one, whether it came from a file or from the command line, which makes a list of it."""
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    @field_validator("classes", mode="before")
    @classmethod
    def _number_of_classes(cls, value: Any) -> Any:
        """The command line makes a list of what may be one."""
        alone = value[0] if isinstance(value, list) and len(value) == 1 else None
        return as_int(alone) if str(alone).isdecimal() else as_int(value)

    @model_validator(mode="before")
    @classmethod
    def _as_the_source_has_it(cls, tree: Any) -> Any:
        return {**source_defaults(tree.get("source", EXAMPLE)), **tree} if isinstance(tree, Mapping) else tree

    @model_validator(mode="after")
    def _suits_the_source(self, info: ValidationInfo) -> Pool:
        source = POOL_SOURCES[self.source]
        if self.test_samples and self.test_path is not None:
            raise ValueError("test_path and test_samples are both set: give one test set")
        if self.test_samples and "test_path" not in source.fields:
            raise ValueError(
                f"test_samples is for pools without a test set; source '{self.source}' has one: set it to 0"
            )
        drawn = ("test_path",) if self.test_samples else ()
        for field in source.needs:
            if field not in (*self.unasked, *drawn) and getattr(self, field) is None:
                instead = ", or pool.test_samples to draw one from the pool" if field == "test_path" else ""
                raise ValueError(f"{field} is missing: source '{self.source}' needs it; set pool.{field}{instead}")
        if source.needs_one and not any(getattr(self, field) is not None for field in source.needs_one):
            raise ValueError(
                f"{source.needs_one[0]} is missing: source '{self.source}' needs it, or "
                f"{' or '.join(source.needs_one[1:])}; set pool.{source.needs_one[0]}"
            )
        for field in SOURCE_FIELDS:
            if field not in source.fields and getattr(self, field) != Pool.model_fields[field].default:
                instead = " and use validation_share" if field == "validation_path" else ""
                raise ValueError(
                    f"{field} is for pool.source {taking(field)}, not '{self.source}': leave it out{instead}"
                )
        for name in ("test", "validation"):
            if getattr(self, f"{name}_version") is not None and getattr(self, f"{name}_path") is None:
                fault = f"{name}_version is of the table of {name}_path, which is not set: leave it out"
                self = unread(self, info, f"{name}_version", fault)
        if self.allow_growth and not source.may_grow:
            raise ValueError(f"allow_growth is for pool.source {growing()}, not '{self.source}': set it to false")
        if self.allow_growth and self.version is not None:
            raise ValueError("version and allow_growth are both set: what is pinned does not grow; leave one out")
        return self

    @model_validator(mode="after")
    def _complete(self) -> Pool:
        if self.validation_path is not None and self.validation_share:
            raise ValueError("validation_path and validation_share are both set: give one validation set")
        if self.text_column is not None and self.vector_column is not None:
            raise ValueError("text_column and vector_column are both set: a sample is one of them")
        if self.crop_ratio < 1 and self.other_sizes == "reject":
            raise ValueError("crop_ratio crops scaled images, but other_sizes is 'reject': set crop_ratio to 1")
        for field in ("mean", "std"):
            if len(getattr(self, field)) not in (1, self.channels):
                raise ValueError(
                    f"{field} has {len(getattr(self, field))} values: give one for all channels, or {self.channels}"
                )
        if self.value_range is not None and self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"value_range {list(self.value_range)}: give [black, white], the smaller value first")
        if isinstance(self.classes, list):
            # As labels are compared with them: without blanks around them, in one Unicode form.
            different = {unicodedata.normalize("NFC", name.strip()) for name in self.classes} - {""}
            if len(different) < max(1, len(self.classes)):
                raise ValueError(
                    f"classes {self.classes} names one twice, none, or one by an empty name: give different names"
                )
        if isinstance(self.label_column, list) and not POOL_SOURCES[self.source].several_label_columns:
            raise ValueError(f"label_column {self.label_column}: source '{self.source}' takes one: name one")
        if isinstance(self.label_column, list) and self.classes is not None:
            _check_columns(self.label_column, self.classes)
        return self


def check_scaled(pool: Pool) -> None:
    """ConfigError where images would be normalized as if their pixels went to 255. Of what begins anew: a run that has
    begun so cannot change it."""
    if max(*pool.mean, *pool.std) > 1:
        raise ConfigError(
            f"pool.mean {pool.mean} and pool.std {pool.std} are of pixels from 0 to 255, and here these are scaled to "
            "0..1: divide both by 255"
        )


def _check_columns(columns: list[str], classes: int | list[str]) -> None:
    """ValueError where several columns of labels are not those of the classes, one each in the same order."""
    names = classes if isinstance(classes, list) else [""] * classes
    if len(names) != len(columns):
        raise ValueError(f"label_column names {len(columns)} columns, classes {len(names)}: give one for each in order")
    for name, column in zip(names, columns, strict=True):
        if name != column and name in columns:
            raise ValueError(
                f"label_column and classes name '{name}' in another order: its column would be '{column}'; give both "
                "in the same order"
            )


class UntestedPool(Pool):
    """A pool that may stand alone, without a test set."""

    unasked: ClassVar[tuple[str, ...]] = ("test_path",)
