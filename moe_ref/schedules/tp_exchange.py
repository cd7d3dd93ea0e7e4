"""Where t ranks hold the same tokens and have the experts in pieces: the two halves of an exchange, and their plans.

W = G t ranks: G tensor-parallel groups of t consecutive ranks. The ranks of a group hold the same tokens, so they
route alike and have the same dispatch buffer [E, C, D]; its block g, of E / G experts, is for group g. Each rank has
1 / t of H of each of its group's experts, so what they give is a summand of the output (DeepSpeed-TED, Singh et al.,
arXiv 2303.06318). Suffixes here: G groups, P places in a group, E experts of one group where G is there too, N rows.

    spread     the buffer [E, C, D], the same on a group's ranks -> rows for its experts [E, N, D], the same as well
    collect    summands of what experts make of these rows, [E, N, D] -> their sums, in the buffer they belong to

Each is the other's adjoint: the gradient of rows that one piece of the experts has read is a summand of theirs, and
the gradient of a sum is that of each summand. So the backward pass of one is the forward pass of the other, with
whatever it overlaps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from commbench.communicators.base import CommLike
from commbench.communicators.prepared import Pending
from commbench.errors import UsageError
from moe_ref.profiling import labelled
from moe_ref.schedules.base import Layer, Message, Phase, Schedule, Shape, agreed, merged
from moe_ref.sharding import own


class Halves(Protocol):
    """Both halves, without gradients: `spread` and `collect` below add them."""

    def spread(self, buffer_ECD: Tensor) -> Tensor: ...

    def collect(self, rows_END: Tensor) -> Tensor: ...


def spread(buffer_ECD: Tensor, halves: Halves) -> Tensor:
    """[E, N, D] of [E, C, D], with its gradient."""
    rows_END: Tensor = _Spread.apply(buffer_ECD, halves)  # type: ignore[no-untyped-call]
    return rows_END


def collect(rows_END: Tensor, halves: Halves) -> Tensor:
    """[E, C, D] of summands [E, N, D], with its gradient."""
    buffer_ECD: Tensor = _Collect.apply(rows_END, halves)  # type: ignore[no-untyped-call]
    return buffer_ECD


def through(layer: Layer, halves: Halves, buffer_ECD: Tensor) -> Tensor:
    """To the experts and back: what they make of the dispatch buffer, in its shape."""
    with labelled("moe::dispatch"):
        rows_END = spread(buffer_ECD, halves)
    out_END = layer.apply_experts(rows_END, weights=own(layer.experts))
    with labelled("moe::combine"):
        return collect(out_END, halves)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, buffer_ECD: Tensor, halves: Halves) -> Tensor:
        ctx.halves = halves
        return halves.spread(buffer_ECD.detach().contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return collect(gradients[0], ctx.halves), None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_END: Tensor, halves: Halves) -> Tensor:
        ctx.halves = halves
        return halves.collect(rows_END.detach().contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return spread(gradients[0], ctx.halves), None


class Call(NamedTuple):
    """A collective of one half, of `nbytes` as `Message` has it. It is issued when those named in `after` are over."""

    name: str
    collective: str
    group: str
    nbytes: int
    after: tuple[str, ...] = ()


class Stage(NamedTuple):
    """Calls between which nothing is computed, in the order in which they are issued."""

    phase: Phase
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Planned(Schedule):
    """A schedule that says what is in flight beside what, from which its traffic follows."""

    @abstractmethod
    def stages(self, shape: Shape) -> list[Stage]:
        """One pass forward and one backward, without the numbers that ranks agree on first."""

    def traffic(self, shape: Shape) -> list[Message]:
        calls = [(stage.phase, call) for stage in self.stages(shape) for call in stage.calls]
        return merged([*agreed(shape), *(Message(phase, c.collective, c.group, 1, c.nbytes) for phase, c in calls)])

    def check(self, layer: Layer) -> None:
        if layer.tp is None:
            raise UsageError(f"schedule {self.name} of a layer without a tp communicator",
                             hint="DistributedMoE(.., tp=, ep=), with experts in pieces")  # fmt: skip
        if layer.gate.config.capacity.dropless:
            raise UsageError(f"schedule {self.name} of a dropless layer: ranks of a group divide equal blocks",
                             hint="a capacity rule that has slots")  # fmt: skip


def both_passes(shape: Shape, there: Sequence[Call], back: Sequence[Call]) -> list[Stage]:
    """`there` and `back` are the plans of `spread` and `collect`, each of which the other's backward pass is."""
    spread, collect = tuple(there), tuple(back)
    found = [Stage("forward", spread), Stage("forward", collect), Stage("backward", spread)]
    return [*found, Stage("backward", collect)] if shape.input_grad else found


def named(kind: str, chunk: int) -> tuple[str, ...]:
    """The call of a chunk, where there is one."""
    return (f"{kind}-{chunk}",) if chunk >= 0 else ()


def capacity_of(shape: Shape) -> int:
    if shape.C is None:
        raise UsageError("a shape without capacity: ranks of a group divide equal blocks", hint="C of the layer")
    return shape.C


def pieces(length: int, chunks: int) -> list[slice]:
    """`chunks` runs of nearly equal length, or fewer, as none is empty; but of nothing there is one."""
    chunks = max(1, min(chunks, length))
    return [slice(*edges) for edges in pairwise(length * chunk // chunks for chunk in range(chunks + 1))]


def share(capacity: int, places: int) -> int:
    """Slots of each expert that one rank of a group carries. Raises `UsageError` where they do not divide."""
    if capacity % places:
        raise UsageError(f"capacity C={capacity} does not divide among the {places} ranks of a group",
                         hint=f"Capacity(.., multiple_of={places})")  # fmt: skip
    return capacity // places


def check_chunks(chunks: int) -> None:
    if chunks < 1:
        raise UsageError(f"chunks={chunks} is below 1", hint="1 or more")


class Sent:
    """A call on its way, with its buffers. It carries no gradient."""

    def __init__(self, comm: CommLike, collective: str, inp: Tensor) -> None:
        """collective: all_to_all or all_gather, along dimension 0."""
        rows = len(inp) * (comm.size if collective == "all_gather" else 1)
        self._out, inp = inp.new_empty(rows, *inp.shape[1:]), inp.contiguous()
        self._pending: Pending | None = getattr(comm, collective)(self._out, inp, async_op=True)

    def land(self) -> Tensor:
        if self._pending is not None:
            self._pending.wait()
        return self._out


def by_group(buffer_ECD: Tensor, groups: int) -> Tensor:
    """[E, C, D] as [G, E / G, C, D]."""
    experts, capacity, width = buffer_ECD.shape
    return buffer_ECD.view(groups, experts // groups, capacity, width)


def by_place(blocks: Tensor, places: int) -> Tensor:
    """[.., .., P n, D] as [.., .., P, n, D]: the slots that each rank of a group carries."""
    one, two, slots, width = blocks.shape
    return blocks.view(one, two, places, slots // places, width)


def apart(found: Tensor, parts: int) -> Tensor:
    """Dimension 0 as two, of which the first has `parts`: what came from each place, or rank."""
    return found.view(parts, len(found) // parts, *found.shape[1:])


__all__ = [
    "Call", "Halves", "Planned", "Sent", "Stage", "apart", "both_passes", "by_group", "by_place", "capacity_of",
    "check_chunks", "collect", "named", "pieces", "share", "spread", "through",
]  # fmt: skip
