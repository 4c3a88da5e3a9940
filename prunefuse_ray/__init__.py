"""PruneFuse on Ray: select samples with a pruned proxy, then fuse it into the dense network."""

from typing import Any

__all__ = ["__version__", "load"]

__version__: str


def __getattr__(name: str) -> Any:
    # Asked for by few: torch is imported only by those who load a network.
    match name:
        case "load":
            from prunefuse_ray.inference.predictor import load

            return load
        case "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                return version("prunefuse-ray")
            except PackageNotFoundError:  # a folder of code that was never installed, as a Ray job may bring it
                return "0+unknown"
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
