"""Small files, whole or not at all, on a local disk and on a filesystem that is none."""

import contextlib
import errno
import os
import pickle
import signal
from contextlib import suppress
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from prunefuse_ray import storage
from prunefuse_ray.errors import ConfigError, LedgerError, store_trouble
from prunefuse_ray.progress import temporary
from prunefuse_ray.storage import Place, below, parted


@pytest.fixture(params=["local", "other"])
def root(request, tmp_path):
    """A local directory, and the same behind a filesystem that pyarrow does not know as local."""
    if request.param == "local":
        return Place.at(str(tmp_path))
    return Place(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "run")


def test_bytes_json_and_tables_come_back(root):
    (root / "a" / "b").write_bytes(b"\x00\x01")
    assert (root / "a" / "b").read_bytes() == b"\x00\x01"
    (root / "c.json").write_json({"x": [1, None, "é"]})
    assert (root / "c.json").read_json() == {"x": [1, None, "é"]}
    table = pa.table({"id": ["a"], "n": [1]})
    (root / "t").write_table(table)
    assert (root / "t").read_table(table.schema).equals(table)


def test_listing_deleting_and_absence(root):
    assert not (root / "x").exists()
    assert (root / "x").files() == []
    (root / "x").delete()
    for name in ("b", "a", "sub/c"):
        (root / "x" / name).write_bytes(b"1")
    assert [f.base_name for f in (root / "x").files()] == ["a", "b"]
    assert [f.base_name for f in (root / "x").files(recursive=True)] == ["a", "b", "c"]
    (root / "x").delete()
    assert not (root / "x").exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    place = Place.at(str(tmp_path / "a"))
    place.write_bytes(b"old")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        place.write_bytes(b"new")
    assert place.read_bytes() == b"old"


def test_damaged_files_are_said(root):
    (root / "a.json").write_bytes(b"{")
    with pytest.raises(LedgerError, match=r"a\.json.*not valid JSON"):
        (root / "a.json").read_json()
    (root / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(LedgerError, match=r"a\.parquet.*not a readable Parquet"):
        (root / "a.parquet").read_table(pa.schema([("id", pa.string())]))
    (root / "b.parquet").write_table(pa.table({"x": [1]}))
    with pytest.raises(LedgerError, match="expected"):
        (root / "b.parquet").read_table(pa.schema([("id", pa.string())]))


def test_uris_and_paths_name_the_same_place(tmp_path):
    assert Place.at(f"file://{tmp_path}") == Place.at(str(tmp_path)) == Place.at(str(tmp_path) + "/")


@pytest.mark.parametrize("name", ["my photos", "fotos ä", "a[0-9]*.parquet", "a%20b"])
def test_a_uri_may_hold_what_has_to_be_encoded(tmp_path, name):
    assert Place.at(f"file://{tmp_path}/{name}").path == f"{tmp_path}/{name.replace('%20', ' ')}"


def test_a_uri_of_no_known_kind_is_refused():
    with pytest.raises(ConfigError, match="'foo://x' is no place that can be used"):
        Place.at("foo://x")


# --- S3 and what speaks like it ---


@pytest.mark.parametrize("traveled", [False, True])
def test_the_store_of_a_uri(traveled):
    place = Place.at("s3://bucket/runs/train-*.parquet?endpoint_override=store.example:9000&scheme=http&region=here")
    if traveled:
        place = pickle.loads(pickle.dumps(place))
    assert place.path == "bucket/runs/train-*.parquet"
    assert not place.local
    assert isinstance(place.fs, pafs.S3FileSystem)
    assert place.fs.region == "here"
    options = pafs.S3FileSystem.__reduce__(place.fs)[1][0]
    assert (options["endpoint_override"], options["scheme"]) == ("store.example:9000", "http")
    assert options["access_key"] is None
    assert options["secret_key"] is None


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_of_the_environment_travels_with_the_place(monkeypatch, variable):
    monkeypatch.setenv(variable, "http://store.example:9000/")
    place = Place.at("s3://bucket/runs")
    monkeypatch.delenv(variable)
    options = pafs.S3FileSystem.__reduce__(pickle.loads(pickle.dumps(place)).fs)[1][0]
    assert (options["endpoint_override"], options["scheme"]) == ("store.example:9000", "http")


def test_a_store_that_refuses_for_a_while_is_asked_again(monkeypatch):
    """Three refusals in a row, which is one more than Arrow's own patience."""
    import http.server
    import threading

    asked = []

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(503 if len(asked) < 4 else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tester")
    place = Place.at(f"s3://bucket/runs?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=here")
    try:
        with pytest.raises(FileNotFoundError):
            pickle.loads(pickle.dumps(place / "config.yaml")).read_bytes()
    finally:
        server.shutdown()
    assert len(asked) >= 4


@pytest.mark.parametrize("broken", [2, 3])
def test_an_answer_that_broke_off_is_asked_for_again(broken):
    """The driver was suspended in the middle of reading, and its connection died meanwhile."""
    said = "AWS Error INTERNAL_FAILURE during GetObject operation: Failed to flush response stream (eof: 0, bad: 1)"
    asked = []

    def opened(path):
        asked.append(path)
        file = contextlib.nullcontext(SimpleNamespace(readall=lambda: b"labels"))
        if len(asked) <= broken:
            file = contextlib.nullcontext(SimpleNamespace(readall=lambda: (_ for _ in ()).throw(OSError(said))))
        return file

    place = Place(SimpleNamespace(open_input_file=opened), "bucket/labels.parquet")
    if broken < 3:
        assert place.read_bytes() == b"labels"
        return
    with pytest.raises(OSError, match="Failed to flush") as caught:  # and not that the file is damaged
        place.read_table(pa.schema([("id", pa.string())]))
    assert "the connection broke in the middle of an answer" in store_trouble(caught.value)


def test_a_tilde_is_the_home_unless_something_is_called_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert Place.at("~/runs").path == str(tmp_path / "home" / "runs")
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "runs").mkdir()
    assert Place.at("~/runs").path == str(tmp_path / "~" / "runs")


@pytest.mark.parametrize(
    ("directory", "parent", "name"),
    [
        ("runs/a", "runs", "a"),
        ("a", ".", "a"),
        ("/a", "/", "a"),
        ("s3://bucket/runs/a", "s3://bucket/runs", "a"),
        (
            "s3://bucket/runs/a?scheme=http&tls_ca_file_path=/x/y",
            "s3://bucket/runs?scheme=http&tls_ca_file_path=/x/y",
            "a",
        ),
    ],
)
def test_the_options_of_a_store_stay_at_the_end_of_its_uri(directory, parent, name):
    assert parted(directory) == (parent, name)
    assert below(parent, name).removeprefix("./") == directory


def test_writers_in_two_containers_do_not_get_into_each_others_way(tmp_path, monkeypatch):
    """On a volume that both mount, and with the same process number."""
    place, synchronize, other = Place.at(str(tmp_path / "file")), os.fsync, []

    def meanwhile(number):
        synchronize(number)
        if not other:
            other.append(True)
            place.write_bytes(b"the other one's")

    monkeypatch.setattr(os, "fsync", meanwhile)
    place.write_bytes(b"the first one's")
    assert place.read_bytes() == b"the first one's"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_temporary_files_lie_where_those_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert temporary() == str(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "of another machine"))
    assert temporary() is None


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Place.at(str(tmp_path / "file")).write_bytes(b"half of it")
    assert not list(tmp_path.iterdir())


def test_a_flipped_byte_of_a_table_is_an_error(tmp_path):
    place, table = Place.at(str(tmp_path / "t.parquet")), pa.table({"id": ["abcdefgh"]})
    place.write_table(table)
    place.write_bytes(place.read_bytes().replace(b"abcdefgh", b"abcdefgi"))
    with pytest.raises(LedgerError):
        place.read_table(table.schema)


def test_an_interrupt_in_the_middle_of_an_upload_leaves_it_whole():
    """Arrow completes the upload of a stream that is closed, with what it has."""
    stored = {"bucket/file": b"old"}

    class Upload:
        parts = b""

        def __enter__(self):
            signal.raise_signal(signal.SIGINT)  # as the request that begins it returns
            return self

        def write(self, data):
            self.parts += data

        def __exit__(self, *_):
            stored["bucket/file"] = self.parts

    store = SimpleNamespace(type_name="s3", open_output_stream=lambda _: Upload())
    with suppress(KeyboardInterrupt):
        Place(store, "bucket/file").write_bytes(b"new")
    assert stored["bucket/file"] in (b"old", b"new")


@pytest.mark.parametrize("scheme", ["gs", "gcs"])
def test_patience_is_that_of_every_store(scheme, monkeypatch):
    monkeypatch.setattr(storage._Patience, "seconds", 7.0)
    options = Place.at(f"{scheme}://bucket/runs").fs.__reduce__()[1][0]
    assert options["retry_time_limit"].total_seconds() == 7
    own = Place.at(f"{scheme}://bucket/runs?retry_limit_seconds=3").fs.__reduce__()[1][0]
    assert own["retry_time_limit"].total_seconds() == 3


def test_two_slashes_at_the_beginning_are_one():
    assert Place.at("//tmp/runs").path == "/tmp/runs"


def test_a_slash_too_many_is_none(tmp_path):
    """As of "$BUCKET/runs" where BUCKET ends in one."""
    assert Place.at("s3://bucket//runs///a?region=here").path == "bucket/runs/a"
    assert Place.at(f"file://{tmp_path}//a").path == f"{tmp_path}/a"


@pytest.mark.parametrize("uri", ["s3://bukcet/runs", "hdfs://node/runs"])
def test_a_store_that_is_not_there_is_said_and_one_that_fails_is_not_taken_for_it(monkeypatch, uri):
    """Without a region Arrow asks Amazon where the bucket lies."""
    said = ["Bucket 'bukcet' not found"]

    def asked(*_, **__):
        raise OSError(said[0])

    monkeypatch.setattr(storage, "_s3", asked)
    monkeypatch.setattr(storage.pafs, "FileSystem", SimpleNamespace(from_uri=asked))
    with pytest.raises(ConfigError, match=r"is not there \(Bucket 'bukcet' not found\); name a bucket that exists"):
        Place.at(uri)
    said[0] = "When resolving region for bucket 'b': AWS Error NETWORK_CONNECTION during HeadBucket operation: away"
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        Place.at(uri)
