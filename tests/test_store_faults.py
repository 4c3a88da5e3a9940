"""Requests to a store that fails: asked again within the bound, then one message.

Whole runs on such a store: test_object_stores.
"""

import time

import pytest

from prunefuse_ray import storage
from prunefuse_ray.conditional import conditional
from prunefuse_ray.errors import store_trouble
from prunefuse_ray.storage import Place, repetitions
from tests.support.s3 import s3_server


@pytest.fixture(scope="module")
def store():
    with s3_server() as server:
        server.hang = 4.0
        (Place.at(f"s3://samples/x{server.query}") / "file").write_bytes(b"content" * 1000)
        yield server


@pytest.fixture
def place(store):
    """Of a store that is asked again for two seconds."""
    storage.be_patient(2.0)
    yield Place.at(f"s3://samples/x{store.query}") / "file"
    storage.be_patient(storage.PATIENCE)


def test_repetitions_take_as_long_as_they_may():
    for seconds in (0.1, 2.0, 60.0, 600.0):
        pauses = [0.0] + [0.05 * 2**n for n in range(repetitions(seconds) - 1)]
        assert 0.7 * seconds < sum(pauses) < 1.6 * seconds


def test_a_store_that_is_away_is_asked_for_as_long_as_that(store, place):
    with store.misbehaving(503):
        began, refused = time.monotonic(), store.refused
        with pytest.raises(OSError, match="503"):
            place.exists()
        assert time.monotonic() - began >= 1.5
        assert store.refused - refused == repetitions(2.0) + 1


def test_patience_does_not_wear_out(store, place):
    """Arrow's own strategy repeats 100 requests of a client in all: a run of days has more that fail."""
    place.write_bytes(b"content")
    refused = store.refused
    with store.misbehaving(503, every=2):
        assert all(place.exists() for _ in range(150))
    assert store.refused - refused >= 140


LONG = (pytest.mark.slow, pytest.mark.faults)


def faults(*short):
    """Those of every test run, and the others for `make test-faults`."""
    every = (500, 503, 429, 403, "hang", "cut", "half")
    return [f if f in short else pytest.param(f, marks=LONG) for f in every]


@pytest.mark.parametrize("fault", faults(503, 403))
@pytest.mark.parametrize("how", ["read", "write", "conditional"])
def test_a_store_that_fails_for_good_is_one_message(store, place, fault, how):
    if how == "conditional" and fault in ("half", "cut", "hang"):
        pytest.skip("a write that was stored is none that failed")
    started = time.monotonic()
    do = {
        "read": place.read_bytes,
        "write": lambda: place.write_bytes(b"x"),
        "conditional": lambda: conditional(place).put(place.parent / "other", b"x", None),
    }[how]
    with store.misbehaving(fault), pytest.raises(OSError) as caught:  # noqa: PT011
        do()
    assert time.monotonic() - started < 60  # where nothing answers each attempt takes seconds
    said = store_trouble(caught.value)
    assert said is not None, str(caught.value)
    assert said.startswith("object store: ")
    assert "\n" not in said
    assert ("credentials" in said) == (fault == 403)


@pytest.mark.parametrize("fault", [f for f in faults(429, "cut") if 403 not in getattr(f, "values", (f,))])
def test_a_store_that_comes_back_is_no_error(store, fault):
    place = Place.at(f"s3://samples/y{store.query}") / "file"
    place.write_bytes(b"before" * 1000)
    store.lifted(1.0)
    with store.misbehaving(fault):
        assert place.read_bytes() == b"before" * 1000
        place.write_bytes(b"after")
    assert place.read_bytes() == b"after"


def test_errors_that_are_no_stores_stay_what_they_are():
    assert store_trouble(ValueError("AWS Error")) is None
    assert store_trouble(FileNotFoundError(2, "No such file or directory", "x")) is None
