"""Colors: every mode and profile that image files have, against what people see."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageCms

from prunefuse_ray.data.images import ImageForm, read
from prunefuse_ray.errors import Rejected

RGB8, GRAY8 = (ImageForm(height=8, width=8, channels=n) for n in (3, 1))


def encoded(image: Image.Image, format_: str = "TIFF", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


def ramp(dtype, top):
    return (np.arange(64).reshape(8, 8) / 63 * top).astype(dtype)


# --- more than 8 bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "given", "expected", "kind"),
    [
        (ramp(np.uint16, 65535), None, 255, "16 bits to 8"),
        (ramp(np.uint16, 4095), (0, 4095), 255, "16 bits to 8"),
        (ramp(np.float32, 1), None, 255, "32-bit floats to 8 bits"),
        (ramp(np.float32, 812), (0, 812), 255, "32-bit floats to 8 bits"),
        (ramp(np.int32, 100_000), (0, 100_000), 255, "32-bit integers to 8 bits"),
        (ramp(np.int32, 100_000), (0, 50_000), 255, "32-bit integers to 8 bits"),
    ],
)
def test_deep_gray_is_scaled_from_its_range(values, given, expected, kind):
    low, high = given or (0, 1 if values.dtype == np.float32 else 65535)
    form = ImageForm(height=8, width=8, channels=1, value_range=given)
    out, kinds = read(encoded(Image.fromarray(values)), form)
    exact = np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(out[:, :, 0], exact, atol=0.5)
    assert out.max() == expected
    assert kinds == (kind,)


def test_where_zero_is_white_deep_gray_is_no_negative():
    """Of 8 bits Pillow turns it round itself."""
    deep = encoded(Image.fromarray(ramp(np.uint16, 65535)), tiffinfo={262: 0})
    out, _ = read(deep, GRAY8)
    assert (out[0, 0, 0], out[-1, -1, 0]) == (255, 0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (ramp(np.float32, 812), r"32-bit floats from 0 to 812, not within 0\.\.1; set pool\.value_range"),
        (ramp(np.float32, 1) - 0.5, r"32-bit floats from -0\.5 to 0\.5"),
        (ramp(np.int32, 100_000), r"32-bit integers from 0 to 100000; set pool\.value_range"),
        (np.full((8, 8), np.nan, np.float32), "values that are not finite"),
    ],
)
def test_deep_gray_without_a_range_that_all_images_share_is_rejected_by_name(values, said):
    with pytest.raises(Rejected, match=said):
        read(encoded(Image.fromarray(values)), GRAY8)


def test_twelve_bits_in_sixteen_are_said_to_be_near_black():
    kinds = read(encoded(Image.fromarray(ramp(np.uint16, 4095))), GRAY8)[1]
    assert kinds == ("16 bits to 8", "16 bits to 8, near black: pool.value_range may say better")


def test_sixteen_bits_of_color_and_of_portable_graymaps_are_scaled():
    deep = b"P6 8 8 65535\n" + np.full((8, 8, 3), 0x8000, ">u2").tobytes()
    assert (read(deep, RGB8)[0] // 2 == 64).all()
    gray = b"P5 8 8 65535\n" + np.full((8, 8), 0x8000, ">u2").tobytes()
    assert (read(gray, GRAY8)[0] == 128).all()


# --- modes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "format_", "to_rgb", "to_gray"),
    [
        ("1", "PNG", ("black and white to RGB",), ("black and white to gray",)),
        ("L", "PNG", ("gray to RGB",), ()),
        ("P", "PNG", ("palette to RGB",), ("palette to gray",)),
        ("RGB", "PNG", (), ("RGB to gray",)),
        ("RGBA", "PNG", ("alpha dropped",), ("RGB to gray", "alpha dropped")),
        ("LA", "PNG", ("gray to RGB", "alpha dropped"), ("alpha dropped",)),
        ("CMYK", "JPEG", ("CMYK to RGB",), ("CMYK to gray",)),
        ("YCbCr", "TIFF", (), ("YCbCr to gray",)),
        ("LAB", "TIFF", ("LAB to RGB",), ("LAB to gray",)),
        ("RGBX", "TIFF", (), ("RGB to gray",)),
    ],
)
def test_every_mode_becomes_rgb_or_gray_and_is_told(mode, format_, to_rgb, to_gray):
    colors = Image.fromarray(np.random.default_rng(0).integers(40, 210, (8, 8, 3), dtype=np.uint8))
    if mode == "LAB":
        image = ImageCms.profileToProfile(colors, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"),
                                          outputMode="LAB")  # fmt: skip
        assert image is not None
    else:
        image = colors.convert("L").convert(mode) if mode in ("1", "L", "LA") else colors.convert(mode)
    data = encoded(image, format_, **({"quality": 100, "subsampling": 0} if format_ == "JPEG" else {}))
    seen = np.asarray(image.convert("RGB") if mode in ("1", "L", "LA", "P") else colors, dtype=int)
    tolerance = {"CMYK": 5, "LAB": 16, "YCbCr": 3}.get(mode, 0)
    out, kinds = read(data, RGB8)
    assert np.abs(out - seen).max() <= tolerance
    assert kinds == to_rgb
    gray, kinds = read(data, GRAY8)
    assert np.abs(gray[:, :, 0] - np.asarray(Image.fromarray(seen.astype(np.uint8)).convert("L"), int)).max() <= (
        tolerance + 1
    )
    assert kinds == to_gray


# --- profiles -------------------------------------------------------------------------------------------------------


def profile(space: str = "RGB ", primaries=((0.68, 0.265, 0.15), (0.32, 0.69, 0.06)), gamma: float = 2.2) -> bytes:
    """An ICC profile of its own (version 2, matrix and gamma), by default with Display P3's primaries."""
    white = np.array([0.9642, 1.0, 0.8249])

    def number(value: float) -> bytes:
        return round(value * 65536).to_bytes(4, "big", signed=True)

    def xyz(vector) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(number, vector))

    curve = b"curv\0\0\0\0" + (1).to_bytes(4, "big") + int(gamma * 256).to_bytes(2, "big") + b"\0\0"
    tags = {b"wtpt": xyz(white)}
    if space == "RGB ":
        x, y = (np.array(p) for p in primaries)
        columns = np.stack([x / y, np.ones(3), (1 - x - y) / y])
        d65 = np.array([0.9505, 1.0, 1.089])
        columns = columns * np.linalg.solve(columns, d65)
        bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
        adapted = np.linalg.inv(bradford) @ np.diag((bradford @ white) / (bradford @ d65)) @ bradford @ columns
        for i, name in enumerate(b"rgb"):
            tags[bytes([name]) + b"XYZ"] = xyz(adapted[:, i])
            tags[bytes([name]) + b"TRC"] = curve
    else:
        tags[b"kTRC"] = curve
    table, body = len(tags).to_bytes(4, "big"), b""
    at = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + (at + len(body)).to_bytes(4, "big") + len(content).to_bytes(4, "big")
        body += content
    size = (128 + len(table) + len(body)).to_bytes(4, "big")
    head = size + b"lcms" + bytes([2, 0x40, 0, 0]) + b"mntr" + space.encode() + b"XYZ " + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + b"".join(map(number, white))
    return head.ljust(128, b"\0") + table + body


P3 = profile()


@pytest.mark.parametrize(("format_", "options"), [("JPEG", {"quality": 100, "subsampling": 0}), ("PNG", {})])
@pytest.mark.parametrize("form", [RGB8, GRAY8])
def test_a_wide_profile_becomes_srgb(format_, options, form):
    pixels = np.full((8, 8, 3), (200, 90, 60), np.uint8)
    wide = encoded(Image.fromarray(pixels), format_, icc_profile=P3, **options)
    plain = encoded(Image.fromarray(pixels), format_, **options)
    out, kinds = read(wide, form)
    assert "color profile to sRGB" in kinds
    seen = ImageCms.profileToProfile(Image.fromarray(pixels), ImageCms.ImageCmsProfile(io.BytesIO(P3)),
                                     ImageCms.createProfile("sRGB"), renderingIntent=1)  # fmt: skip
    assert seen is not None
    expected = np.asarray(seen if form is RGB8 else seen.convert("L"), int).reshape(form.shape)
    assert np.abs(out - expected).max() <= 2
    assert np.abs(out.astype(int) - read(plain, form)[0]).max() >= (8 if form is RGB8 else 2)


def test_srgb_by_whatever_name_changes_nothing():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    out, kinds = read(encoded(Image.fromarray(pixels), "PNG", icc_profile=srgb), RGB8)
    np.testing.assert_array_equal(out, pixels)
    assert kinds == ()


def test_a_gray_profile_and_one_of_another_kind():
    gray = Image.fromarray(np.full((8, 8), 60, np.uint8))
    out, kinds = read(encoded(gray, "PNG", icc_profile=profile("GRAY", gamma=1.0)), GRAY8)
    assert kinds == ("color profile to sRGB",)
    assert abs(int(out[0, 0, 0]) - 132) <= 2  # linear 60/255 in sRGB
    aside = "color profile left aside: it cannot be read, or is of another kind of image"
    for wrong in (P3, b"no profile", profile("CMYK")):
        out, kinds = read(encoded(gray, "PNG", icc_profile=wrong), GRAY8)
        assert (kinds, out[0, 0, 0]) == ((aside,), 60)


def deep_png(pixels):
    """16 bits a channel, which Pillow reads and does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_twelve_bits_of_color_are_said_to_be_near_black_and_take_no_range():
    data = deep_png(np.repeat(ramp(np.uint16, 4095)[..., None], 3, axis=2))
    assert read(data, RGB8)[1][-1] == "16 bits to 8, near black: write it with 8 bits"
    with pytest.raises(Rejected, match=r"pool\.value_range is for gray"):
        read(data, replace(RGB8, value_range=(0, 4095)))


def test_the_head_tells_that_color_takes_no_range():
    data = deep_png(np.repeat(ramp(np.uint16, 4095)[..., None], 3, axis=2))
    with pytest.raises(Rejected, match="value_range is for gray"):
        replace(RGB8, value_range=(0, 4095)).look(data)
