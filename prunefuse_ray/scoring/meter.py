"""What a scoring actor tells Prometheus."""

from __future__ import annotations

from ray.util.metrics import Counter


class ScoringMeter:
    """Counters of one scoring actor; Prometheus adds them up over the actors."""

    def __init__(self) -> None:
        self._scored = Counter("prunefuse_samples_scored", description="Samples scored by this actor")
        self._rejected = Counter("prunefuse_samples_unusable", description="Samples that this actor could not decode")

    def count(self, rows: int, rejected: int) -> None:
        for counter, n in ((self._scored, rows - rejected), (self._rejected, rejected)):
            if n:  # Ray refuses to count nothing
                counter.inc(n)
