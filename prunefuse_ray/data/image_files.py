"""Images as people see them: which files can be opened, which way up they are, what has to be converted; no Ray.

Every image is brought to 8 bits, gray or RGB, by one rule: upright, as its EXIF orientation says and every browser
shows it; of animations and files with several pages the first frame; in the colors of `colors.py`. What was converted
is told by kind, so that it can be counted.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError, features

from prunefuse_ray.data.colors import Colors, Range, profile_of
from prunefuse_ray.errors import Rejected
from prunefuse_ray.storage import LFS_POINTER, LFS_REMEDY

OTHER_PROGRAMS = frozenset({"EPS", "WMF"})
"""Formats that Pillow hands to another program: what comes from a pool must start none."""
NOT_DECODED = frozenset({"BUFR", "GRIB", "HDF5", "MPEG"})
"""Formats that Pillow knows by name alone."""
UNTOLD = frozenset({"BLP", "ICNS", "ICO"})
"""Formats whose head does not say how large the image is: Pillow decodes it to tell."""
COMMON = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
"""Tried first."""
NEEDED = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
"""Format -> what Pillow has to be built with."""
PLUGINS = {".heic": "pillow_heif", ".heif": "pillow_heif", ".hif": "pillow_heif", ".avif": "pillow_avif",
           ".avifs": "pillow_avif", ".jxl": "pillow_jxl"}  # fmt: skip
"""Extension -> the module by which Pillow reads such files, where it does not by itself."""
PACKAGES = {"pillow_heif": "pillow-heif", "pillow_avif": "pillow-avif-plugin", "pillow_jxl": "pillow-jxl-plugin"}
BRANDS = {b"heic": "pillow_heif", b"heix": "pillow_heif", b"mif1": "pillow_heif", b"msf1": "pillow_heif",
          b"avif": "pillow_avif", b"avis": "pillow_avif"}  # fmt: skip
"""Brand in a file's first bytes -> likewise."""

NAMES = {"1": "black and white", "L": "gray", "P": "palette"}
ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
MOST_PIXELS = 178_956_970
"""Pillow's own limit: it opens no image of more pixels."""

# An image's size is checked against a limit of ours, and refused; a warning of Pillow's on top would only be noise.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pillow's own limit for a packed text or color profile, 1 MB, would reject images for the profile of a printing press.
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 2**20


# --- which files ----------------------------------------------------------------------------------------------------


@cache
def formats() -> tuple[str, ...]:
    """The formats that Pillow decodes here by itself, the most common first."""
    Image.init()
    for module in dict.fromkeys(PLUGINS.values()):
        _plug_in(module)
    known = [f for f in Image.OPEN if f not in OTHER_PROGRAMS | NOT_DECODED | UNTOLD]
    usable = [f for f in known if f not in NEEDED or features.check(NEEDED[f]) or _plugged_in(f)]
    return (*(f for f in COMMON if f in usable), *(f for f in usable if f not in COMMON))


@cache
def extensions() -> tuple[str, ...]:
    """The endings of files that can be decoded here, with their dots, the most common first."""
    known, usable = [".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"], formats()
    found = [e for e, format_ in sorted(Image.EXTENSION.items()) if {"MPO": "JPEG"}.get(format_, format_) in usable]
    return (*(e for e in known if e in found), *(e for e in found if e not in known))


def missing() -> Mapping[str, str]:
    """Extension -> the package that would have to be installed to read such files."""
    return {ending: PACKAGES[module] for ending, module in PLUGINS.items() if ending not in extensions()}


def _plug_in(module: str) -> bool:
    """Make a plugin known to Pillow; whether it is installed."""
    if importlib.util.find_spec(module) is None:
        return False
    plugin = importlib.import_module(module)  # the others register themselves
    if module == "pillow_heif":
        plugin.register_heif_opener()
    return True


def _plugged_in(format_: str) -> bool:
    return format_ == "AVIF" and importlib.util.find_spec("pillow_avif") is not None


def opened(data: bytes, max_pixels: int) -> Image.Image:
    """An image, its pixels not decoded yet.

    Raises:
        Rejected: no known format, or more pixels than allowed.
    """
    if not data:
        raise Rejected("empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=formats())
    except Image.DecompressionBombError as error:
        raise Rejected(f"decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        raise Rejected(f"not an image in a known format{_instead(data)}") from error
    # Pillow's parsers raise whatever they meet in damaged data; each means the same here.
    except Exception as error:
        raise Rejected(cannot(error)) from error
    check_pixels(image, max_pixels)
    return image


def _instead(data: bytes) -> str:
    """What it is that is no image, where it is something that often lies in an image's place."""
    if data.startswith(LFS_POINTER):
        return f": {LFS_REMEDY}"
    if data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return ": a web page, as servers send it in place of what is gone"
    if data[4:8] == b"ftyp" and (module := BRANDS.get(data[8:12])):
        return f"; install {PACKAGES[module]} to read it, on every node"
    return ""


def check_pixels(image: Image.Image, max_pixels: int) -> None:
    """Rejected where an image, not decoded yet, has more pixels than allowed."""
    if image.width * image.height > max_pixels:
        raise Rejected(f"{image.width} x {image.height} pixels, more than pool.max_pixels")


def cannot(error: Exception) -> str:
    """Why an image cannot be decoded, by what its decoder raised."""
    return f"cannot be decoded: {type(error).__name__}: {error}"


JPEG_END = b"\xff\xd9"


def with_end_mark(data: bytes) -> bytes | None:
    """A JPEG that lacks nothing but its end mark, with it; None where pixels are missing, too. A decoder fills these
    in, and with other bytes in their place it fills in others."""
    shown, data = [], data.removesuffix(JPEG_END[:1])
    for more in (b"", b"\x55\xaa\x33" * 64):
        try:
            with Image.open(io.BytesIO(data + more + JPEG_END), formats=["JPEG"]) as image:
                shown.append(image.tobytes())
        except Exception:  # whatever a codec raises
            return None
    return data + JPEG_END if shown[0] == shown[1] else None


# --- which way up ---------------------------------------------------------------------------------------------------

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the image upright (EXIF 2.32, tag 0x0112)."""
SIDEWAYS = frozenset({5, 6, 7, 8})


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, where Pillow has not turned the image by itself. It has to be asked for before the
    pixels are decoded: what of a PNG stands behind them is known only then, and sizes are told by the head of the file.
    """
    if "exif" not in image.info or image.format == "TIFF":  # of TIFFs Pillow turns the pixels when it loads them
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block does not make the image itself unreadable
        return 1
    return found if found in TURNS else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) as people see it."""
    return image.size[::-1] if orientation(image) in SIDEWAYS else image.size


def upright(image: Image.Image, turn: int) -> Image.Image:
    """The image as people see it, by its orientation."""
    return image if turn == 1 else image.transpose(TURNS[turn])


# --- what was converted ---------------------------------------------------------------------------------------------

ORDINARY: dict[str, frozenset[str]] = {"RGB": frozenset({"RGB", "YCbCr"}), "L": frozenset({"L"})}


def conversions(image: Image.Image, channels: int) -> tuple[str, ...]:
    """What has to be converted to make an image of so many channels, by kind; tells it by the head of the file alone.
    Being scaled and cropped is no conversion."""
    target, mode = "RGB" if channels == 3 else "L", image.mode
    kinds = []
    if image.format != "JPEG" and image.format != "MPO" and getattr(image, "is_animated", False):
        kinds.append("first of several frames")
    if orientation(image) != 1 or _turned_by_pillow(image):
        kinds.append("turned by EXIF orientation")
    if mode[0] in "IF":
        kinds.append(_depth(mode))
        mode = "L"
    elif any(_deep(image.format, tile) for tile in _tiles(image)):
        kinds.append("16 bits to 8")
    colors = mode.rstrip("AaX")
    if colors not in ORDINARY[target]:
        kinds.append(f"{NAMES.get(colors, colors)} to {'RGB' if channels == 3 else 'gray'}")
    if mode in ALPHA or "transparency" in image.info:
        kinds.append("alpha dropped")
    if (data := image.info.get("icc_profile")) and mode != "LAB":  # Lab is the space of profiles itself
        profile = profile_of(data)
        if not profile.readable or not profile.fits(image.mode):
            kinds.append("color profile left aside: it cannot be read, or is of another kind of image")
        elif profile.transform is not None:
            kinds.append("color profile to sRGB")
    return tuple(kinds)


def _tiles(image: Any) -> Any:
    """The parts that an image file consists of; the last of each says how its pixels are packed."""
    return getattr(image, "tile", ())


def _deep(format_: str | None, tile: Any) -> bool:
    """Whether a part of a file has more than 8 bits a channel, though Pillow's mode has 8."""
    if format_ == "PPM":
        return isinstance(tile[3], tuple) and isinstance(tile[3][-1], int) and tile[3][-1] > 255
    return format_ in ("PNG", "SGI", "TIFF") and (tile[0] == "SGI16" or ";16" in str(tile[3]))


def _depth(mode: str) -> str:
    return "32-bit floats to 8 bits" if mode == "F" else "32-bit integers to 8 bits" if mode == "I" else "16 bits to 8"


def _turned_by_pillow(image: Image.Image) -> bool:
    tags: Any = getattr(image, "tag_v2", None)
    return image.format == "TIFF" and tags is not None and tags.get(ExifTags.Base.Orientation, 1) in TURNS


# --- for people's eyes ----------------------------------------------------------------------------------------------

SHOWN = frozenset({"PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP"})
"""What every browser and viewer shows."""
HARMLESS = frozenset({"alpha dropped", *(f"{name} to RGB" for name in ("gray", "palette", "black and white"))})
"""Conversions that nobody sees."""


def as_seen(data: bytes, value_range: Range | None = None) -> bytes:
    """An image as it is shown to people: itself where every viewer shows it alike, else upright, in 8 bits and sRGB, as
    JPEG (where it was one) or PNG. What cannot be decoded stays as it is."""
    try:
        with opened(data, max_pixels=MOST_PIXELS) as image:
            if image.format in SHOWN and HARMLESS.issuperset(conversions(image, 3)):
                return data
            jpeg, colors, turn = image.format in ("JPEG", "MPO"), Colors(image, 3), orientation(image)
            shown = colors.finished(upright(colors.working(image, value_range), turn))
    except Exception:  # whatever a codec raises: people see that it is broken
        return data
    buffer = io.BytesIO()
    shown.save(buffer, **({"format": "JPEG", "quality": 95, "subsampling": 0} if jpeg else {"format": "PNG"}))
    return buffer.getvalue()
