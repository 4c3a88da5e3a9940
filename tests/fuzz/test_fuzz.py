"""A short version of `make fuzz`, in this process: the same cases every time."""

import pytest

from tests.fuzz.cases import KINDS, run_case

CASES = 200


@pytest.mark.filterwarnings("ignore")
def test_mutated_inputs_end_right_or_counted_or_refused(local_ray):
    ends = {run_case(0, number) for number in range(CASES)}
    assert {kind for kind, _ in ends} == set(KINDS)
    assert {end for _, end in ends} == {"right", "counted", "refused"}
