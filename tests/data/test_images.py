"""Decoding: every mode and size that pools hold, and a reason for whatever cannot be read."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from prunefuse_ray.data.images import ImageForm, encode_png, image_size, sample_values
from prunefuse_ray.data.sample_format import decode_column
from prunefuse_ray.errors import Rejected

RGB8 = ImageForm(height=8, width=8, channels=3)
GRAY8 = ImageForm(height=8, width=8, channels=1)


def encoded(image: Image.Image, format_: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_)
    return buffer.getvalue()


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def test_a_png_decodes_to_its_pixels(rgb):
    np.testing.assert_array_equal(RGB8.decode(encode_png(rgb)), rgb)


def test_gray_becomes_three_equal_channels(rgb):
    gray = rgb[:, :, 0]
    out = RGB8.decode(encode_png(gray))
    for channel in range(3):
        np.testing.assert_array_equal(out[:, :, channel], gray)


def test_alpha_is_dropped(rgb):
    alpha = np.dstack([rgb, np.zeros((8, 8), np.uint8)])
    np.testing.assert_array_equal(RGB8.decode(encoded(Image.fromarray(alpha))), rgb)


def test_palette_images_are_converted(rgb):
    image = Image.fromarray(rgb).convert("P")
    np.testing.assert_array_equal(RGB8.decode(encoded(image)), np.asarray(image.convert("RGB")))


def test_sixteen_bit_gray_is_scaled_not_clipped():
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    out = GRAY8.decode(encoded(Image.fromarray(values)))[:, :, 0]
    np.testing.assert_array_equal(out, np.rint(values / 257).astype(np.uint8))


def test_color_in_a_gray_pool_follows_the_luma_of_bt601(rgb):
    out = GRAY8.decode(encode_png(rgb))[:, :, 0]
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    assert np.abs(out - luma).max() <= 1


def test_another_size_is_scaled_by_its_shorter_side_and_cropped():
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 200  # the middle third is what a center crop keeps
    out = RGB8.decode(encode_png(wide))
    assert out.shape == (8, 8, 3)
    assert (out[:, 1:-1] == 200).all()


def test_another_size_is_rejected_on_request(rgb):
    with pytest.raises(Rejected, match="8 x 8 pixels, expected 9 x 9"):
        ImageForm(height=9, width=9, channels=3, resize=False).decode(encode_png(rgb))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "null"),
        (b"", r"empty \(0 bytes\)"),
        (b"not an image", "known format"),
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((7, 8, 3), np.uint8), r"shape \(7, 8, 3\)"),
        ("data:image/png;base64,iVBO", "a string in place of an image: write the bytes of the file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "a Git LFS pointer .* git lfs pull"),
        (b"<!DOCTYPE html><html>404", "a web page, as servers send it"),
    ],
)
def test_what_cannot_be_read_has_a_reason(value, reason):
    with pytest.raises(Rejected, match=reason):
        RGB8.decode(value)


@pytest.mark.parametrize("format_", ["PNG", "JPEG"])
def test_truncated_files_are_rejected(format_):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format_)
    with pytest.raises(Rejected):
        RGB8.decode(data[: len(data) // 2])


@pytest.mark.parametrize("side", [12_000, 20_000])
def test_decompression_bombs_are_rejected_unread(side):
    bomb = encoded(Image.new("1", (side, side)))
    assert len(bomb) < 100_000
    with pytest.raises(Rejected, match=r"pool\.max_pixels|decompression bomb"):
        RGB8.decode(bomb)


def test_a_column_keeps_its_rows_and_marks_the_bad_ones(rgb):
    column = pa.chunked_array([[encode_png(rgb), b"x"], [None, encode_png(255 - rgb)]], pa.binary())
    pixels, reasons = decode_column(column, RGB8)
    np.testing.assert_array_equal(pixels[0], rgb)
    np.testing.assert_array_equal(pixels[3], 255 - rgb)
    assert [r is None for r in reasons] == [True, False, False, True]
    assert not pixels[1:3].any()


@pytest.mark.parametrize("kind", ["tensor", "nested"])
def test_tensor_columns(rgb, kind):
    batch = np.stack([rgb, 255 - rgb])
    column = (
        pa.chunked_array([pa.FixedShapeTensorArray.from_numpy_ndarray(batch)])
        if kind == "tensor"
        else pa.chunked_array([pa.array(batch.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))])
    )
    pixels, reasons = decode_column(column, RGB8)
    np.testing.assert_array_equal(pixels, batch)
    assert reasons == [None, None]


def test_image_size(rgb):
    assert image_size(encode_png(rgb), 3) == (8, 8)
    assert image_size(np.zeros((5, 6, 3), np.uint8), 3) == (5, 6)
    with pytest.raises(Rejected):
        image_size(b"x", 3)
    with pytest.raises(Rejected, match="not its path"):
        image_size("cat/1.jpg", 3)


def test_the_presets_crop_the_centre_of_a_larger_scaling(rgb):
    """torchvision's presets: shorter side to 256, center crop of 224; here 10 and 8."""
    form = ImageForm(height=8, width=8, channels=3, crop_ratio=0.8)
    assert (form.uncropped.height, form.uncropped.width) == (10, 10)
    ring = np.zeros((20, 20, 3), np.uint8)
    ring[2:-2, 2:-2] = 200  # what the crop keeps: all but a tenth at every side
    assert (form.decode(encode_png(ring))[1:-1, 1:-1] == 200).all()
    assert (form.uncropped.decode(encode_png(ring))[0] < 100).all()
    assert form.decode(encode_png(rgb)).shape == (8, 8, 3)
    from torchvision.transforms import v2

    photo = np.random.default_rng(5).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    preset = v2.Compose([v2.Resize(10), v2.CenterCrop(8)])
    difference = np.asarray(preset(Image.fromarray(photo)), int) - form.decode(encode_png(photo))
    assert np.abs(difference).mean() < 12, "a column beside it at most, where the odd pixel goes the other way"


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 9_000)])
def test_the_narrowest_image_takes_no_more_memory_than_others(size):
    """Scaled whole to 224 pixels of width, an image of 1 x 20,000 would take 3 GB."""
    form = ImageForm(height=224, width=224, channels=3, crop_ratio=0.875)
    long = max(size)
    shades = (np.arange(long) * 200 // long).astype(np.uint8)
    pixels = np.broadcast_to(shades[:, None] if size[0] < size[1] else shades[None], size[::-1])
    tracemalloc.start()
    out = form.decode(encode_png(np.ascontiguousarray(pixels)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert out.shape == (224, 224, 3)
    assert np.abs(out.astype(int) - 100).max() <= 3, "the middle"
    assert peak < 50 * 2**20


def test_a_moderately_narrow_image_is_what_it_was(rgb):
    """The short cut for narrow images gives the same middle."""
    tall = np.random.default_rng(0).integers(0, 256, (8 * 60, 8, 3), dtype=np.uint8)
    scaled = np.asarray(Image.fromarray(tall).resize((16, 16 * 60), Image.Resampling.BILINEAR))
    middle = (16 * 60 - 16) // 2
    out = ImageForm(height=16, width=16, channels=3).decode(encode_png(tall))
    np.testing.assert_array_equal(out, scaled[middle : middle + 16])


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_large_text_or_profile_does_not_spoil_a_png(rgb, kind):
    content = kind + b"x\0\0" + zlib.compress(bytes(3 * 2**20))
    data = encode_png(rgb)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    np.testing.assert_array_equal(RGB8.decode(data[:33] + chunk + data[33:]), rgb)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.string(), pa.large_string()])
def test_bytes_and_strings_of_every_type_are_samples(kind):
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    given = ["a", None] if text else [b"a", None]
    assert sample_values(pa.chunked_array([pa.array(given, kind)])) == given


@pytest.mark.parametrize("end", [b"", b"\xff"])
def test_a_jpeg_that_lacks_its_end_mark_alone_is_read_and_one_that_lacks_pixels_is_not(rgb, end):
    Image.fromarray(rgb).resize((64, 64)).save(buffer := io.BytesIO(), "JPEG", quality=95)
    whole = buffer.getvalue()
    form = ImageForm(height=64, width=64, channels=3)
    pixels, kinds = form.read(whole[:-2] + end)
    np.testing.assert_array_equal(pixels, form.decode(whole))
    assert kinds == ("JPEG without its end mark",)
    for missing in (3, 10, 100, len(whole) // 2):
        with pytest.raises(Rejected, match="truncated"):
            form.read(whole[:-missing])


def test_a_null_tensor_is_no_black_image(rgb):
    kind = pa.fixed_shape_tensor(pa.uint8(), rgb.shape)
    storage = pa.array([rgb.ravel().tolist(), None, (255 - rgb).ravel().tolist()], kind.storage_type)
    column = pa.chunked_array([pa.ExtensionArray.from_storage(kind, storage)])
    assert [value is None for value in sample_values(column)] == [False, True, False]
    np.testing.assert_array_equal(sample_values(column)[2], 255 - rgb)


@pytest.mark.parametrize(("mean", "std"), [((0.1, 0.5, 0.9), (0.2, 0.3, 0.4)), ((0.5,), (0.25,))])
def test_inputs_are_normalized_channel_by_channel(mean, std):
    """To the bit as with the channels innermost, and laid out as networks read it fastest."""
    form = ImageForm(height=5, width=7, channels=3, mean=mean, std=std)
    pixels = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    scale, shift = (
        torch.tensor([1.0 / (255.0 * s) for s in std]),
        torch.tensor([m / s for m, s in zip(mean, std, strict=True)]),
    )
    found = form.inputs(pixels)
    assert torch.equal(found, (pixels.float() * scale - shift).permute(0, 3, 1, 2))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, ((pixels / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2))


def test_a_tensor_with_a_gap_in_it_is_none():
    kind = pa.fixed_shape_tensor(pa.float32(), [3])
    storage = pa.array([[1.0, None, 2.0], [1.0, 2.0, 3.0], None], kind.storage_type)
    gap, whole, null = sample_values(pa.chunked_array([pa.ExtensionArray.from_storage(kind, storage)]))
    assert (gap, null) == (None, None)
    assert whole.tolist() == [1.0, 2.0, 3.0]
