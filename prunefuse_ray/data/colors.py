"""The colors of images: more than 8 bits, other modes and other profiles brought to 8 bits, gray or sRGB; no Ray.

- **Colors** of another profile (Adobe RGB, Display P3, CMYK of a press) become sRGB's; without a profile Pillow's
  conversion holds. A profile that cannot be used is left aside.
- **Alpha** is dropped.
- **More than 8 bits**: 16-bit gray is scaled from the range of its type, floats from 0..1. Other floats, and 32-bit
  integers, have no range that all images of a pool share: they are rejected, unless `pool.value_range` gives one.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageCms

from prunefuse_ray.errors import Rejected

Range = tuple[float, float]
SAME = 2
"""A profile whose colors differ from sRGB's by no more than this, of 255, is sRGB."""


def eight_bits(image: Image.Image, value_range: Range | None = None) -> Image.Image:
    """Gray of more than 8 bits as L, anything else as it is.

    Args:
        value_range: the values that become black and white; default: those of the type (16 bits), or 0..1 (floats).

    Raises:
        Rejected: values that have no such range.
    """
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise Rejected("holds values that are not finite")
    low, high = value_range or _range(image, values)
    scaled = (values - low) / ((high - low) / 255)
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _range(image: Image.Image, values: np.ndarray) -> Range:
    least, most = float(values.min()), float(values.max())
    remedy = "set pool.value_range to the values that are black and white"
    if image.mode == "F":
        if least < 0 or most > 1:
            raise Rejected(f"32-bit floats from {least:g} to {most:g}, not within 0..1; {remedy}")
        return _as_meant(image, 1.0)
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # of these Pillow makes 16-bit values
        raise Rejected(f"32-bit integers from {least:g} to {most:g}; {remedy}")
    bits = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (16,))
    return _as_meant(image, float(2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1))


def _as_meant(image: Image.Image, largest: float) -> Range:
    """(black, white). In TIFF zero may be white; of 8 bits and fewer Pillow turns that round itself."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return (largest, 0.0) if tags.get(ExifTags.Base.PhotometricInterpretation) == 0 else (0.0, largest)


class Colors:
    """How one image gets to 8 bits, gray or RGB. In `working` mode it may be turned and scaled, which is cheaper than
    before it is converted; then it is `finished`."""

    def __init__(self, image: Image.Image, channels: int) -> None:
        self.mode = "RGB" if channels == 3 else "L"
        data = image.info.get("icc_profile")
        profile = profile_of(data) if data else _SRGB
        self.profile = profile if profile.transform and profile.fits(image.mode) else None

    @property
    def working_mode(self) -> str:
        return self.profile.mode if self.profile else self.mode

    def working(self, image: Image.Image, value_range: Range | None) -> Image.Image:
        gray = eight_bits(image, value_range)
        if (between := _BETWEEN.get(gray.mode)) is not None:
            gray = gray.convert(between)
        return gray.convert(self.working_mode)

    def finished(self, image: Image.Image) -> Image.Image:
        if self.profile is None or self.profile.transform is None:
            return image
        shown = ImageCms.applyTransform(image, self.profile.transform)
        assert shown is not None
        return shown.convert(self.mode)


_BETWEEN = {"La": "LA", "LAB": "RGB"}
"""Modes from which Pillow knows no direct way to gray."""
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SPOKEN_OF = {
    "RGB": frozenset({"RGB", "RGBA", "RGBa", "RGBX", "P", "PA"}),
    "L": frozenset({"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N"}),
    "CMYK": frozenset({"CMYK"}),
}


@dataclass(frozen=True)
class Profile:
    """A color profile."""

    mode: str = "RGB"
    """The mode that it speaks of."""
    transform: ImageCms.ImageCmsTransform | None = None
    """The way to sRGB; None where it is sRGB, or cannot be used."""
    readable: bool = True

    def fits(self, mode: str) -> bool:
        return mode in _SPOKEN_OF[self.mode]


_SRGB = Profile()


@lru_cache(maxsize=256)
def profile_of(data: bytes) -> Profile:
    """A profile as it stands in an image file."""
    try:
        read = ImageCms.ImageCmsProfile(io.BytesIO(data))
        mode = _SPACES[read.profile.xcolor_space]
        # Without its cache of the last pixel a transform may be used by several threads.
        transform = ImageCms.buildTransform(
            read, ImageCms.createProfile("sRGB"), mode, "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.NOCACHE,
        )  # fmt: skip
        return Profile(mode, None if _is_srgb(mode, transform) else transform)
    except Exception:  # LittleCMS and Pillow raise several kinds
        return Profile(readable=False)


def _is_srgb(mode: str, transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether colors all over the space come out as they went in."""
    if mode == "CMYK":
        return False
    ramp = np.arange(0, 256, 17, dtype=np.uint8)
    given = np.stack(np.meshgrid(ramp, ramp, ramp), -1).reshape(16, 256, 3) if mode == "RGB" else ramp[None]
    shown = ImageCms.applyTransform(Image.fromarray(given), transform)
    assert shown is not None
    same = given if mode == "RGB" else given[..., None]
    return bool(np.abs(np.asarray(shown).astype(int) - same).max() <= SAME)
