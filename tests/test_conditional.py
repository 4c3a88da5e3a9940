"""Conditional writes: links on a file system, requests with conditions on S3 (moto's server)."""

import os
import threading

import pytest
from pyarrow._fs import _MockFileSystem

from prunefuse_ray import conditional as module
from prunefuse_ray.conditional import Changed, Missing, conditional, network_file_system
from prunefuse_ray.storage import Place
from tests.support.azure import PROGRAM, azure_server
from tests.support.gcs import gcs_server
from tests.support.s3 import s3_server


@pytest.fixture(scope="module")
def s3():
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def azure():
    with azure_server() as fs:
        yield fs


no_azurite = pytest.mark.skipif(PROGRAM is None, reason="azurite-blob is missing: npm install azurite")


@pytest.fixture(params=["links", "requests", pytest.param("azure", marks=no_azurite)])
def place(request, tmp_path):
    if request.param == "links":
        return Place.at(str(tmp_path)) / "file"
    if request.param == "azure":
        return Place(request.getfixturevalue("azure"), f"samples/{tmp_path.name}") / "file"
    server = request.getfixturevalue("s3")
    return Place.at(f"s3://samples/{tmp_path.name}{server.query}") / "file"


def test_a_file_is_made_once(place):
    writes = conditional(place)
    assert writes.version(place) is None
    writes.put(place, b"one", None)
    with pytest.raises(Changed):
        writes.put(place, b"two", None)
    assert place.read_bytes() == b"one"


def test_a_file_is_replaced_only_where_it_is_as_it_was(place):
    writes = conditional(place)
    writes.put(place, b"one", None)
    seen = writes.version(place)
    writes.put(place, b"two", seen)
    with pytest.raises(Changed):
        writes.put(place, b"three", seen)
    assert place.read_bytes() == b"two"
    place.delete()
    with pytest.raises(Changed):
        writes.put(place, b"four", writes.version(place) or seen)


def test_google_takes_generations_and_no_tags():
    """A write that names the tag alone is refused by the client itself, and with it every run after its first event."""
    from obstore.store import GCSStore

    with gcs_server() as objects:

        class Seen:
            path = "bucket/run/events.jsonl"

            def exists(self):
                return bool(objects.contents)

            def read_bytes(self):
                (content, _), *_ = objects.contents.values()
                return content

        place, writes = Seen(), module.Requests(GCSStore("bucket", **objects.options))
        assert writes.version(place) is None
        writes.put(place, b"one", None)
        seen = writes.version(place)
        writes.put(place, b"two", seen)
        with pytest.raises(Changed):
            writes.put(place, b"three", seen)
        with pytest.raises(Changed):
            writes.put(place, b"four", None)
        assert place.read_bytes() == b"two"
        writes.put(place, b"two", seen)  # an answer was lost, and the request repeated


def test_of_many_at_once_one_makes_the_file(place):
    made = []

    def make(n):
        try:
            conditional(place).put(place, b"%d" % n, None)
            made.append(n)
        except Changed:
            pass

    threads = [threading.Thread(target=make, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [b"%d" % n for n in made] == [place.read_bytes()]
    assert [f.base_name for f in place.parent.files()] == ["file"], "nothing is left beside it"


def test_an_answer_that_was_lost_is_no_refusal(s3, tmp_path):
    """The store took the write, and the connection broke: the client asks again, and the file is there already."""
    place = Place.at(f"s3://samples/{tmp_path.name}{s3.query}") / "file"
    met = s3.refused
    s3.lifted(0.5)
    with s3.misbehaving("half"):
        conditional(place).put(place, b"mine", None)
    assert s3.refused > met
    assert place.read_bytes() == b"mine"


def test_a_store_that_is_away_is_an_os_error(s3, tmp_path):
    place = Place.at(f"s3://samples/{tmp_path.name}{s3.query}") / "file"
    with s3.misbehaving(403), pytest.raises(OSError, match="file"):
        conditional(place).put(place, b"mine", None)


def test_what_has_no_conditions_says_so():
    with pytest.raises(Missing, match="mock"):
        conditional(Place(_MockFileSystem(), "bucket/file"))


def test_a_file_system_without_links_says_so(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module.os, "link", refuse)
    place = Place.at(str(tmp_path)) / "file"
    with pytest.raises(Missing, match="no links: Operation not permitted"):
        conditional(place).put(place, b"x", None)
    assert not list(tmp_path.iterdir())


MOUNTS = """\
22 1 252:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:50 / /mnt/shared rw - nfs4 server:/export rw
24 23 252:2 / /mnt/shared/local rw - xfs /dev/vdb rw
25 22 0:51 / /mnt/with\\040blank rw - fuse.sshfs host: rw
26 22 0:52 / /mnt/vm rw - virtiofs shared rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/home/x", None), ("/mnt/shared/runs", "nfs4"), ("/mnt/sharedness", None), ("/mnt/shared/local/runs", None),
     ("/mnt/with blank/runs", "fuse.sshfs"), ("/mnt/vm/runs", "virtiofs")],
)  # fmt: skip
def test_which_paths_lie_on_a_network(path, kind, tmp_path, monkeypatch):
    (tmp_path / "mounts").write_text(MOUNTS)
    monkeypatch.setattr(
        "builtins.open", lambda *_, real=open, **more: real(tmp_path / "mounts", **more)
    )  # in place of /proc/self/mountinfo
    assert network_file_system(path) == kind


def test_keys_of_a_profile_serve_conditional_writes(tmp_path, monkeypatch):
    """Arrow reads them, and obstore does not: runs on such a bucket would go unfenced."""
    (tmp_path / "keys").write_text("[work]\naws_access_key_id = A\naws_secret_access_key = B%\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert module.profile_keys() == {"access_key_id": "A", "secret_access_key": "B%"}
    keys = module._profile()
    assert keys()["secret_access_key"] == "B%"
    (tmp_path / "keys").write_text("[work]\naws_access_key_id = C\naws_secret_access_key = D\naws_session_token = E\n")
    assert {k: v for k, v in keys().items() if k != "expires_at"} == {
        "access_key_id": "C", "secret_access_key": "D", "token": "E",
    }, "temporary keys are renewed in the file"  # fmt: skip
    for broken in (b"x = 1\n[work]\n", b"[work]\naws_access_key_id = A\n", b"\xff[work]"):
        (tmp_path / "keys").write_bytes(broken)
        assert module.profile_keys() == {}
        assert module._profile() is None
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert module.profile_keys() == {}
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "C")
    assert module.profile_keys() == {}, "the environment goes before it"


def test_a_large_file_may_take_longer_than_the_clients_own_limit(s3, tmp_path, monkeypatch):
    """Its 30 s are for the whole request: over a slow line no network would ever get into the store."""
    import obstore

    put, limits = obstore.put, []

    def watched(store, *args, **more):
        limits.append("timeout" in (store.client_options or {}))
        return put(store, *args, **more)

    monkeypatch.setattr(obstore, "put", watched)
    for size in (10, 2**20):
        place = Place.at(f"s3://samples/{tmp_path.name}{s3.query}") / f"file-{size}"
        conditional(place).put(place, bytes(size), None)
        assert place.read_bytes() == bytes(size)
    assert limits == [False, True]


def test_a_certificate_that_the_address_names_is_trusted_for_conditional_writes_too():
    certifi = pytest.importorskip("certifi")
    place = Place.at(f"s3://bucket/runs?endpoint_override=store:9000&scheme=https&tls_ca_file_path={certifi.where()}")
    assert "root_certificate" in conditional(place)._store.client_options


def test_a_bucket_with_dots_is_asked_for_by_its_path(monkeypatch):
    """As a part of the host it would not be covered by Amazon's certificate."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for bucket, hosted in (("data.example.com", "false"), ("plain", "true")):
        store = conditional(Place.at(f"s3://{bucket}/runs?region=us-west-2"))._store
        assert str(store.config["virtual_hosted_style_request"]).lower() == hosted


def test_a_link_whose_answer_was_lost_is_made(tmp_path, monkeypatch):
    """NFS asks again, and is told that the file exists."""
    link = os.link
    monkeypatch.setattr(module.os, "link", lambda *paths: (link(*paths), link(*paths)))
    place = Place.at(str(tmp_path)) / "file"
    conditional(place).put(place, b"x", None)
    assert place.read_bytes() == b"x"
    with pytest.raises(Changed):
        conditional(place).put(place, b"y", None)
