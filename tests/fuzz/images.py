"""Images of every format, mode, orientation and form, right and damaged."""

import io
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageOps

from prunefuse_ray.data.image_files import as_seen
from prunefuse_ray.data.images import ImageForm, image_size
from tests.fuzz.mutate import attempt, damaged

FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "I;16", "F", "I", "LAB", "P"),
    "BMP": ("1", "L", "RGB", "P"),
    "GIF": ("L", "P", "RGB"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("1", "L", "RGB"),
    "TGA": ("L", "RGB", "RGBA"),
    "JPEG2000": ("L", "RGB"),
}
LOSSLESS = {"PNG", "TIFF", "BMP", "PPM"}
PLAIN = {"1", "L", "RGB", "P"}


def case(rng: Random, where: Path) -> str:
    format_ = rng.choice([*FORMATS])
    mode = rng.choice(FORMATS[format_])
    size = rng.choice(((1, 1), (1, 40), (37, 3), (16, 16), (40, 24), (9, 31), (2000, 2), (1, 3000)))
    size = (16, 16) if format_ == "JPEG2000" else size
    orientation = rng.randrange(1, 9) if format_ in ("PNG", "JPEG", "WEBP") else 1
    data = _encoded(rng, format_, mode, size, orientation)
    broken = rng.random() < 0.5
    shown = damaged(rng, data) if broken else data
    form = ImageForm(height=rng.randint(1, 32), width=rng.randint(1, 32), channels=rng.choice((1, 3)),
                     crop_ratio=rng.choice((1.0, 0.875)), max_pixels=rng.choice((50_000_000, 200)))  # fmt: skip
    attempt(form.look, shown)
    attempt(image_size, shown, form.channels)
    assert isinstance(as_seen(shown), bytes)
    read, refused = attempt(form.read, shown)
    if read is not None:
        assert read[0].shape == form.shape
        assert read[0].dtype == np.uint8
    if broken:
        return "refused" if refused else "counted" if read[1] else "right"
    if refused is not None:
        assert "max_pixels" in refused or mode in ("F", "I"), refused
        return "refused"
    if format_ in LOSSLESS and mode in PLAIN:
        _as_pillow_shows_it(data, form.channels)
    return "counted" if read[1] else "right"


def _encoded(rng: Random, format_: str, mode: str, size: tuple[int, int], orientation: int) -> bytes:
    values = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values[:, :, 0].astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray((values[:, :, 0] / np.float32(rng.choice((255, 1)))).astype(np.float32))
    elif mode == "I":
        image = Image.fromarray(values[:, :, 0].astype(np.int32))
    elif mode == "LAB":
        image = Image.frombytes("LAB", size, values.tobytes())
    else:
        image = Image.fromarray(values).convert(mode)
    more: dict = {}
    if orientation > 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        more["exif"] = exif
    image.save(out := io.BytesIO(), format_, **more)
    return out.getvalue()


def _as_pillow_shows_it(data: bytes, channels: int) -> None:
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L"))
    form = ImageForm(height=expected.shape[0], width=expected.shape[1], channels=channels)
    found = form.decode(data)
    assert np.abs(found.squeeze().astype(int) - expected.squeeze()).max() <= 2
