"""The seam for fusion rules: what a rule is, and what it is given.

To add one: write it beside the others and name it in `fusion/__init__.py` (or register it from elsewhere, see
`prunefuse_ray/registry.py`). Validation, help and error texts follow from the entry. A configuration is checked by
these entries without torch: what a rule computes with is imported in its `apply`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunefuse_ray.networks.indices import Proxy


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What is fused. A rule reads it and changes nothing of it."""

    dense: nn.Module
    members: Sequence[Proxy]
    """The trained proxy; of a committee all proxies, whose channels are disjoint and together all of the dense
    network's."""
    parameters: Mapping[str, float]
    """Values of the rule's own `parameters`."""


@dataclass(frozen=True, kw_only=True)
class FusionRule:
    """How trained proxies and the dense network make the fused one."""

    name: str
    about: str
    """What becomes of the weights that no proxy had; they ...: one line of help."""
    paper: str = ""
    """Where it is described."""
    apply: Callable[[Parts], Mapping[str, Tensor]]
    """The fused network's tensors, under the dense network's names and in its shapes."""
    committees: bool = False
    """`apply` takes several members, too."""
    exact: bool = False
    """In evaluation mode the fused network computes what the proxy computes; of a committee, the mean of the members'
    logits. Every fusion is tried in float64 on a random sample, and refused where that does not hold."""
    holds_for: str = "any network"
    """The networks that it can be applied to. It raises NetworkError for others."""
    parameters: Mapping[str, float] = field(default_factory=dict)
    """Fields of the section `fusion` that it reads, with their defaults."""

    @property
    def limits(self) -> str:
        """What it reads, and what it is not for, in words."""
        limits = [f"reads fusion.{name}" for name in self.parameters]
        limits += [f"for {self.holds_for}"] if self.holds_for != "any network" else []
        limits += [] if self.committees else ["no committees"]
        return "; ".join(limits)

    @property
    def help(self) -> str:
        """Its line of help, with what it is limited to."""
        return f"the other weights {self.about}" + (f" ({self.limits})" if self.limits else "")
