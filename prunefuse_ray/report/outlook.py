"""What the next labels are expected to bring: a run's rounds as points of a learning curve."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from prunefuse_ray.acquisition.learning_curve import BAND, WORTH, Forecast, forecast
from prunefuse_ray.tasks.task import Metric


def outlook(points: Sequence[tuple[int, float]], metric: Metric) -> Forecast | None:
    """The forecast for as many labels as the largest round has added (the last one may be a short one); None where
    there are too few rounds, or the metric has no largest value to count on."""
    labels = [n for n, _ in points]
    if not metric.share or len(labels) < 2:
        return None
    most = max(more - before for before, more in itertools.pairwise(labels))
    return forecast(labels, [value for _, value in points], most)


def words(found: Forecast, metric: Metric) -> str:
    """The forecast in a sentence or two."""
    low, middle, high = map(metric.difference, found.gain)
    share = f"{BAND[-1] - BAND[0]:.0%}"
    said = (
        f"{found.more:,} more labels are expected to bring the proxy {middle} ({low} to {high} with {share} certainty)."
    )
    if not found.worth:
        said += (
            f" More labels of this kind are hardly worth it: the gain is expected to stay below {100 * WORTH:g} points."
        )
    return said
