"""Channel importances, by which pruning decides what stays; those that need the weights only, no data, no gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Importance:
    """One of torch-pruning's, by the name of its class."""

    about: str
    """What a channel is judged by: one line of help."""
    kind: str
    options: Mapping[str, object] = field(default_factory=dict)

    def make(self) -> Callable:
        """A function from one of torch-pruning's groups to the importances of its channels."""
        from torch_pruning import importance

        return getattr(importance, self.kind)(**self.options)


IMPORTANCES: dict[str, Importance] = {
    "magnitude": Importance(about="L2 norm of its weights", kind="MagnitudeImportance", options={"p": 2}),
    "magnitude_l1": Importance(about="L1 norm of its weights", kind="MagnitudeImportance", options={"p": 1}),
    "random": Importance(about="chance", kind="RandomImportance"),
    "lamp": Importance(
        about="L2 norm relative to the larger ones (arXiv 2010.07611), which keeps the channels that magnitude keeps",
        kind="LAMPImportance",
    ),
    "fpgm": Importance(about="distance from the others (arXiv 1811.00250)", kind="FPGMImportance"),
    "bn_scale": Importance(
        about="gain of its batch norm (arXiv 1708.06519), which tells nothing before training", kind="BNScaleImportance"
    ),
}
