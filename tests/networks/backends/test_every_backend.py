"""What every registered backend promises, against the plain network in float32."""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from prunefuse_ray.networks import (
    BACKENDS,
    Committee,
    NetworkError,
    NetworkSpec,
    PruningSpec,
    build,
    example_input,
    features_and_logits,
    prune,
    split,
)
from prunefuse_ray.networks.backends.backend import DEVICES

TOLERANCES = {"fp32": 1e-4, "bf16": 0.05}
"""Largest difference of a logit, relative to the largest logit."""
BATCH = 8
IMAGES = NetworkSpec(architecture="resnet8", classes=10, input_shape=(3, 8, 8))
TEXTS = NetworkSpec(architecture="textcnn", classes=4, input_shape=(48,))
SPECS = {"images": IMAGES, "texts": TEXTS, "committee": IMAGES}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name == "compile" else []) for name in BACKENDS]
FOUND = [device for device in DEVICES if device == "cpu" or torch.cuda.is_available()]


def network(kind: str) -> torch.nn.Module:
    spec = SPECS[kind]
    dense = build(spec, seed=0)
    if kind == "committee":
        made = Committee(split(dense, spec, PruningSpec(ratio=0.5), 2)).network
    else:
        made = prune(dense, spec, PruningSpec(ratio=0.5)).network
    with torch.no_grad():
        for batch in range(3):  # statistics as of a trained network
            made.train()(example_input(spec, samples=16, seed=batch))
    return made


@functools.cache
def expected(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and logits of the plain network."""
    plain = network(kind).eval()
    with torch.inference_mode():
        return features_and_logits(plain, example_input(SPECS[kind], samples=BATCH))


def cases(name):
    backend = BACKENDS[name]
    if why := backend.lacks():
        pytest.skip(why)
    return [(backend, d, p) for d in backend.devices if d in FOUND for p in backend.precisions]


KINDS = [pytest.param(k, marks=[pytest.mark.slow] if k != "images" else []) for k in SPECS]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_plain_network(name, kind):
    x = example_input(SPECS[kind], samples=BATCH)
    features, logits = expected(kind)
    for backend, device, precision in cases(name):
        given = x.to(device)
        run = backend.runner(
            network(kind), precision=precision, device=torch.device(device), example=torch.zeros_like(given), threads=1
        )
        off = TOLERANCES[precision] * logits.abs().max()
        with torch.inference_mode():
            found = run(given)
            assert found.shape == logits.shape
            assert (found.float().cpu() - logits).abs().max() <= off, (device, precision)
            assert torch.equal(run(given).cpu(), found.cpu()), "the same inputs give the same outputs"
        if backend.features:
            how = {"precision": precision, "device": torch.device(device), "example": torch.zeros_like(given)}
            run = backend.runner(network(kind), **how, threads=1, features=True)
            with torch.inference_mode():
                again, seen = run(given)
            assert (again.float().cpu() - logits).abs().max() <= off
            assert (seen.float().cpu() - features).abs().max() <= TOLERANCES[precision] * features.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_what_it_does_not_declare_is_refused(name):
    backend = BACKENDS[name]
    x = example_input(IMAGES)
    for device in set(DEVICES) - set(backend.devices):
        assert f"{name} runs on" in backend.refusal(device=device)
        with pytest.raises(NetworkError, match=r"scoring\.backend"):
            backend.runner(network("images"), precision="fp32", device=torch.device(device), example=x, threads=1)
    for precision in set(TOLERANCES) - set(backend.precisions):
        with pytest.raises(NetworkError, match=f"not in {precision}: set scoring.precision or scoring.backend to auto"):
            backend.runner(network("images"), precision=precision, device=torch.device("cpu"), example=x, threads=1)
    refused = backend.refusal(device=backend.devices[0], features=True)
    assert (refused is None) == backend.features


@pytest.mark.parametrize("name", BACKENDS)
def test_it_says_what_it_is(name):
    backend = BACKENDS[name]
    assert backend.name == name
    assert backend.about
    assert set(backend.devices) <= set(DEVICES)
    assert set(backend.precisions) <= set(TOLERANCES)
    assert set(backend.auto) <= set(backend.devices)
    assert backend.help.startswith(backend.about)


@pytest.mark.parametrize("name", NAMES)
def test_one_network_serves_several_threads_to_the_same_bits(name):
    for backend, device, precision in cases(name):
        if not backend.concurrent:
            continue
        x = example_input(IMAGES, samples=BATCH).to(device)
        how = {"precision": precision, "device": torch.device(device), "example": x, "threads": 1}
        alone = backend.runner(network("images"), **how)(x)
        shared = backend.runner(network("images"), **how, callers=3)
        with ThreadPoolExecutor(3) as pool:
            for found in pool.map(lambda _, run=shared, x=x: run(x), range(12)):
                torch.testing.assert_close(found, alone, rtol=0, atol=0)
