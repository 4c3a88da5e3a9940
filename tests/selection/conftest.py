"""Shards in this process, any number of them."""

from types import SimpleNamespace

import pytest

from prunefuse_ray.selection import shards


class InThisProcess:
    """What `shards` asks of Ray, without processes: an actor takes seconds to start."""

    def remote(self, **_):
        return lambda cls: SimpleNamespace(remote=lambda *args: Actor(cls(*args)))

    def put(self, value):
        return value

    def get(self, answers):
        return answers

    def kill(self, actor):
        pass


class Actor:
    def __init__(self, held):
        self.held = held

    def __getattr__(self, method):
        return SimpleNamespace(remote=getattr(self.held, method))


@pytest.fixture(params=[0, 1, 2, 3])
def sharded(request, monkeypatch):
    """So many shards, in this process; as many as CPUs, since every one is worth it. Each sends few candidates, so that
    it matters what the others' keys are."""
    monkeypatch.setattr(shards, "STEP_BYTES", 0)
    monkeypatch.setattr(shards, "BYTES_WORTH_AN_ACTOR", 64 if request.param else 2**40)
    monkeypatch.setattr(shards, "ray", InThisProcess())
    return request.param
