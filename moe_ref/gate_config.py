"""What a gate can be asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from commbench.errors import UsageError, unknown
from moe_ref import selection, slots
from moe_ref.capacity import Capacity

SECOND = ("all", "sampling", "random")
NORMALISE = ("after", "before", "never")
ROUTERS = ("linear", "cosine")
LOSSES = ("gshard", "gshard_all", "importance_load", "z")
DTYPES: dict[str, torch.dtype | None] = {"fp32": torch.float32, "fp64": torch.float64, "input": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """Says what a gate does. The defaults are Tutel's, but for `normalise`.

    experts, top_k: E and K, with K <= E.
    capacity: the rule for C.
    order: who is served first (`slots.ORDERS`).
    second: experts after the first. `all`: the K best. `sampling`: the best stays, the others are drawn in proportion
        to their scores without replacement (Gumbel noise; fairseq, DeepSpeed top-2). `random`: the K best, of which
        each but the first is taken with probability min(1, 2 weight) only (GShard 3.1, fairseq).
    normalise: whether weights are divided by their sum over the choices that found a slot (`after` dropping: fairseq,
        DeepSpeed) or over all K (`before`: Tutel, fairseq on request), or `never`. K = 1 is never normalised, as in all
        three, or the gate would get no gradient from the tokens.
    dtype: of the gate's parameters and arithmetic: `fp32`, `fp64`, or `input`'s.
    router: `linear`: x W, no bias. `cosine`: cosine similarity of a projection to `cosine_dim` with one vector an
        expert, times a learnt steepness of at most 100 that starts at 1 / `cosine_temperature` (Tutel; Chi et al.,
        arXiv 2204.09179).
    jitter, dropout: on the gate's input, in training: times U(1 - jitter, 1 + jitter); elements set to 0 with
        probability `dropout` (Switch Transformers, arXiv 2101.03961, appendix C).
    noise: in training, logits + noise N(0, 1) / E (V-MoE, arXiv 2106.05974; Tutel). Choices, scores and the GShard
        loss see it; importance and the z loss do not.
    score: what weights are made of: `softmax` of the logits, or `sigmoid` of each (DeepSeek-V3, Llama 4).
    expert_bias: the gate has a buffer `expert_bias_E`, which is added to scores for the choice alone and is in no
        weight; `Gate.balance` moves it by the loads of a step (Wang et al., arXiv 2408.15664).
    expert_groups, group_limit: experts stand in so many groups, and a token chooses from `group_limit` of them only
        (DeepSeek-V3, arXiv 2412.19437, 2.1.2); 0: from all.
    route_scale: factor of all weights, after they are normalised.
    losses: of `LOSSES`, each a name in `Routing.losses`; `gshard_all` counts all K choices.

    Raises `UsageError` for what cannot be meant, with the names and numbers.
    """

    experts: int
    top_k: int = 2
    capacity: Capacity = field(default_factory=Capacity)
    order: str = "position"
    second: str = "all"
    normalise: str = "after"
    dtype: str = "fp32"
    router: str = "linear"
    cosine_dim: int = 256
    cosine_temperature: float = 0.5
    jitter: float = 0.0
    dropout: float = 0.0
    noise: float = 0.0
    score: str = "softmax"
    expert_bias: bool = False
    expert_groups: int = 1
    group_limit: int = 0
    route_scale: float = 1.0
    losses: tuple[str, ...] = ("gshard",)

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise UsageError(f"experts={self.experts} is below 1", hint="a gate needs an expert")
        if not 1 <= self.top_k <= self.experts:
            raise UsageError(f"top_k={self.top_k} of experts={self.experts}", hint="1 <= top_k <= experts")
        tables = {"order": slots.ORDERS, "second": SECOND, "normalise": NORMALISE, "dtype": DTYPES,
                  "router": ROUTERS, "score": selection.SCORES}  # fmt: skip
        for name, table in tables.items():
            if getattr(self, name) not in table:
                raise unknown(name, getattr(self, name), table)
        for loss in self.losses:
            if loss not in LOSSES:
                raise unknown("loss", loss, LOSSES)
        for name, most in (("jitter", 1.0), ("dropout", 1.0), ("noise", math.inf)):
            if not 0 <= getattr(self, name) < most:  # nan is not
                raise UsageError(f"{name}={getattr(self, name)}", hint=f"0 <= {name} < {most}")
        if "importance_load" in self.losses and self.noise == 0:
            raise UsageError("the loss importance_load needs noise: load is what fresh noise would choose",
                             hint="set noise above 0")  # fmt: skip
        if self.cosine_dim < 1 or not 0.01 <= self.cosine_temperature < math.inf:
            raise UsageError(f"cosine_dim={self.cosine_dim}, cosine_temperature={self.cosine_temperature}",
                             hint="cosine_dim >= 1, cosine_temperature >= 0.01")  # fmt: skip
        self._check_choice()

    @property
    def groups_chosen_from(self) -> int:
        """How many groups of experts a token may choose from."""
        return self.group_limit or self.expert_groups

    @property
    def plain_choice(self) -> bool:
        """Whether a token's choices are those of its largest logits, with softmax scores."""
        return self.score == "softmax" and not self.expert_bias and self.groups_chosen_from == self.expert_groups

    def _check_choice(self) -> None:
        groups, limit = self.expert_groups, self.groups_chosen_from
        if groups < 1 or self.experts % groups:
            raise UsageError(f"expert_groups={groups} of experts={self.experts}", hint="a divisor of experts")
        if not 1 <= limit <= groups or limit * (self.experts // groups) < self.top_k:
            raise UsageError(
                f"group_limit={self.group_limit} of expert_groups={groups}, with {self.experts // groups} experts each",
                hint=f"0 (all), or at most {groups}, with top_k={self.top_k} experts in them at least",
            )
        if not 0 < self.route_scale < math.inf:
            raise UsageError(f"route_scale={self.route_scale}", hint="above 0")
        if not self.plain_choice:
            if self.second != "all":
                raise UsageError(f"second={self.second} draws from softmax scores of all experts",
                                 hint="second=all, or score=softmax without expert_bias and group_limit")  # fmt: skip
            if "importance_load" in self.losses:
                raise UsageError("the loss importance_load is defined for softmax scores of all experts",
                                 hint="gshard, gshard_all, z")  # fmt: skip
