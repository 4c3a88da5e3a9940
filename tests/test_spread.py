"""Work over files: the same answers in tasks and in this process, and no task for little."""

import os

import pytest

from prunefuse_ray import spread
from prunefuse_ray.spread import WORTH_A_TASK, over


def _of(group, offset):
    return os.getpid(), [value + offset for value in group]


@pytest.mark.parametrize(("size", "here"), [(0, True), (WORTH_A_TASK, True), (WORTH_A_TASK + 1, False)])
def test_only_large_files_are_worth_tasks(local_ray, size, here):
    answers = list(over(_of, [[1], [2, 3], [4]], 10, size=size))
    assert [values for _, values in answers] == [[11], [12, 13], [14]]
    assert all((process == os.getpid()) == here for process, _ in answers)


def test_answers_come_as_they_are_asked_for():
    asked = []
    answers = over(lambda group: asked.append(group), [1, 2, 3], size=0)
    next(answers)
    assert asked == [1]


def test_a_faulty_file_says_the_same_either_way(local_ray):
    def fail(group):
        raise ValueError(f"{group} is damaged")

    for size in (0, spread.WORTH_A_TASK + 1):
        with pytest.raises(ValueError, match="x is damaged"):
            list(over(fail, ["x"], size=size))
