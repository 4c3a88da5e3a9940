"""The sections `network`, `pruning`, `fusion` and `distillation`: the dense network, its proxy, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from prunefuse_ray.config.names import Named
from prunefuse_ray.config.section import PathOrUri, Positive, Section, Share, no_credentials
from prunefuse_ray.networks.fusion import FUSION_RULES
from prunefuse_ray.networks.importance import IMPORTANCES
from prunefuse_ray.networks.specs import unknown_importance

FusionRuleName = Annotated[str, Named(registry=FUSION_RULES, describe=lambda rule: rule.help)]


class Network(Section):
    """The dense network: the one the user wants trained."""

    architecture: str = "resnet20"
    """resnet8/14/20/32/44/56/110/164, another built-in name, torchvision:NAME, timm:NAME, package.module:function for
    one's own; or transformers:FOLDER for an encoder of texts in a folder with config.json and tokenizer.json (path or
    URI), of which attention heads and feed-forward units are pruned."""
    weights: PathOrUri | None = None
    """Trained weights of the dense network: a path or URI of safetensors, of a checkpoint that holds tensors alone, or
    of an encoder's folder, for its model.safetensors; or by name, through the library's own download and cache:
    torchvision:DEFAULT (or its name for them, such as IMAGENET1K_V2), timm:DEFAULT (or timm:NAME),
    huggingface:OWNER/NAME. The proxy is pruned from them; if the number of classes differs, the last layer is newly
    initialized. Default of transformers:FOLDER: that folder; null: random weights."""

    @field_validator("architecture")
    @classmethod
    def _folder(cls, value: str) -> str:
        no_credentials(encoder_folder(value) or "")
        return value


TRANSFORMERS = "transformers:"


def encoder_folder(architecture: object) -> str | None:
    """The folder of an encoder of texts that `network.architecture` names; None where it names another network."""
    named = isinstance(architecture, str) and architecture.startswith(TRANSFORMERS)
    return str(architecture).removeprefix(TRANSFORMERS) if named else None


def committee_ratio(pruning: Mapping[str, Any]) -> float | None:
    """The pruning ratio that follows from the fields of this section, not yet validated: that of its committee's
    members. None where it names no committee of two or more, or a ratio itself."""
    size = str(pruning.get("committee", 1))
    return 1 - 1 / int(size) if "ratio" not in pruning and size.isdecimal() and int(size) > 1 else None


class Pruning(Section):
    """How the proxy is cut out of the dense network at initialization."""

    ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Pruning ratio: share of the channels of every layer that is removed."""
    importance: str = Field(
        "magnitude",
        description="What a channel is judged by: " + "; ".join(f"{n}: {i.about}" for n, i in IMPORTANCES.items()),
    )
    steps: Positive = 1
    """Number of pruning steps on the way to the ratio."""
    committee: Positive = 1
    """Disjoint proxies that together cover the dense network. Above 1 the ratio is 1 - 1 / committee: a committee given
    on the command line or in an arm replaces the ratio of the file or the sweep's base. They are trained side by side,
    vote, and are fused into one network."""
    round_to: Positive | None = None
    """Bring kept channel counts to the nearest multiple of this, at least one, since vector units compute whole
    multiples anyway (CPUs with matrix units: 16, GPUs: 8); layers that are no wider than it keep the exact share. What
    pays on this machine: `prunefuse networks ARCHITECTURE --measure`."""

    @model_validator(mode="before")
    @classmethod
    def _even_shares(cls, tree: Any) -> Any:
        """The share that a committee leaves each member follows from its size."""
        ratio = committee_ratio(tree) if isinstance(tree, dict) else None
        return tree if ratio is None else {"ratio": ratio, **tree}

    @field_validator("importance")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in IMPORTANCES:
            raise ValueError(unknown_importance(value))
        return value

    @model_validator(mode="after")
    def _partition(self) -> Pruning:
        if self.committee > 1 and abs(self.ratio - (1 - 1 / self.committee)) > 1e-9:
            raise ValueError(
                f"ratio {self.ratio:g} does not make {self.committee} disjoint proxies: leave it out, or set it to "
                f"{1 - 1 / self.committee:g}"
            )
        if self.committee > 1 and (self.steps > 1 or self.round_to is not None):
            raise ValueError(
                f"committee {self.committee} is cut in one step and by equal shares: leave out steps and round_to"
            )
        return self


class Fusion(Section):
    """How the trained proxy goes back into the dense network."""

    rule: FusionRuleName = "keep"
    """What becomes of the weights that the proxy did not have."""
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor of the rule `scaled` on the weights that function_preserving sets to zero."""
    shrink: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the trained weights in the rule `shrink_perturb`."""
    target: Literal["fused", "scratch"] = "fused"
    """Start of the target network: fused with the proxy, or the dense initialization alone (comparisons)."""
    evaluate: Literal["last", "every"] = "last"
    """Train the target after the last round only, or after every round (an accuracy per label budget)."""
    sync_every: Annotated[int, Field(ge=0)] = 0
    """T_sync: every so many rounds the fused network is fine-tuned and pruned for the next rounds' proxy; 0: never."""


class Distillation(Section):
    """Knowledge distillation from the trained proxy while the fused network is fine-tuned."""

    weight: Share = 0.0
    """Weight w of the distillation term: loss = (1-w) CE + w T^2 KL(proxy || fused). The paper's method has one; by
    default it is off, since a teacher weaker than its student costs accuracy (docs: results)."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Temperature T of both softmaxes."""
    decay: Literal["none", "linear"] = "linear"
    """Keep the weight, or let it fall linearly to zero over the fine-tuning."""
