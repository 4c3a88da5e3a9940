"""The numbers of draws: what chance depends on beside a seed and a sample's id (`hashing.mix`).

Every purpose has numbers of its own, or samples that one draw prefers would be preferred by another, too: clocks with
the numbers of the initial set draw none that is near it. The rounds themselves, from 0, are the numbers of samples that
are selected at random. `by round`: the round, from -1, is added.

Under `run.seed: 0` two numbers meet another, which stays so, since selections and test sets that people have paid for
depend on all four: STATISTICS the races of round 0, and TEST_SET the members that typiclust draws in round 0. Neither
leans a selection: statistics are sums over thousands of samples, and what the test set has left in the pool is as
random as before.
"""

HELD_OUT = 1_000_000
"""Labels that are held out for validation, the same in every round."""
RACES = 2_000_000
"""By round: the clocks of k-means++ and BADGE (`greedy.Rule`)."""
FILLING = 3_000_000
"""By round: the references of coverage, and what chance adds where coverage gains nothing."""
TIES = 8_000_000
"""By round: which of equal gains coverage takes."""
TYPICAL = 4_000_000
"""By round: the members of a large cluster that typiclust looks at."""
SHOWN = 5_000_000
"""By round: samples that are shown to the second of two rounds of selection."""
CORE_SET = 5_000_000
"""Ties in a core-set. Its seed is that of a training, which is none of the same run's other draws."""

# With their seed, which is the same for every `run.seed`.
STATISTICS = (0, 2_000_000)
"""Samples that the statistics of a network are taken from."""
TEST_SET = (0, 4_000_000)
"""The test set that is drawn from a pool."""
ORDER = (0, 6_000_000)
"""The order in which people see the test set among the initial set."""
BASELINE = (0, 7_000_000)
"""Samples of large sets that the baseline is fitted to and tested on."""
