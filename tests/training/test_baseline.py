"""The models that networks are compared with."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from prunefuse_ray.data.texts import NgramForm
from prunefuse_ray.tasks import baseline as of_tasks
from prunefuse_ray.tasks.baseline import Features, of_classes
from prunefuse_ray.tasks.segmentation import SEGMENTATION
from prunefuse_ray.training import baseline
from tests.support import ROOT


def accuracy(answer, truth):
    return (answer.outputs_NC.argmax(1) == truth).mean()


def test_texts_whatever_words_the_test_set_has():
    form = NgramForm(length=16)
    good, bad = (
        ["a fine film", "fine acting", "truly fine", "so fine"],
        ["an awful film", "awful acting", "truly awful"],
    )
    labeled = np.stack([form.decode(text) for text in good + bad])
    test = np.stack([form.decode(text) for text in ["fine indeed", "awful indeed", "of which nothing is known"]])
    answer = of_classes(baseline.of_texts(labeled, test), np.array([0] * 4 + [1] * 3), 3)
    assert answer.outputs_NC[:2].argmax(1).tolist() == [0, 1]
    np.testing.assert_allclose(np.exp(answer.outputs_NC).sum(1), 1, atol=1e-6)
    assert "TF-IDF of words and pairs" in answer.about


def test_images_and_vectors_of_digits_as_well_as_is_known():
    digits = load_digits()
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    answer = of_classes(baseline.of_images(images[:300], images[1400:], images[:200]), digits.target[:300], 10)
    assert accuracy(answer, digits.target[1400:]) > 0.9
    answer = of_classes(baseline.of_vectors(digits.data[:300], digits.data[1400:]), digits.target[:300], 10)
    assert accuracy(answer, digits.target[1400:]) > 0.85


def test_large_images_are_scaled_and_that_is_told():
    images = np.random.default_rng(0).integers(0, 256, (12, 48, 40, 3), np.uint8)
    assert "images scaled to 32 pixels" in baseline.of_images(images, images, images[:4]).about


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 1, 1]])
def test_few_labels_and_labels_of_one_class_are_enough(labels):
    answer = of_classes(baseline.of_vectors(np.eye(3), np.eye(3)), np.array(labels), 4)
    assert answer.outputs_NC.shape == (3, 4)
    assert answer.outputs_NC.argmax(1).tolist() == labels


def test_the_baseline_of_pixels_holds_the_neighborhoods_of_one_image(monkeypatch):
    seen, really = [], of_tasks._neighborhoods
    monkeypatch.setattr(of_tasks, "_neighborhoods", lambda images: seen.append(len(images)) or really(images))
    images = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 1), np.uint8)
    masks = np.zeros((6, 8, 8), np.uint8)
    masks[:, 4:] = 1
    found = of_tasks.of_pixels(images, masks, images, 3)
    assert found.outputs_NC.shape == (6, 3, 8, 8)
    assert set(seen) == {1}
    assert (found.outputs_NC.argmax(1) == masks).mean() > 0.95


@pytest.mark.parametrize("shape", [(40, 1000), (8, 256), (1, 64)])
def test_long_gray_images_have_features(shape):
    images = np.random.default_rng(0).integers(0, 256, (12, *shape, 1), np.uint8)
    found = baseline.of_images(images, images[:4], images)
    assert np.isfinite(found.labeled).all()
    assert np.isfinite(found.test).all()


def test_vectors_of_any_size_and_with_sentinels_are_standardized():
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    x[:, 1] *= 1e-8
    t = x.copy()
    x[:2, 2] = t[0, 0] = -3.4028235e38
    found = baseline.of_vectors(x, t)
    assert np.isfinite(found.labeled).all()
    assert np.isfinite(found.test).all()
    assert found.labeled[:, 1].std() == pytest.approx(1, rel=1e-3)


def test_masks_that_leave_out_every_pixel_have_a_baseline():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    found = of_tasks.of_pixels(images, np.full((2, 4, 4), 255, np.uint8), images, 3)
    assert found.outputs_NC.shape == (2, 3, 4, 4)


def test_of_many_classes_the_common_ones_say_how_strong_a_penalty_is(monkeypatch):
    fits, fit = [], LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", lambda *a: fits.append(1) or fit(*a))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    y_NC = (rng.random((60, 30)) < np.linspace(0.2, 0.5, 30)).astype(np.int64)
    features = Features(labeled=x, test=x[:5], strengths=(0.1, 1.0, 10.0, 100.0), about="numbers")
    assert of_tasks.of_classes(features, y_NC, 30).outputs_NC.shape == (5, 30)
    assert len(fits) == 10 * 4 + 30


def test_the_document_says_of_how_many_labels_a_part_is_used():
    told = (ROOT / "docs/how-to/texts-and-vectors.md").read_text(encoding="utf-8")
    assert f"more than {baseline.LABELED:,} labels ({SEGMENTATION.baseline_samples} masks)" in told
