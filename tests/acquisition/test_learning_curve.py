"""Predictions of learning curves against curves whose continuation is known."""

import numpy as np
import pytest

from prunefuse_ray.acquisition.learning_curve import NOISE, WORTH, forecast


def law(n, a=0.9, b=0.8, c=0.5, start=100):
    return a - b * (np.asarray(n) / start) ** -c


@pytest.mark.parametrize(
    ("a", "c"), [pytest.param(*one, marks=pytest.mark.slow) for one in ((0.9, 0.5), (0.95, 0.3), (0.8, 1.0))]
)
@pytest.mark.parametrize("noise", [NOISE, 0.03])
def test_the_band_holds_what_comes_in_most_runs(a, c, noise):
    labels, hits, runs = [100, 200, 300, 500, 800], 0, 200
    rng = np.random.default_rng(0)
    for _ in range(runs):
        found = forecast(labels, law(labels, a=a, c=c) + rng.normal(0, noise, 5), 400, noise=noise)
        gain = law(1200, a=a, c=c) - law(800, a=a, c=c)
        hits += found.gain[0] <= gain <= found.gain[2]
    assert hits / runs > 0.7  # nominal: 80 %


def test_a_curve_without_noise_is_continued():
    labels = [100, 200, 400, 800, 1600, 3200]
    found = forecast(labels, law(labels), 3200)
    assert found.curve[-1][0] == 6400
    assert found.curve[-1][2] == pytest.approx(law(6400), abs=0.01)
    assert found.worth
    for n, low, middle, high in found.curve:
        assert low <= middle <= high
        assert n > 3200 or abs(middle - law(n)) < 0.01


def test_a_curve_that_has_come_to_its_end_is_not_worth_more_labels():
    found = forecast([500, 1000, 1500, 2000, 2500], [0.90, 0.930, 0.931, 0.930, 0.9305], 500)
    assert found.gain[2] < WORTH
    assert not found.worth
    assert 0.92 < found.limit[0] < 0.935


def test_a_steep_curve_is_and_two_rounds_say_nothing():
    assert forecast([100, 200, 300, 400], [0.3, 0.4, 0.47, 0.53], 100).worth
    assert forecast([100, 200, 300], [0.3, 0.4, 0.47], 100) is None


def test_a_falling_curve_is_flat():
    found = forecast([100, 200, 300, 400], [0.5, 0.45, 0.44, 0.43], 100)
    assert 0 <= found.gain[0] <= found.gain[2] < 0.05
