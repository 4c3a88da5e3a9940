"""A short version of `make fuzz`: the same cases every time, in a process of their own, whose memory they may spoil."""

from tests.fuzz.__main__ import hunt
from tests.fuzz.cases import KINDS

CASES = 200


def test_mutated_inputs_end_right_or_counted_or_refused():
    counts, violations = hunt(0, range(CASES), "pools")  # these need a Ray, whose start takes long
    assert violations == {}
    assert sum(counts.values()) == CASES
    assert {kind for kind, _ in counts} == set(KINDS)
    assert {end for _, end in counts} == {"right", "counted", "refused", "skipped"}
