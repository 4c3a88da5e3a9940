"""What the next labels are expected to bring: a run's rounds as points of a learning curve."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from prunefuse_ray.acquisition.learning_curve import BAND, NOISE, WORTH, Forecast, forecast
from prunefuse_ray.tasks.task import Metric


def outlook(points: Sequence[tuple[int, float | None]], metric: Metric, tested: float | None = None) -> Forecast | None:
    """The forecast for as many labels as the largest round has added, and at least a fifth of those so far: what a few
    bring says how few they are, and not what labels are worth. None where there are too few rounds, or the metric has
    no largest value to count on.

    Args:
        points: (labels, metric) of the rounds; None where none was measured.
        tested: samples that it was measured on. A share of so many is off by its standard error; None: not known.
    """
    known = [(n, value) for n, value in points if value is not None]
    if not metric.share or len(known) < 2:
        return None
    labels, values = zip(*known, strict=True)
    most = max(more - before for before, more in itertools.pairwise(labels))
    share = min(1.0, max(0.0, sum(values) / len(values)))
    noise = max(NOISE, math.sqrt(share * (1 - share) / tested)) if tested else NOISE
    return forecast(labels, values, max(most, labels[-1] // 5), noise=noise)


def words(found: Forecast, metric: Metric, selects: str) -> str:
    """The forecast in a sentence or two.

    Args:
        selects: what the network that selects is called.
    """
    low, middle, high = map(metric.difference, found.gain)
    share = f"{BAND[-1] - BAND[0]:.0%}"
    said = (
        f"{found.more:,} more labels are expected to bring the {selects} {middle} ({low} to {high} with {share} "
        "certainty)."
    )
    if not found.worth:
        said += (
            f" More labels of this kind are hardly worth it: the gain is expected to stay below {100 * WORTH:g} points."
        )
    return said
