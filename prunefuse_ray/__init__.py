"""PruneFuse on Ray: select samples with a pruned proxy, then fuse it into the dense network."""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # torch is imported only by those who load a network.
    if name == "load":
        from prunefuse_ray.inference.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
