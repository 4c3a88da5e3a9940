"""Whether every node sees a local run directory: on one host here, on two in tests/cluster/test_clusters.py."""

import pytest
import ray

from prunefuse_ray.distributed import shared_directory
from prunefuse_ray.distributed.shared_directory import SharedDirectory
from prunefuse_ray.errors import LedgerError
from prunefuse_ray.storage import Place


@pytest.fixture
def as_another_node(local_ray, monkeypatch):
    """This process plays a driver on a node that is not the only one of the cluster."""

    class Elsewhere:
        def get_node_id(self):
            return "another"

    monkeypatch.setattr(shared_directory.ray, "get_runtime_context", Elsewhere)


def test_a_node_that_sees_the_directory_is_content(as_another_node, tmp_path):
    where = tmp_path / "new" / "runs" / "a"
    SharedDirectory(Place.at(str(where))).check()
    assert not (tmp_path / "new").exists(), "the check left something behind"


def test_a_node_that_does_not_see_it_is_named_with_the_remedy(as_another_node, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_directory, "_reads", lambda path, nonce: False)
    with pytest.raises(LedgerError, match=r"run\.directory: .* on this machine's disk only: .*Give storage that every"):
        SharedDirectory(Place.at(str(tmp_path / "runs"))).check()
    assert not (tmp_path / "runs").exists()


def test_the_probe_is_told_by_its_content(tmp_path):
    (tmp_path / "p").write_text("mine")
    assert shared_directory._reads(str(tmp_path / "p"), "mine")
    assert not shared_directory._reads(str(tmp_path / "p"), "another's")
    assert not shared_directory._reads(str(tmp_path / "q"), "mine")


def test_the_drivers_own_node_is_not_asked(local_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_directory, "_ask", lambda *_: pytest.fail("asked"))
    assert ray.is_initialized()
    SharedDirectory(Place.at(str(tmp_path / "runs"))).check()


def test_a_directory_in_the_copy_that_ray_makes_for_a_job_is_refused(local_ray, tmp_path):
    """Another version of the files is another copy: the same command would ask for all labels anew."""
    copy = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_0add/runs/first"
    with pytest.raises(LedgerError, match=r"lies in the copy of the working .*give an absolute path or a URI"):
        SharedDirectory(Place.at(str(copy)))
