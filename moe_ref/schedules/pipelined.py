"""Capacity in chunks: the exchange of one beside the experts of another (Tutel, arXiv 2206.03382, 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moe_ref.routing import Routing
from moe_ref.schedules.base import Layer, Message, Schedule, Shape
from moe_ref.schedules.parts import Plan, in_parts, traffic


@dataclass(frozen=True, slots=True)
class Pipelined(Schedule):
    """chunks: d. Chunk i has rows floor(i C / d) .. floor((i + 1) C / d) of every expert, and of a dropless layer the
    same part of what each rank has for it. r: as in `sequential`, but not 0.

    Experts' products have d times fewer rows, so they take longer in all; what is won is hidden communication.
    """

    name: ClassVar[str] = "pipelined"
    chunks: int = 2
    r: int = 1

    def check(self, layer: Layer) -> None:
        Schedule.check(self, layer)
        Plan(r=self.r, chunks=self.chunks).check(layer)

    def forward(
        self, layer: Layer, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Routing]:
        return in_parts(layer, Plan(r=self.r, chunks=self.chunks), x_TD, padding_T, generator)

    def traffic(self, shape: Shape) -> list[Message]:
        return traffic(shape, Plan(r=self.r, chunks=self.chunks))
