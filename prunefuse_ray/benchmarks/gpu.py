"""`gpu`: what a GPU does for this package, in less than five minutes: scoring and training, dense network against
proxies, precisions, compiled or not, decoding. Needs no Ray. What it cannot do here it skips, and says so."""

from __future__ import annotations

import argparse
import copy
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from prunefuse_ray import networks
from prunefuse_ray.data.images import ImageForm
from prunefuse_ray.networks.specs import first_line
from prunefuse_ray.training.augmentation import augment, draw

RATIOS = (0.5, 0.75, 0.875)
EXPECTED = {
    "p75_over_dense_bf16": "3 to 6: a quarter of the widths, but kernels of little work no longer fill the card",
    "bf16_over_fp32_dense": "2 to 4: tensor cores; TF32 is off for float32",
    "compiled_over_plain_p75": "1.2 to 2.5: a narrow network is bound by the launch of its kernels",
    "overlapped_over_plain": "1.0 to 1.5: copies of uint8 to the card hide behind the network",
    "busy_share_p75": "above .9 with compiled or overlapped, lower where launches decide",
    "decode_gpu_over_core": "5 to 15: nvJPEG against one core",
}
"""Before any measurement: by the roofline of an H100 (989 TFLOP/s bf16, 3.3 TB/s, 50 GB/s from the host)."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    architecture: str = "torchvision:resnet50"
    side: int = 224
    batch: int = 512
    train_batch: int = 256
    seconds: float = 2.0
    """Of each measurement."""


class Bench:
    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        networks.full_float32()
        self.form = ImageForm(height=sizes.side, width=sizes.side, channels=3)
        self.spec = networks.NetworkSpec(
            architecture=sizes.architecture, classes=10, input_shape=self.form.network_shape
        )
        dense = networks.build(self.spec, seed=0)
        self.networks: dict[str, nn.Module] = {"dense": dense}
        for ratio in RATIOS:
            pruning = networks.PruningSpec(ratio=ratio, round_to=8)
            self.networks[f"p{ratio * 1000:.0f}".rstrip("0")] = networks.prune(dense, self.spec, pruning).network
        rng = np.random.default_rng(0)
        self.pixels = torch.from_numpy(rng.integers(0, 256, (sizes.batch, sizes.side, sizes.side, 3), np.uint8))

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(self, work: Callable[[], object], samples: int) -> float:
        """Samples per second, the first call aside."""
        work()
        self.synchronize()
        taken: list[float] = []
        while sum(taken) < self.sizes.seconds or not taken:
            started = time.perf_counter()
            work()
            self.synchronize()
            taken.append(time.perf_counter() - started)
        return samples / statistics.median(taken)

    def runner(self, name: str, backend: str, precision: str) -> networks.Runner:
        example = self.form.inputs(self.pixels.to(self.device))
        return networks.BACKENDS[backend].runner(
            copy.deepcopy(self.networks[name]), precision=precision, device=self.device, example=example, threads=1
        )  # fmt: skip

    def scored(self, name: str, backend: str, precision: str) -> Callable[[], None]:
        """A batch as the product's scorer does it: uint8 to the device, normalized there, logits back."""
        run = self.runner(name, backend, precision)

        def work() -> None:
            with torch.inference_mode():
                y = run(self.form.inputs(self.pixels.to(self.device)))
                (y[0] if isinstance(y, tuple) else y).float().cpu()

        return work

    def scoring(self, name: str, backend: str, precision: str) -> float:
        """Samples per second as the product's scorer does them."""
        work = self.scored(name, backend, precision)

        return self.rate(work, self.sizes.batch)

    def bare(self, name: str, backend: str, precision: str) -> float:
        """The network alone, over inputs that lie on the device."""
        run, x = self.runner(name, backend, precision), self.form.inputs(self.pixels.to(self.device))

        def work() -> None:
            with torch.inference_mode():
                run(x)

        return self.rate(work, self.sizes.batch)

    def overlapped(self, name: str, backend: str, precision: str, batches: int = 8) -> float:
        """Pinned uint8 on a stream of its own: the next batch travels while this one is scored. CUDA alone."""
        run, copies = self.runner(name, backend, precision), torch.cuda.Stream()
        pinned = [self.pixels.clone().pin_memory() for _ in range(2)]

        def work() -> None:
            with torch.inference_mode():
                ahead: torch.Tensor | None = None
                for i in range(batches + 1):
                    now, ahead = ahead, None
                    if i < batches:
                        with torch.cuda.stream(copies):
                            ahead = pinned[i % 2].to(self.device, non_blocking=True)
                    if now is not None:
                        y = run(self.form.inputs(now))
                        (y[0] if isinstance(y, tuple) else y).float().cpu()
                    torch.cuda.current_stream().wait_stream(copies)

        return self.rate(work, batches * self.sizes.batch)

    def busy(self, name: str, backend: str, precision: str) -> float:
        """Share of the time in which kernels ran while batches were scored as the product does."""
        from torch.profiler import ProfilerActivity, profile

        work = self.scored(name, backend, precision)

        work()
        self.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            started = time.perf_counter()  # the profiler's own start and end are no part of it
            for _ in range(5):
                work()
            self.synchronize()
            seconds = time.perf_counter() - started
        kernels = [event for event in seen.key_averages() if not event.key.startswith(("Memcpy", "Memset"))]
        return sum(event.self_device_time_total for event in kernels) / 1e6 / seconds

    def training(self, name: str) -> float:
        """uint8 on the device, crops and flips in tensor code, bf16 autocast, SGD: samples per second."""
        network = networks.channels_last(copy.deepcopy(self.networks[name]).to(self.device)).train()
        pixels = self.pixels[: self.sizes.train_batch].to(self.device)
        y = torch.randint(10, (len(pixels),), device=self.device)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9, nesterov=True)
        generator = torch.Generator().manual_seed(0)

        def work() -> None:
            x = self.form.inputs(augment(pixels, draw(len(pixels), generator), ["crop", "flip"]))
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = nn.functional.cross_entropy(network(x.contiguous(memory_format=torch.channels_last)), y)
            loss.backward()
            optimizer.step()

        return self.rate(work, len(pixels))

    def decoding(self) -> float:
        """JPEGs of 500 x 375 a second, decoded and not scaled: one core by Pillow."""
        data = _jpeg()

        def work() -> None:
            for _ in range(64):
                with Image.open(io.BytesIO(data)) as image:
                    np.asarray(image)

        return self.rate(work, 64)

    def decoding_there(self) -> float:
        """The same by the device's nvJPEG. CUDA alone."""
        from torchvision.io import decode_jpeg

        encoded = [torch.from_numpy(np.frombuffer(_jpeg(), np.uint8).copy()) for _ in range(64)]
        return self.rate(lambda: decode_jpeg(encoded, device=self.device), 64)


def _jpeg() -> bytes:
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    coarse = Image.fromarray(rng.integers(0, 256, (8, 11, 3), np.uint8))
    coarse.resize((500, 375), Image.Resampling.BICUBIC).save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def run(bench: Bench) -> dict[str, Any]:
    """The figures; those that could not be had are in `skipped`, with the reason."""
    figures: dict[str, float] = {}
    skipped: dict[str, str] = {}
    cuda = bench.device.type == "cuda"

    def measured(name: str, work: Callable[[], float], wants_cuda: bool = False) -> None:
        if wants_cuda and not cuda:
            skipped[name] = "needs a CUDA device"
            return
        try:
            figures[name] = work()
        except Exception as error:  # of drivers and compilers; the other figures still count
            skipped[name] = f"{type(error).__name__}: {first_line(error)}"

    for name in bench.networks:
        for precision in ("fp32", "bf16"):
            measured(f"bare_{name}_{precision}", partial(bench.bare, name, "torch", precision))
        measured(f"scored_{name}", partial(bench.scoring, name, "torch", "bf16"))
        measured(f"compiled_{name}", partial(bench.bare, name, "compile", "bf16"), wants_cuda=True)
        measured(f"overlapped_{name}", partial(bench.overlapped, name, "torch", "bf16"), wants_cuda=True)
        measured(f"busy_{name}", partial(bench.busy, name, "torch", "bf16"), wants_cuda=True)
        measured(f"trained_{name}", partial(bench.training, name))
    measured("decoded_core", bench.decoding)
    measured("decoded_gpu", bench.decoding_there, wants_cuda=True)
    ratios = {
        "p5_over_dense_bf16": ("bare_p5_bf16", "bare_dense_bf16"),
        "p75_over_dense_bf16": ("bare_p75_bf16", "bare_dense_bf16"),
        "p875_over_dense_bf16": ("bare_p875_bf16", "bare_dense_bf16"),
        "p75_over_dense_scored": ("scored_p75", "scored_dense"),
        "p75_over_dense_trained": ("trained_p75", "trained_dense"),
        "bf16_over_fp32_dense": ("bare_dense_bf16", "bare_dense_fp32"),
        "compiled_over_plain_p75": ("compiled_p75", "bare_p75_bf16"),
        "overlapped_over_plain": ("overlapped_p75", "scored_p75"),
        "decode_gpu_over_core": ("decoded_gpu", "decoded_core"),
    }
    figures |= {
        name: figures[over] / figures[under]
        for name, (over, under) in ratios.items()
        if over in figures and under in figures
    }
    if "busy_p75" in figures:
        figures["busy_share_p75"] = figures["busy_p75"]
    return {"figures": figures, "skipped": skipped, "expected": EXPECTED}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py gpu", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="a small network for a moment, on whatever there is")
    given = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = given.dry_run or device.type == "cpu"
    sizes = Sizes(architecture="resnet8", side=16, batch=8, train_batch=8, seconds=0.001) if small else Sizes()
    started = time.perf_counter()
    found = run(Bench(sizes, device))
    found |= {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "architecture": sizes.architecture,
        "seconds": time.perf_counter() - started,
    }
    for name, value in found["figures"].items():
        expected = f"  expected {EXPECTED[name]}" if name in EXPECTED else ""
        print(f"{name:28} {value:,.2f}{expected}")
    for name, why in found["skipped"].items():
        print(f"{name:28} skipped: {why}")
    print(json.dumps(found, sort_keys=True), flush=True)
    return 0
