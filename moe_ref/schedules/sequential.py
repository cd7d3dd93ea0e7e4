"""One exchange, the experts, one exchange back: nothing overlaps. What the other schedules are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moe_ref.routing import Routing
from moe_ref.schedules.base import Layer, Message, Schedule, Shape
from moe_ref.schedules.parts import Plan, in_parts, traffic


@dataclass(frozen=True, slots=True)
class Sequential(Schedule):
    """r: 1, or 0 for no exchange of tokens, but all parameters on all ranks. Where E < W, any divisor of W / E too: on
    how many ranks a whole expert is in a step (`moe_ref.sharding`).
    """

    name: ClassVar[str] = "sequential"
    r: int = 1

    def check(self, layer: Layer) -> None:
        Schedule.check(self, layer)
        Plan(r=self.r).check(layer)

    def forward(
        self, layer: Layer, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Routing]:
        return in_parts(layer, Plan(r=self.r), x_TD, padding_T, generator)

    def traffic(self, shape: Shape) -> list[Message]:
        return traffic(shape, Plan(r=self.r))
