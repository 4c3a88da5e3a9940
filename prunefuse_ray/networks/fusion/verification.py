"""The proof that a fused network computes what the proxies compute."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunefuse_ray.networks.committee import Ensemble
from prunefuse_ray.networks.fusion.rule import Parts
from prunefuse_ray.networks.probe import in_highest_precision, probe_inputs
from prunefuse_ray.networks.specs import NetworkError
from prunefuse_ray.networks.structure import copied


def verify(fused: nn.Module, parts: Parts) -> None:
    """Raises NetworkError unless it computes the mean of the members' logits on a random sample."""
    members = [member.network for member in parts.members]
    spec = parts.members[0].spec

    @torch.no_grad()
    def outputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        inputs = probe_inputs(spec, dtype)
        expected, found = (
            copied(each).cpu().to(dtype).eval()(inputs.clone())  # it may work in place
            for each in (members[0] if len(members) == 1 else Ensemble(members), fused)
        )
        return expected, found

    (expected, found), tolerance = in_highest_precision(outputs)
    if not expected.isfinite().all():
        raise NetworkError("proxy: its logits are not finite; did its training diverge?")
    error = (expected - found).abs().max().item()
    if error <= tolerance * expected.abs().max().item():
        return
    if len(members) > 1:
        raise NetworkError(
            f"pruning.committee: {spec.architecture} cannot hold one: its layers mix the members' channels (the fused "
            f"network's logits would be off their mean by {error:.2g})"
        )
    raise NetworkError(
        f"fusion.rule: no function-preserving form is known for {spec.architecture} (its logits would be off by "
        f"{error:.2g}); use the rule 'keep'"
    )
