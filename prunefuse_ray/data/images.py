"""Images to tensors: uint8 of one shape, from encoded bytes (`image_files.py`) or arrays; no Ray.

Anything that cannot be read is a reason, not an exception: bad samples must not stop a pool of millions.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from prunefuse_ray.data.colors import Colors, Range
from prunefuse_ray.data.image_files import (
    MOST_PIXELS,
    cannot,
    check_pixels,
    conversions,
    opened,
    orientation,
    upright,
    upright_size,
    with_end_mark,
)
from prunefuse_ray.errors import Rejected
from prunefuse_ray.schemas import is_list
from prunefuse_ray.tasks.segmentation import decoded as decoded_mask

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]
NARROW = 50
"""An image so many times as long as it is wide has its middle cut out before it is scaled."""
DARK = 32
"""An image of more than 8 bits whose largest value comes out below this, of 255, was hardly made for the range of its
type."""


@dataclass(frozen=True, kw_only=True)
class ImageForm:
    """What every image is brought to: uint8 (height, width, channels)."""

    height: int
    width: int
    channels: int
    resize: bool = True
    crop_ratio: float = 1.0
    """Share of the scaled image's shorter side that the center crop keeps; below 1, every image is scaled."""
    max_pixels: int = 50_000_000
    value_range: Range | None = None
    """Values of images of more than 8 bits that become black and white; None: `colors.eight_bits`."""
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """(channels, height, width): the input shape of the network."""
        return self.channels, self.height, self.width

    @property
    def uncropped(self) -> ImageForm:
        """The form of the whole scaled image (its center square, for a square form): what random crops are cut
        from."""
        height, width = round(self.height / self.crop_ratio), round(self.width / self.crop_ratio)
        return replace(self, height=height, width=width, crop_ratio=1.0)

    def decode(self, value: object) -> Pixels:
        """One sample as uint8 (H, W, C); see `read`."""
        return read(value, self)[0]

    def read(self, value: object) -> tuple[Pixels, tuple[str, ...]]:
        """One sample as uint8 (H, W, C), and what was converted, by kind; see `read`."""
        return read(value, self)

    def mask(self, data: bytes, left_out: int) -> Pixels:
        """A mask of class numbers, an encoded image, as uint8 (H, W): scaled and cropped as its image is, where each
        pixel has the number of one of the mask's.

        Args:
            left_out: what stands where an image of another size would be rejected.
        """
        plain = Image.fromarray(decoded_mask(data))
        if plain.size == (self.width, self.height) and self.crop_ratio == 1:
            return np.asarray(plain)
        if not self.resize:
            return np.full((self.height, self.width), left_out, np.uint8)
        return np.asarray(_resize(plain, self, Image.Resampling.NEAREST))

    def look(self, data: bytes) -> tuple[tuple[int, int], tuple[str, ...]]:
        """(height, width) of an encoded image as people see it, and what will be converted, by the head of the file.

        Raises:
            Rejected: with the reason.
        """
        with opened(data, self.max_pixels) as image:
            try:
                found = conversions(image, self.channels)
                _depth(image, found, self)
                return upright_size(image)[::-1], found
            except Rejected:
                raise
            except Exception as error:  # as in `_decoded`: some heads are read when they are asked for
                raise Rejected(cannot(error)) from error

    def inputs(self, pixels_NHWC: Tensor) -> Tensor:
        """uint8 (N, H, W, C) as the network's input: (pixel / 255 - mean) / std, float32 (N, C, H, W)."""
        width, channels = pixels_NHWC.shape[2:]
        x = pixels_NHWC.float().flatten(2)  # rows of W x C numbers: C alone torch would take three at a time
        scale = x.new_tensor([1.0 / (255.0 * s) for s in self.std]).expand(channels).repeat(width)
        shift = x.new_tensor([m / s for m, s in zip(self.mean, self.std, strict=True)]).expand(channels).repeat(width)
        # In place: of photographs each copy is as much fresh memory as the network's own input.
        return x.mul_(scale).sub_(shift).unflatten(2, (width, -1)).permute(0, 3, 1, 2)


NO_PATHS = "a string in place of an image: write the bytes of the file, not its path or base64"


def read(value: object, form: ImageForm) -> tuple[Pixels, tuple[str, ...]]:
    """One sample as uint8 (H, W, C), and what was converted, by kind.

    Args:
        value: an encoded image, a Pillow image, or an array that already has that shape. Images are brought to the
            form's mode as `image_files.py` says. One of another size has its shorter side scaled to the form (divided
            by `form.crop_ratio`) and its center cropped, if `form.resize`. Arrays are never scaled.

    Raises:
        Rejected: with the reason.
    """
    if value is None:
        raise Rejected("no image: null, or its file could not be read")
    if isinstance(value, bytes | bytearray | memoryview):
        return _read_encoded(bytes(value), form)
    if isinstance(value, Image.Image):
        check_pixels(value, form.max_pixels)
        try:
            value.load()  # or it would be decoded at a fraction of its size, for its owner too
        except Exception as error:  # whatever a codec raises, or a file that is closed
            raise Rejected(cannot(error)) from error
        return _decoded(value, form)
    if isinstance(value, str):
        raise Rejected(NO_PATHS)
    pixels = np.asarray(value)
    if pixels.dtype != np.uint8:
        raise Rejected(f"tensor of {pixels.dtype}, expected uint8")
    if pixels.ndim == 2 and form.channels == 1:
        pixels = pixels[:, :, None]
    if pixels.shape != form.shape:
        raise Rejected(f"tensor of shape {pixels.shape}, expected {form.shape} (height, width, channels)")
    return pixels, ()


def _read_encoded(data: bytes, form: ImageForm) -> tuple[Pixels, tuple[str, ...]]:
    with opened(data, form.max_pixels) as image:
        try:
            return _decoded(image, form)
        except Rejected:
            if image.format not in ("JPEG", "MPO") or (mended := with_end_mark(data)) is None:
                raise
    with opened(mended, form.max_pixels) as image:
        pixels, kinds = _decoded(image, form)
    return pixels, (*kinds, "JPEG without its end mark")


def _decoded(image: Image.Image, form: ImageForm) -> tuple[Pixels, tuple[str, ...]]:
    try:
        found = conversions(image, form.channels)
        deep, gray = _depth(image, found, form)
        if not form.resize and (size := upright_size(image)) != (form.width, form.height):
            raise Rejected(f"{size[0]} x {size[1]} pixels, expected {form.width} x {form.height}")
        colors, turn = Colors(image, form.channels), orientation(image)
        # Lets a JPEG decode at a half, quarter or eighth of its size when that is still large enough.
        whole = form.uncropped
        wanted = (whole.width, whole.height)
        image.draft(colors.working_mode, wanted if upright_size(image) == image.size else wanted[::-1])
        image.load()
        converted = upright(colors.working(image, form.value_range), turn)
        if converted.size != (form.width, form.height) or form.crop_ratio < 1:
            converted = _resize(converted, form)
        pixels = np.asarray(colors.finished(converted))
    except Rejected:
        raise
    # Pillow's decoders raise whatever their parser meets in damaged data; each means the same here.
    except Exception as error:
        raise Rejected(cannot(error)) from error
    if deep and form.value_range is None and pixels.max() < DARK:
        remedy = "pool.value_range may say better" if gray else "write it with 8 bits"
        found = (*found, f"16 bits to 8, near black: {remedy}")
    return pixels[:, :, None] if pixels.ndim == 2 else pixels, found


def _depth(image: Image.Image, found: Sequence[str], form: ImageForm) -> tuple[bool, bool]:
    """Whether an image has more than 8 bits a channel, and is gray; Rejected where it has a range that cannot be kept
    to."""
    deep, gray = any(kind.startswith(("16 bits", "32-bit")) for kind in found), image.mode[0] in "IF"
    if deep and not gray and form.value_range is not None:
        raise Rejected(
            "more than 8 bits a channel in color or with alpha, of which the upper 8 are read: pool.value_range is for "
            "gray; write it with 8 bits"
        )
    return deep, gray


def _resize(image: Image.Image, form: ImageForm, filter_: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """Scale so that the uncropped form fits inside, then crop the center."""
    whole = form.uncropped
    longer, shorter = max(image.size), min(image.size)
    if longer > NARROW * shorter:  # scaled whole, an image of 1 x 10,000 would take gigabytes
        image = _center(image, 2 * whole.width / whole.height, 2 * whole.height / whole.width)
    scale = max(whole.width / image.width, whole.height / image.height)
    w, h = max(whole.width, round(image.width * scale)), max(whole.height, round(image.height * scale))
    left, top = (w - form.width) // 2, (h - form.height) // 2
    scaled = image.resize((w, h), filter_)
    return scaled.crop((left, top, left + form.width, top + form.height))


def _center(image: Image.Image, wide: float, high: float) -> Image.Image:
    """The middle of a narrow image, at most so many times as wide as high, and as high as wide: more than the form's
    own crop keeps."""
    width, height = min(image.width, round(image.height * wide) + 2), min(image.height, round(image.width * high) + 2)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def image_size(value: object, channels: int) -> tuple[int, int]:
    """(height, width) of a sample; Rejected where it cannot be read."""
    if isinstance(value, bytes):
        with opened(value, MOST_PIXELS) as image:
            return upright_size(image)[::-1]
    if value is None:
        raise Rejected("no image (null)")
    if isinstance(value, str):
        raise Rejected(NO_PATHS)
    pixels = np.asarray(value)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != channels):
        raise Rejected(f"tensor of shape {pixels.shape}, expected (height, width, {channels})")
    return pixels.shape[0], pixels.shape[1]


PLAIN = (
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary,
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
)  # fmt: skip
"""Types of bytes and strings; Polars writes the large ones."""


def sample_values(column: pa.ChunkedArray) -> list[object]:
    """The column's values as bytes, arrays or None. Tensors may be Arrow's tensor types or nested lists."""
    column = plain_samples(column)
    if any(is_plain(column.type) for is_plain in PLAIN):
        return column.to_pylist()
    return [value for chunk in column.chunks for value in _arrays(chunk)]


def _arrays(chunk: pa.Array) -> list[object]:
    """Tensors and lists as arrays, None for a null."""
    kind = chunk.type
    if chunk.null_count:  # what stands in its place would be taken for a sample, or move the others
        there = chunk.is_valid()
        known = iter(_arrays(chunk.filter(there)))
        return [next(known) if one else None for one in there.to_pylist()]
    if isinstance(kind, pa.BaseExtensionType):
        to_tensor = getattr(chunk, "to_numpy_ndarray", None)  # pyarrow's fixed-shape tensors
        if to_tensor is None:
            return list(chunk.to_numpy(zero_copy_only=False))
        tensors, numbers = list(to_tensor()), chunk.storage.flatten()
        if not numbers.null_count:
            return tensors
        # Under a null lies any number; in a list it would be NaN.
        whole_N = numbers.is_valid().to_numpy(zero_copy_only=False).reshape(len(chunk), -1).all(axis=1)
        return [tensor if whole else None for tensor, whole in zip(tensors, whole_N, strict=True)]
    if is_list(kind) and pa.types.is_floating(kind.value_type):  # vectors, without an object for each number
        if pa.types.is_fixed_size_list(kind):
            return list(chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, kind.list_size))
        numbers = chunk.values.to_numpy(zero_copy_only=False)
        return [numbers[first:end] for first, end in itertools.pairwise(chunk.offsets.to_numpy().tolist())]
    return [_nested(value) for value in chunk.to_pylist()]


def plain_samples(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column itself; of a Hugging Face image column {bytes, path}, the bytes."""
    kind = column.type
    has_bytes = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return pc.struct_field(column, "bytes") if has_bytes else column


def _nested(value: object) -> object:
    try:
        pixels = np.asarray(value)
    except ValueError:  # ragged
        return np.zeros((0,), dtype=np.uint8)
    fits = pixels.dtype.kind in "iu" and pixels.size and pixels.min() >= 0 and pixels.max() <= 255
    return pixels.astype(np.uint8) if fits else pixels


def encode_png(pixels_HWC: Pixels) -> bytes:
    """uint8 (H, W, C) or (H, W) as PNG bytes."""
    return encode(pixels_HWC, format="PNG")


def encode(pixels_HWC: Pixels, **how: Any) -> bytes:
    """uint8 (H, W, C) or (H, W) as the bytes of an image file.

    Args:
        how: `format`, and what Pillow takes besides for it.
    """
    buffer = io.BytesIO()
    image = pixels_HWC[:, :, 0] if pixels_HWC.ndim == 3 and pixels_HWC.shape[2] == 1 else pixels_HWC
    Image.fromarray(image).save(buffer, **how)
    return buffer.getvalue()
