"""Channel importances, by which pruning decides what stays; those that need the weights only, no data, no gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Importance:
    """One of torch-pruning's, by the name of its class."""

    about: str
    """What a channel is judged by: one line of help."""
    kind: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    own: Callable[[], Callable] | None = None
    """Makes it, where torch-pruning's is something else."""

    def make(self) -> Callable:
        """A function from one of torch-pruning's groups to the importances of its channels."""
        from torch_pruning import importance

        return getattr(importance, self.kind)(**self.options) if self.own is None else self.own()


def _fpgm() -> Callable:
    """Distances between the weights, as in the paper and for encoders: torch-pruning's are between their squares, to
    which a kernel and its negative are the same."""
    import torch
    from torch_pruning import importance
    from torch_pruning.pruner import function

    makes = (function.prune_conv_out_channels, function.prune_linear_out_channels)
    reads = (function.prune_conv_in_channels, function.prune_linear_in_channels)

    class Distances(importance.FPGMImportance):
        def __call__(self, group, **_):
            found, places = [], []
            for i, (dep, idxs) in enumerate(group):
                if dep.pruning_fn in makes or dep.pruning_fn in reads:
                    weight = dep.layer.weight.detach()
                    if (dep.pruning_fn in reads) != getattr(dep.layer, "transposed", False):
                        weight = weight.transpose(0, 1)
                    rows = weight.flatten(1)[idxs]  # of a grouped convolution an IndexError, which `groups` names
                    found.append(torch.cdist(rows, rows).sum(0))
                    places.append(group[i].root_idxs)
            return self._normalize(self._reduce(found, places), self.normalizer) if found else None

    return Distances()


IMPORTANCES: dict[str, Importance] = {
    "magnitude": Importance(about="L2 norm of its weights", kind="MagnitudeImportance", options={"p": 2}),
    "magnitude_l1": Importance(about="L1 norm of its weights", kind="MagnitudeImportance", options={"p": 1}),
    "random": Importance(about="chance", kind="RandomImportance"),
    "lamp": Importance(
        about="L2 norm relative to the larger ones (arXiv 2010.07611), which keeps the channels that magnitude keeps",
        kind="LAMPImportance",
    ),
    "fpgm": Importance(about="distance from the others (arXiv 1811.00250)", own=_fpgm),
    "bn_scale": Importance(
        about="gain of its batch norm (arXiv 1708.06519), which tells nothing before training", kind="BNScaleImportance"
    ),
}
