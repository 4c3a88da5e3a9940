"""What the two networks of a run are called."""

from __future__ import annotations


def names(selector: str | None, target: str | None) -> tuple[str, str]:
    """(the network that selects, the network that is wanted). Only a pruned network is a proxy, and only what took its
    weights is fused.

    Args:
        selector: `selection.selector`; None, of earlier versions: a proxy.
        target: `fusion.target`.
    """
    return "proxy" if selector in (None, "proxy") else "selector", "target" if target == "scratch" else "fused"
