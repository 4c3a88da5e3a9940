"""Work over files: the same answers in tasks and in this process, and no task for little."""

import os

import pytest
import ray

from prunefuse_ray.distributed import remote
from prunefuse_ray.distributed.remote import WORTH_A_TASK, over, over_files
from prunefuse_ray.errors import PoolError
from prunefuse_ray.storage import Place


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


@pytest.mark.parametrize("files", [0, 1, 5, 150])
def test_files_are_cut_into_so_many_tasks_at_most(tmp_path, files):
    paths = [str(tmp_path / f"{n}") for n in range(files)]
    for path in paths:
        (tmp_path / path).touch()
    groups = list(over_files(lambda group, where, more: (group, where, more), paths, Place.at(str(tmp_path)), 7))
    assert [path for group, _, _ in groups for path in group] == paths
    assert len(groups) <= remote.GROUPS
    assert all(more == 7 for _, _, more in groups)


def test_what_all_tasks_get_is_stored_once(local_ray, monkeypatch):
    put, stored = ray.put, []
    monkeypatch.setattr(ray, "put", lambda value: stored.append(value) or put(value))
    assert len(list(over(_of, [[1], [2], [3]], 10, size=WORTH_A_TASK + 1))) == 3
    assert stored == [10]


def test_a_faulty_file_says_the_same_either_way(local_ray):
    def fail(group):
        raise PoolError(f"{group} is damaged; fix it")

    for size in (0, remote.WORTH_A_TASK + 1):
        with pytest.raises(PoolError) as caught:
            list(over(fail, ["x"], size=size))
        assert str(caught.value) == "x is damaged; fix it"


def test_a_task_that_needs_a_failed_one_says_what_was_wrong_with_that(local_ray):
    @ray.remote(num_cpus=0.5)
    def fail():
        raise PoolError("x is damaged; fix it")

    @ray.remote(num_cpus=0.5)
    def read(found):
        return found

    with pytest.raises(PoolError) as caught, remote.plain_errors():
        ray.get(read.remote(read.remote(fail.remote())))
    assert str(caught.value) == "x is damaged; fix it"
