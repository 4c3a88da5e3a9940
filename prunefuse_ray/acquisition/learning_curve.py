"""What the next labels will bring: a power law through the rounds so far, metric(n) = a - b n^-c, with its uncertainty.

The law is the usual one for learning curves (Hestness, J., et al., "Deep Learning Scaling is Predictable,
Empirically", 2017, arXiv 1712.00409). No single fit is trusted: every limit a and exponent c of a grid has its best b
and is weighted by how well it goes through the points (a Student likelihood whose noise has a least value), and bands
are quantiles over the grid. It knows nothing of what changes between rounds but their number of labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NOISE = 0.005
"""Standard deviation of the metric from training to training, at least."""
ROUNDS = 4
"""Fewer points say nothing of a curve of three parameters."""
WORTH = 0.005
"""Labels are no longer worth it where even the upper end of their predicted gain is below this."""
BAND = (0.1, 0.5, 0.9)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Predictions as (10 %, median, 90 %) of what fits the rounds so far."""

    labels: int
    """Of the last round."""
    more: int
    """Labels beyond these, of which the gain is predicted."""
    gain: tuple[float, float, float]
    limit: tuple[float, float, float]
    """The metric that no number of such labels would exceed."""
    curve: list[tuple[int, float, float, float]]
    """(labels, and the metric there) from the first round to the predicted one."""

    @property
    def worth(self) -> bool:
        """Whether `more` labels may bring WORTH."""
        return self.gain[-1] >= WORTH


def forecast(
    labels: Sequence[int], values: Sequence[float], more: int, largest: float = 1.0, noise: float = NOISE
) -> Forecast | None:
    """What `more` labels beyond the last round's are expected to bring; None for fewer than ROUNDS rounds.

    Args:
        values: the metric after each round, higher is better.
        largest: the metric's largest value.
        noise: standard deviation of the values, at least.
    """
    if len(labels) < ROUNDS:
        return None
    n_P, y_P = np.asarray(labels, np.float64), np.asarray(values, np.float64)
    limits = np.linspace(y_P.max() - 2 * noise, max(largest, y_P.max()), 200)
    a_G, c_G = (g.ravel() for g in np.meshgrid(limits, np.geomspace(0.05, 3.0, 120), indexing="ij"))
    unit = n_P / n_P[0]  # keeps powers near one
    basis_GP = unit[None] ** -c_G[:, None]
    short_GP = a_G[:, None] - y_P[None]
    b_G = np.maximum((short_GP * basis_GP).sum(1) / (basis_GP**2).sum(1), 0.0)
    squares_G = ((short_GP - b_G[:, None] * basis_GP) ** 2).sum(1)
    logs_G = -0.5 * len(y_P) * np.log(squares_G + len(y_P) * noise**2)
    weights_G = np.exp(logs_G - logs_G.max())

    def at(n: float) -> Floats:
        return a_G - b_G * (n / n_P[0]) ** -c_G

    last = int(labels[-1])
    places = sorted({int(n) for n in labels} | {round(last + more * share) for share in (0.25, 0.5, 0.75, 1.0)})
    return Forecast(
        labels=last,
        more=more,
        gain=_quantiles(at(last + more) - at(last), weights_G),
        limit=_quantiles(a_G, weights_G),
        curve=[(n, *_quantiles(at(n), weights_G)) for n in places],
    )


def _quantiles(values_G: Floats, weights_G: Floats) -> tuple[float, float, float]:
    order = np.argsort(values_G, kind="stable")
    share = np.cumsum(weights_G[order]) / weights_G.sum()
    low, middle, high = (float(values_G[order[min(int(np.searchsorted(share, q)), len(order) - 1)]]) for q in BAND)
    return low, middle, high
