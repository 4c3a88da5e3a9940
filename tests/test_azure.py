"""A run whose directory is on Azure's storage, by Microsoft's emulator."""

import pytest

from prunefuse_ray import storage
from prunefuse_ray.run import loop
from prunefuse_ray.run.lease import Lease
from prunefuse_ray.storage import Place
from tests.support.azure import PROGRAM, azure_server
from tests.support.runs import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="azurite-blob is missing: npm install azurite"),
]


@pytest.fixture
def azure(monkeypatch):
    """URIs of the account lead to the emulator, whose key may not stand in them."""
    with azure_server() as fs:
        really = storage._from_uri

        def from_uri(where):
            scheme, _, rest = where.partition("://")
            if scheme != "abfs":
                return really(where)
            container, _, path = rest.partition("@")
            return fs, f"{container}/{path.partition('/')[2]}"

        monkeypatch.setattr(storage, "_from_uri", from_uri)
        yield "abfs://samples@account.dfs.core.windows.net"


def test_a_run_on_azure_is_that_in_a_folder(azure, local_ray, tiny_pool, tmp_path, caplog):
    loop.run(tiny(tiny_pool, tmp_path, selection={"budgets": [10, 18]}))
    config = tiny(tiny_pool, tmp_path, selection={"budgets": [10, 18]}, run={"directory": f"{azure}/runs"})
    root = Place.at(config.run.directory) / "tiny"

    class Killed(Exception):
        pass

    def listen(event, step, commit):
        if event == "done" and (step.round, step.phase) == (0, "train"):
            raise Killed

    with pytest.raises(Killed):
        loop.run(config, listen)
    loop.run(config)
    assert "conditional writes" not in caplog.text
    for name in ("rounds/000/selected.parquet", "rounds/001/selected.parquet"):
        assert (root / name).read_bytes() == (tmp_path / "tiny" / name).read_bytes()
    other = Lease(root)
    other.acquire()  # the run has given its lease back
    other.release()
