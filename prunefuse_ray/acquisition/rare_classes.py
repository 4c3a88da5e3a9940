"""More of the classes that the user names: the samples most likely to be of one of them.

Garnett, R., et al., "Bayesian Optimal Active Search and Surveying", ICML 2012: greedy active search, one step ahead.
The names come from `selection.wanted_classes`, which weighs the scores (`class_weights`); without, all score 1.
"""

from __future__ import annotations

import numpy as np

from prunefuse_ray.acquisition.strategy import Probabilities, Scores, Strategy


def score(p_NC: Probabilities) -> Scores:
    """1 for every sample, before the weights of the classes."""
    return p_NC.sum(axis=1).round().astype(np.float32)


RARE_CLASSES = Strategy(
    name="rare_classes",
    wants="a high probability of the classes in `selection.wanted_classes`",
    paper="Garnett et al. 2012 (arXiv 1206.6406)",
    score=score,
    wanted=True,
)
