"""A rank's experts in groups: the exchange of one beside the products of another (EPS-MoE, arXiv 2410.12247)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moe_ref.routing import Routing
from moe_ref.schedules.base import Layer, Message, Schedule, Shape
from moe_ref.schedules.parts import Plan, in_parts, traffic


@dataclass(frozen=True, slots=True)
class ExpertGroups(Schedule):
    """groups: G, at most E / W. Group i has experts floor(i E_g / G) .. floor((i + 1) E_g / G) of each rank.

    Weights are read once and each expert has all of its rows in one product, where `pipelined` cuts them. It needs
    several experts on a rank.
    """

    name: ClassVar[str] = "expert_groups"
    groups: int = 2

    def check(self, layer: Layer) -> None:
        Schedule.check(self, layer)
        Plan(groups=self.groups).check(layer)

    def forward(
        self, layer: Layer, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Routing]:
        return in_parts(layer, Plan(groups=self.groups), x_TD, padding_T, generator)

    def traffic(self, shape: Shape) -> list[Message]:
        return traffic(shape, Plan(groups=self.groups))
