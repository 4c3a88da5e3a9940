"""A class for every pixel: masks, loss, figures and scores against their definitions."""

import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score
from torch.nn import functional as F

from prunefuse_ray.acquisition.probabilities import entropy_of, softmax
from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.config.training import Recipe
from prunefuse_ray.data.images import ImageForm, encode_png
from prunefuse_ray.data.label_tables import Labels
from prunefuse_ray.errors import ConfigError
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks.segmentation import SEGMENTATION as TASK
from prunefuse_ray.tasks.segmentation import decoded, encoded
from prunefuse_ray.training.augmentation import augment, draw, masked_view

CLASSES = ["sky", "road", "car"]
RNG = np.random.default_rng(0)
MASK = RNG.integers(0, 3, (6, 8)).astype(np.uint8)


def form(height=6, width=8, **more):
    return ImageForm(height=height, width=width, channels=1, mean=(0.5,), std=(0.25,), max_pixels=10**6, **more)


def png(mask, mode="L"):
    image = Image.fromarray(mask)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    if mode == "1":
        image = Image.fromarray(mask.astype(bool))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


# --- masks ---


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_masks_of_every_plain_mode_are_class_numbers(mode):
    mask = MASK % 2 if mode == "1" else MASK
    data = png(mask, mode)
    assert (decoded(data) == mask).all()
    assert TASK.label(data, CLASSES) == data
    assert (TASK.targets(pa.chunked_array([[data]]), form())[0] == mask).all()


@pytest.mark.parametrize(
    "data",
    [
        b"no png", png(np.full((2, 2), 3, np.uint8)), encode_png(np.zeros((2, 2, 3), np.uint8)),
        png(MASK)[:40], "sky", None, 3, "data:image/png;base64,!", np.zeros((2, 2, 3)),
    ],
)  # fmt: skip
def test_what_is_no_mask_is_none(data):
    assert TASK.label(data, CLASSES) is None


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_of_few_bits_which_decoders_scale_is_no_mask(bits):
    """Its pixels 0, 1 and 3 come out as 0, 17 and 51, or as 0, 85 and 255: other classes, or left out."""
    raw = b"".join(b"\0" + (n << 8 - bits).to_bytes() for n in (0, 1, 3))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 1, 3, bits, 0, 0, 0, 0)), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "L"
    assert TASK.label(data, [str(n) for n in range(100)]) is None
    assert TASK.invalid_labels(pa.chunked_array([[data, png(MASK)]]), 100).to_pylist() == [True, False]


def test_the_same_mask_in_other_files_is_the_same_vote():
    other = png(1 - (MASK > 0).astype(np.uint8))
    label, share, tie = TASK.agreed([png(MASK, "P"), other, png(MASK)])
    np.testing.assert_array_equal(decoded(label), MASK)
    assert (round(share, 2), tie) == (0.67, False)
    assert TASK.agreed([other, png(MASK), png(MASK, "P")]) == (label, share, tie), "in whatever order they come"


def test_the_value_255_is_left_out_and_arrays_are_masks():
    mask = np.array([[0, 255], [2, 1]])
    label = TASK.label(mask, CLASSES)
    assert (decoded(label) == mask).all()
    assert TASK.counts(pa.chunked_array([[label, png(np.zeros((1, 1), np.uint8)), None]]), 3) == [2, 1, 1]
    assert TASK.caption(label, CLASSES) == "sky 25%, road 25%, car 25%, left out 25%"


def test_a_mask_is_written_as_text_and_read_again():
    assert TASK.label(TASK.named(png(MASK), CLASSES), CLASSES) == png(MASK)


def test_a_column_of_masks_is_checked(tmp_path):
    column = pa.chunked_array([[png(MASK), b"x", None], [png(np.full((1, 1), 7, np.uint8))]])
    assert TASK.invalid_labels(column, 3).to_pylist() == [False, True, True, True]
    structs = pa.chunked_array([pa.array([{"bytes": png(MASK), "path": None}])])
    assert TASK.invalid_labels(structs, 3).to_pylist() == [False]
    assert TASK.values(structs).to_pylist() == [png(MASK)]
    with pytest.raises(TypeError, match="masks, the bytes of PNG files"):
        TASK.invalid_labels(pa.chunked_array([[1]]), 3)


def test_a_table_names_files_beside_it(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(png(MASK))
    (tmp_path / "bad.png").write_bytes(b"x")
    labels = Labels(task=TASK, classes=CLASSES, beside=Place.at(str(tmp_path)))
    assert labels.read("masks/a.png") == (png(MASK), None)
    assert "no masks: PNG" in labels.read("bad.png")[1]
    for outside in ("../x.png", "/etc/passwd", "s3://b/x", "gone.png"):
        label, why = labels.read(outside)
        assert label is None
        assert "is no file" in why


def test_a_mask_is_scaled_and_cropped_as_its_image_is():
    block = np.zeros((12, 24), np.uint8)
    block[:, 12:] = 200
    mask = (block > 0).astype(np.uint8)
    small = form(4, 4)
    image = small.decode(encode_png(block))[..., 0]
    assert small.mask(png(mask), 255).tolist() == (image > 100).astype(int).tolist()
    assert (form(4, 4, resize=False).mask(png(mask), 255) == 255).all()
    assert TASK.unlike(png(mask), (12, 24)) is None
    assert TASK.unlike(png(mask), (24, 12)) == "its mask has 12 x 24 pixels, the image 24 x 12"


# --- training ---


@pytest.mark.parametrize("kinds", [["crop"], ["flip"], ["crop", "flip"]])
def test_masks_move_with_their_images_and_what_comes_from_outside_is_left_out(kinds):
    n = 16
    masks = torch.from_numpy(RNG.integers(0, 3, (n, 8, 8)).astype(np.uint8))
    images = (masks + 10)[..., None]
    draws = draw(n, torch.Generator().manual_seed(1))
    moved, own = masked_view(images, masks, draws, Recipe(augment=kinds), form(8, 8))
    assert torch.equal(moved, augment(images, draws, kinds))
    outside = moved[..., 0] == 0
    assert torch.equal(own[outside], torch.full_like(own[outside], 255))
    assert torch.equal(own[~outside] + 10, moved[..., 0][~outside])
    assert outside.any() == ("crop" in kinds)


def test_the_loss_is_the_mean_over_the_pixels_that_count():
    z = torch.randn(2, 3, 4, 5)
    y = torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    y[0, :2] = 255
    expected = sum(F.cross_entropy(z[i : i + 1], y[i : i + 1].long(), ignore_index=255) for i in range(2))
    assert TASK.loss_sum(z, y) == pytest.approx(float(expected), rel=1e-5)
    both = torch.stack([z, z * 2])
    assert TASK.loss_sum(both, y) == pytest.approx(float(TASK.loss_sum(z, y) + TASK.loss_sum(z * 2, y)), rel=1e-5)
    assert TASK.loss_sum(z, torch.full_like(y, 255)) == 0.0
    p = (z.softmax(1) + (2 * z).softmax(1)) / 2
    assert torch.allclose(TASK.consensus(both).softmax(1), p, atol=1e-6)
    assert TASK.consensus(z) is z


def test_figures_are_those_of_scikit_learn():
    z, y = torch.randn(6, 4, 5, 5), torch.randint(0, 3, (6, 5, 5), dtype=torch.uint8)  # no pixel has the class 3
    y[2, 1] = 255
    evaluation = TASK.evaluation()
    for rows in (slice(0, 2), slice(2, 6)):
        evaluation.add(z[rows], y[rows])
    found, known = evaluation.result(), y != 255
    guess = z.argmax(1)
    expected = jaccard_score(y[known], guess[known], labels=[0, 1, 2], average="macro")
    assert found["miou"] == pytest.approx(expected)
    assert found["pixel_accuracy"] == pytest.approx(float((guess[known] == y[known]).float().mean()))
    assert found["loss"] == pytest.approx(float(TASK.loss_sum(z, y)) / 6, rel=1e-5)


# --- predictions and scores ---


def test_an_image_scores_as_its_most_uncertain_pixels_do():
    z = RNG.normal(size=(3, 4, 5, 6)).astype(np.float32) * 2
    p = TASK.probabilities(z)
    assert p == pytest.approx(np.moveaxis(softmax(np.moveaxis(z, 1, -1)), -1, 1), abs=1e-6)
    each = entropy_of(np.moveaxis(p, 1, -1).astype(np.float64)).reshape(3, -1)
    assert TASK.strategies["entropy"].score(p) == pytest.approx(each.mean(1), rel=1e-5)
    top = TASK.of_share(0.2).strategies["entropy"].score(p)
    assert top == pytest.approx(np.sort(each, 1)[:, -6:].mean(1), rel=1e-5)
    committee = TASK.probabilities(np.stack([z, -z]))
    assert (TASK.strategies["bald"].score(committee) > 0).all()
    broken = p.copy()
    broken[1, :, 0, 0] = np.nan
    assert np.isnan(TASK.of_share(0.2).strategies["margin"].score(broken)).tolist() == [False, True, False]


def test_guesses_and_doubts_are_of_whole_images():
    p = TASK.probabilities(RNG.normal(size=(2, 3, 6, 8)))
    masks, sure = TASK.guesses(p)
    assert (decoded(masks[0]) == p[0].argmax(0)).all()
    assert sure == pytest.approx(p.max(1).mean((1, 2)), rel=1e-5)
    labels = np.stack([MASK, MASK])
    labels[1] = 255
    own = TASK.label_probabilities(p, labels)
    assert own[0] == pytest.approx(np.take_along_axis(p[0], MASK[None].astype(int), 0).mean(), rel=1e-5)
    assert own[1] == 1.0
    found = TASK.prediction(p[0], CLASSES)
    assert (decoded(found.png) == found.mask).all()
    assert sum(found.shares.values()) == pytest.approx(1)


def test_a_drawing_has_the_size_of_its_image():
    drawn = TASK.drawn(encode_png(np.zeros((12, 16), np.uint8)), encoded(MASK))
    with Image.open(io.BytesIO(drawn)) as image:
        assert (image.size, image.mode) == ((16, 12), "RGB")


# --- the configuration ---


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"selection": {"strategy": "k_centers"}}, "'k_centers' makes no sense for task 'segmentation'; use one of"),
        ({"selection": {"min_distance": 1.0}}, r"selection\.min_distance 1\.0 reads one vector of features an image"),
        ({"training": {"augment": ["cutout"]}}, r"training\.augment cutout does not keep masks on their pixels"),
        ({"pool": {"source": "csv", "path": "a", "test_path": "b", "text_column": "t"}, "network": {
            "architecture": "textngrams"}}, "task 'segmentation' is for images"),
        ({"task": "classification", "selection": {"pixel_share": 0.1}}, r"selection\.pixel_share 0\.1 is of"),
        ({"pretraining": {"method": "rotation"}}, r"pretraining\.method rotation"),
    ],
)  # fmt: skip
def test_what_pixels_have_not_is_refused_by_name(tree, said):
    with pytest.raises(ConfigError, match=said):
        config_from_tree({"task": "segmentation"} | tree)


def test_the_network_follows_the_task():
    assert config_from_tree({"task": "segmentation"}).network.architecture == "fcn_resnet20"


def test_a_mask_may_be_an_image_of_hugging_face():
    assert TASK.label({"bytes": png(MASK), "path": None}, CLASSES) == png(MASK)
    assert TASK.label({"bytes": None, "path": "a.png"}, CLASSES) is None
