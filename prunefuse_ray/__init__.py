"""PruneFuse on Ray: select samples with a pruned proxy, then fuse it into the dense network.

From Python: `prune`, `score`, `select`, `fuse` and `export` on a network, a training loop and data of your own;
`execute` and `Run` for whole runs; `load` for finished networks, `load_sweep` for the results of a sweep. These names
are stable.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunefuse_ray.api.runs import Report, Run, execute
    from prunefuse_ray.api.steps import Scores, export, fuse, prune, score, select
    from prunefuse_ray.api.sweeps import SweepResults, load_sweep
    from prunefuse_ray.inference.predictor import Predictor, load
    from prunefuse_ray.networks import Proxy

__all__ = [
    "Predictor",
    "Proxy",
    "Report",
    "Run",
    "Scores",
    "SweepResults",
    "__version__",
    "execute",
    "export",
    "fuse",
    "load",
    "load_sweep",
    "prune",
    "score",
    "select",
]

__version__: str
_WHERE = {
    "Predictor": "inference.predictor",
    "Proxy": "networks",
    "Report": "api.runs",
    "Run": "api.runs",
    "Scores": "api.steps",
    "SweepResults": "api.sweeps",
    "execute": "api.runs",
    "export": "api.steps",
    "fuse": "api.steps",
    "load": "inference.predictor",
    "load_sweep": "api.sweeps",
    "prune": "api.steps",
    "score": "api.steps",
    "select": "api.steps",
}
"""Name -> its module, which is imported when somebody asks for it: torch and Ray take seconds."""


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"prunefuse_ray.{_WHERE[name]}"), name)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("prunefuse-ray")
        except PackageNotFoundError:  # a folder of code that was never installed, as a Ray job may bring it
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
