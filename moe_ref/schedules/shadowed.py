"""A layer's pass in which popular experts come to the tokens (FasterMoE, PPoPP 2022, "shadowing"). Dropless only.

    rank  x [T, D] ── Gate ─┬─ rows of popular experts ── Experts with weights from their ranks ────────┬─> y [T, D]
                            └─ the other rows ── exchange ── Experts ── exchange back ─────────────────┘

The weights of an expert whose rows would fill its rank's links go to all ranks, and their gradients come back and are
added up; its rows stay where they are. Which experts, all ranks know alike from everybody's counts, in each pass anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from commbench.errors import UsageError
from moe_ref import exchange, sharding
from moe_ref.profiling import labelled
from moe_ref.routing import Routing
from moe_ref.schedules.base import COUNT_BYTES, Layer, Schedule, Shape, TrafficEntry, agreement_traffic, merged
from moe_ref.schedules.overlap import start

POPULAR = 1.5  # times the rows of the mean expert, at the least: balanced ones move nothing


class ShadowCost(NamedTuple):
    """Bytes that the busiest rank sends or receives for each row that leaves or reaches it, and for each expert.

    row: there and back, forward and backward. expert: of one expert's weights, and of their gradients.
    """

    row: float
    expert: float

    def of(self, rows_WE: np.ndarray, shadows: Sequence[int]) -> float:
        """Return the bytes of the busiest rank. rows_WE: of each rank for each expert."""
        ranks, experts = rows_WE.shape
        left = rows_WE.astype(np.float64)
        left[:, list(shadows)] = 0
        between_WW = left.reshape(ranks, ranks, -1).sum(axis=2)
        np.fill_diagonal(between_WW, 0)
        owned_W = np.bincount([expert * ranks // experts for expert in shadows], minlength=ranks)
        moved_W = np.maximum(between_WW.sum(axis=0), between_WW.sum(axis=1)) * self.row
        weights_W = np.maximum((ranks - 1) * owned_W, len(shadows) - owned_W) * self.expert
        return float((moved_W + weights_W).max())


def chosen(rows_WE: np.ndarray, cost: ShadowCost) -> list[int]:
    """Return the experts whose weights move: the first few popular ones, so that the busiest rank's bytes are least.

    First comes the one with most rows of other ranks.
    """
    ranks, experts = rows_WE.shape
    totals_E = rows_WE.sum(axis=0)
    owners_E = np.arange(experts) * ranks // experts
    foreign_E = totals_E - rows_WE[owners_E, np.arange(experts)]
    popular = np.flatnonzero(totals_E > POPULAR * totals_E.mean())
    order = popular[np.argsort(-foreign_E[popular], kind="stable")].tolist()
    costs = [cost.of(rows_WE, order[:count]) for count in range(len(order) + 1)]
    return sorted(order[: int(np.argmin(costs))])


@dataclass(frozen=True, slots=True)
class Shadowed(Schedule):
    """The schedule `sequential`, but popular experts' weights go to all ranks where that moves fewer bytes."""

    name: ClassVar[str] = "shadowed"

    def check(self, layer: Layer) -> None:
        Schedule.check(self, layer)
        config = layer.gate.config
        if not config.capacity.dropless:
            raise UsageError(f"schedule shadowed with capacity {config.capacity.rule}: slots of experts are sent whole",
                             hint="dropless, or schedule sequential")  # fmt: skip
        if config.experts < layer.comm.size:
            raise UsageError(f"schedule shadowed for {config.experts} experts on {layer.comm.size} ranks: experts are "
                             "cut into shards", hint="an expert or more on each rank")  # fmt: skip

    def forward(
        self, layer: Layer, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Routing]:
        routing, comm = layer.route(x_TD, padding_T, generator), layer.comm
        with labelled("moe::dispatch"):
            dispatcher = layer.dispatcher(routing)
            buffer = dispatcher.dispatch(layer.cast_to_send(x_TD))
            counts_WE = exchange.gather_counts(comm, routing)
            cost = _cost(_weight_bytes(layer) / layer.experts.experts, buffer.shape[1] * buffer.element_size(), x_TD)
            shadows = chosen(counts_WE.numpy(), cost)
            left_WE = counts_WE.clone()
            left_WE[:, shadows] = 0
            stays = torch.zeros(routing.experts, dtype=torch.bool)
            stays[shadows] = True
            row_stays = stays.repeat_interleave(counts_WE[comm.rank])
            order = torch.cat([(~row_stays).nonzero()[:, 0], row_stays.nonzero()[:, 0]])
            back = order.argsort().to(buffer.device)
            moved = buffer.index_select(0, order.to(buffer.device)) if shadows else buffer
            away, here = torch.split(moved, [int(left_WE[comm.rank].sum()), int(row_stays.sum())])
            exchanged = exchange.UnevenExchange(comm.rank, left_WE)
            (chunk,) = exchanged.split(away)
            there = start(comm, chunk.collective, chunk.inp, async_op=False, **chunk.dispatch_args)
            arrived = chunk.sort(there.wait())
        made = layer.apply_experts(arrived, chunk.counts_E)
        with labelled("moe::combine"):
            returning = start(comm, chunk.collective, chunk.unsort(made), async_op=False, **chunk.combine_args)
            returned = exchanged.join([returning.wait()])
        if not shadows:
            return dispatcher.combine(returned), routing
        with labelled("moe::experts"):
            weights = sharding.copy_weights(layer.experts, comm, shadows, layer.send_dtype())
        local = layer.apply_experts(here, counts_WE[comm.rank, shadows], weights)
        with labelled("moe::combine"):
            return dispatcher.combine(torch.cat([returned, local]).index_select(0, back)), routing

    def traffic(self, shape: Shape) -> list[TrafficEntry]:
        found = agreement_traffic(shape)
        found += [TrafficEntry("forward", "all_gather", "comm", 1, COUNT_BYTES * shape.W * shape.E)]
        rows_WE = np.array([shape.choices(rank) for rank in range(shape.W)])
        expert_bytes = shape.weight_bytes * shape.W // shape.E
        shadows = chosen(rows_WE, _shape_cost(shape, expert_bytes))
        found += _weight_traffic(shape, shadows, expert_bytes)
        rows_WE[:, shadows] = 0
        between_WW = rows_WE.reshape(shape.W, shape.W, -1).sum(axis=2)
        sent, received = int(between_WW[shape.rank].sum()), int(between_WW[:, shape.rank].sum())
        for rows in (sent, received):
            found += [TrafficEntry("forward", "all_to_allv", "comm", 1, rows * shape.row_bytes)]
        found += [TrafficEntry("backward", "all_to_allv", "comm", 1, sent * shape.row_bytes)]
        found += [TrafficEntry("backward", "all_to_allv", "comm", int(shape.input_grad), received * shape.row_bytes)]
        return merged(found)


def _weight_traffic(shape: Shape, shadows: Sequence[int], expert_bytes: int) -> Iterator[TrafficEntry]:
    """The weights of this rank's popular experts to all ranks, and the gradients of all popular ones to their ranks."""
    if shadows:
        owned = sum(expert * shape.W // shape.E == shape.rank for expert in shadows)
        yield TrafficEntry("forward", "all_to_allv", "comm", 1, shape.W * owned * expert_bytes)
        yield TrafficEntry("backward", "all_to_allv", "comm", 1, len(shadows) * expert_bytes)


def _weight_bytes(layer: Layer) -> int:
    size = torch.empty(0, dtype=layer.send_dtype() or next(layer.experts.parameters()).dtype).element_size()
    return sum(parameter.numel() for parameter in layer.experts.parameters()) * size


def _cost(expert_bytes: float, row_bytes: int, x_TD: Tensor) -> ShadowCost:
    passes = 2 + torch.is_grad_enabled() * (1 + x_TD.requires_grad)
    return ShadowCost(passes * row_bytes, 2 * expert_bytes)


def _shape_cost(shape: Shape, expert_bytes: float) -> ShadowCost:
    return ShadowCost((3 + shape.input_grad) * shape.row_bytes, 2 * expert_bytes)
