"""Image files as people see them: upright, the first frame, and refused by name where they cannot be opened."""

import importlib.util
import io
import math
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from prunefuse_ray.data import image_files
from prunefuse_ray.data.image_files import TURNS, as_seen, extensions, formats, missing
from prunefuse_ray.data.images import ImageForm, image_size, read
from prunefuse_ray.errors import Rejected

RGB8 = ImageForm(height=8, width=8, channels=3)
QUARTERS = [[(200, 30, 30), (30, 200, 30)], [(30, 30, 200), (220, 220, 60)]]


def photo(height=16, width=24) -> Image.Image:
    """Four colors, one a quarter: which way up it is can be seen after any compression."""
    blocks = np.array(QUARTERS, np.uint8)
    return Image.fromarray(blocks.repeat(height // 2, 0).repeat(width // 2, 1))


def encoded(image: Image.Image, format_: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


def taken(orientation: int, format_: str = "JPEG", **options) -> bytes:
    """What a camera that was held so writes of `photo`: the pixels as its sensor has them, and the tag."""
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    image = photo()
    if orientation != 1:
        image = image.transpose(inverse.get(orientation, TURNS[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, format_, exif=exif, **options)


# --- which way up ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_seen_upright(orientation, format_):
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(format_, {})
    data = taken(orientation, format_, **lossless)
    form = ImageForm(height=16, width=24, channels=3)
    out, kinds = read(data, form)
    assert np.abs(out.astype(int) - np.asarray(photo())).mean() < 6
    assert kinds == (() if orientation == 1 else ("turned by EXIF orientation",))
    assert image_size(data, 3) == (16, 24)
    assert form.look(data) == ((16, 24), kinds)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(as_seen(data)))).convert("RGB"), int)
    assert np.abs(shown - np.asarray(photo())).mean() < 6
    assert np.abs(np.asarray(Image.open(io.BytesIO(as_seen(data))).convert("RGB"), int) - shown).max() == 0


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_an_orientation_behind_the_pixels_changes_neither_size_nor_pixels(mode):
    """Labels of pixels are compared with the size that the head of the file says."""
    exif = Image.Exif()
    exif[0x0112] = 6
    shape = (4, 8) if mode == "I;16" else (4, 8, 3)
    pixels = np.arange(math.prod(shape)).reshape(shape).astype(np.uint16 if mode == "I;16" else np.uint8)
    data = encoded(Image.fromarray(pixels), "PNG", exif=exif)
    start = data.index(b"eXIf") - 4
    end, last = start + 12 + int.from_bytes(data[start : start + 4]), data.index(b"IEND") - 4
    late = data[:start] + data[end:last] + data[start:end] + data[last:]
    form = ImageForm(height=4, width=8, channels=3, resize=False)
    plain = encoded(Image.fromarray(pixels), "PNG")
    assert image_size(late, 3) == image_size(plain, 3) == (4, 8)
    np.testing.assert_array_equal(form.decode(late), form.decode(plain))
    np.testing.assert_array_equal(form.decode(as_seen(late)), form.decode(plain))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_large_photographs_are_turned_at_a_fraction_of_their_size(orientation):
    image = photo(1200, 1600)
    if orientation != 1:
        image = image.transpose({3: TURNS[3], 6: TURNS[8], 8: TURNS[6]}[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    form = ImageForm(height=30, width=40, channels=3)
    out = form.decode(encoded(image, "JPEG", exif=exif))
    assert np.abs(out.astype(int) - np.asarray(photo(30, 40))).mean() < 6


def test_an_oriented_image_of_another_size_is_rejected_by_the_size_that_people_see():
    with pytest.raises(Rejected, match="24 x 16 pixels, expected 16 x 24"):
        ImageForm(height=24, width=16, channels=3, resize=False).decode(taken(6))
    assert ImageForm(height=16, width=24, channels=3, resize=False).decode(taken(6)).shape == (16, 24, 3)


@pytest.mark.parametrize("tag", [0, 9, 77])
def test_an_orientation_that_is_none_changes_nothing(tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    form = ImageForm(height=16, width=24, channels=3)
    assert read(encoded(photo(), "PNG", exif=exif), form)[1] == ()


def test_a_damaged_exif_block_does_not_spoil_an_image():
    data = taken(6)
    at = data.index(b"Exif\0\0") + 6
    spoilt = data[:at] + b"garbage!" + data[at + 8 :]
    assert read(spoilt, RGB8)[1] == ()


def test_a_pillow_image_is_seen_as_its_file_is():
    form = ImageForm(height=16, width=24, channels=3)
    with Image.open(io.BytesIO(taken(6))) as image:
        np.testing.assert_array_equal(form.decode(image), form.decode(taken(6)))
        assert image.size == (16, 24), "and it is left as it was"


# --- which files ----------------------------------------------------------------------------------------------------


def test_the_endings_are_those_of_formats_that_pillow_decodes_itself():
    known = extensions()
    assert known[:2] == (".png", ".jpg")
    assert {".jfif", ".gif", ".jpe", ".ppm", ".jp2", ".avif", ".webp", ".tif", ".mpo"} <= set(known)
    assert not {".eps", ".ps", ".pdf", ".wmf", ".emf", ".h5", ".mpg"} & set(known)
    assert not {"EPS", "WMF"} & set(formats()), "what comes from a pool starts no other program"


def test_postscript_is_never_handed_to_ghostscript(monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(Rejected, match="known format"):
        RGB8.decode(encoded(photo(), "EPS"))


def heif() -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(photo(64, 64)).save(buffer, quality=90)
    return buffer.getvalue()


def test_heic_is_read_where_its_plugin_is_installed():
    out = RGB8.decode(heif())
    assert np.abs(out.astype(int) - np.asarray(photo(8, 8))).mean() < 12
    assert ".heic" in extensions()
    assert ".heic" not in missing()


def test_heic_without_its_plugin_is_named_with_the_remedy(monkeypatch):
    data = heif()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if "heif" in name else find(name, *more))
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(Image, "EXTENSION", {e: f for e, f in Image.EXTENSION.items() if f != "HEIF"})
    image_files.formats.cache_clear()
    image_files.extensions.cache_clear()
    try:
        assert missing()[".heic"] == "pillow-heif"
        with pytest.raises(Rejected, match="known format; install pillow-heif to read it, on every node"):
            RGB8.decode(data)
    finally:
        image_files.formats.cache_clear()
        image_files.extensions.cache_clear()


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_counts(format_):
    frames = [photo(8, 8), photo(8, 8).rotate(180)]
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    out, kinds = read(data, RGB8)
    assert np.abs(out.astype(int) - np.asarray(frames[0])).mean() < 6
    assert "first of several frames" in kinds
    assert "first of several frames" not in read(encoded(frames[0], format_), RGB8)[1]
    assert getattr(Image.open(io.BytesIO(as_seen(data))), "n_frames", 1) == 1


def test_a_bomb_in_a_deep_png_is_refused_by_its_head():
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 90_000, 90_000, 16, 6, 0, 0, 0) + b"\0\0\0\0"
    with pytest.raises(Rejected):
        RGB8.decode(head)


# --- for people's eyes ----------------------------------------------------------------------------------------------


def test_what_every_viewer_shows_alike_stays_as_it_is():
    for image, format_ in ((photo(), "PNG"), (photo(), "JPEG"), (photo().convert("L"), "PNG"), (photo(), "BMP")):
        data = encoded(image, format_)
        assert as_seen(data) is data
    assert as_seen(b"broken") == b"broken"


@pytest.mark.parametrize(
    ("image", "format_", "kind"),
    [
        (Image.fromarray(np.full((8, 8), 0x8000, np.uint16)), "PNG", "PNG"),
        (Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF", "PNG"),
        (photo().convert("CMYK"), "JPEG", "JPEG"),
        (photo(), "TIFF", "PNG"),
        (photo(), "JPEG2000", "PNG"),
    ],
)
def test_what_viewers_show_otherwise_or_not_at_all_is_made_plain(image, format_, kind):
    with Image.open(io.BytesIO(as_seen(encoded(image, format_)))) as shown:
        assert (shown.format, shown.mode) == (kind, "RGB")
        form = ImageForm(height=shown.height, width=shown.width, channels=3)
        network = form.decode(encoded(image, format_))
        assert np.abs(np.asarray(shown, int) - network).max() <= 12, "people see what the network sees"


def test_formats_that_are_decoded_to_tell_their_size_are_not_taken():
    """An icon of 16 x 16 may hold an image of any size, which Pillow decodes when it opens the file."""
    png = encoded(Image.new("1", (900, 900)))
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 1, len(png), 22) + png
    with pytest.raises(Rejected):
        RGB8.decode(icon)
    assert ".ico" not in extensions()


def test_deep_colors_of_every_format_are_counted():
    out, kinds = read(b"P6 8 8 65535\n" + bytes(384), RGB8)
    assert out.shape == (8, 8, 3)
    assert "16 bits to 8" in kinds


def test_an_animation_that_is_cut_in_its_second_frame_is_refused():
    data = encoded(photo(8, 8), "GIF", save_all=True, append_images=[photo(8, 8).rotate(180)], duration=100)
    cut = data[: data.rindex(b"!\xf9\x04") + 1]
    for see in (RGB8.look, RGB8.decode):
        with pytest.raises(Rejected, match="cannot be decoded"):
            see(cut)
