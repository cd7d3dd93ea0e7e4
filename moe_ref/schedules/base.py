"""What a schedule is: a whole forward pass over ranks, and a formula of every collective that it issues.

Shapes as everywhere in moe_ref. Groups of ranks go by the names of the layer's communicators: `comm`, `tp`, `ep`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from commbench.errors import UsageError
from moe_ref.routing import Routing

if TYPE_CHECKING:
    from commbench.communicators.autograd import Gradients
    from commbench.communicators.prepared import Pending
    from moe_ref.distributed import DistributedMoE

Phase = Literal["forward", "backward"]
COUNT_BYTES = 8  # of a number that ranks tell each other: int64, or fp64


class Comm(Protocol):
    """What schedules ask of a communicator: commbench's own, or one that counts or is silent."""

    rank: int
    size: int
    device: torch.device

    def all_to_all(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Pending | None: ...

    def all_to_allv(
        self, out: Tensor, inp: Tensor, received: Sequence[int], sent: Sequence[int], *,
        matrix: Sequence[Sequence[int]] | None = None, async_op: bool = False,
    ) -> Pending | None: ...  # fmt: skip

    def all_gather(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Pending | None: ...

    def reduce_scatter(
        self, out: Tensor, inp: Tensor, op: str = "sum", *, async_op: bool = False
    ) -> Pending | None: ...

    def all_reduce(
        self, out: Tensor, inp: Tensor | None = None, op: str = "sum", *, async_op: bool = False
    ) -> Pending | None: ...

    def tp_all_to_all(
        self, out: Tensor, inp: Tensor, *, tp: int | None = None, tp_input: str = "replicated", async_op: bool = False
    ) -> Pending | None: ...

    def exchange_counts(self, sent: Sequence[int]) -> list[list[int]]: ...

    @property
    def autograd(self) -> Gradients: ...


class Message(NamedTuple):
    """`calls` calls of a collective on one rank.

    nbytes: of each call, of the larger of this rank's two tensors (nccl-tests' size column): the input of all_to_all,
    all_reduce, reduce_scatter and tp_all_to_all, the output of all_gather; of all_to_allv the rows that this rank
    sends, and of exchange_counts 8 bytes for each number.
    """

    phase: Phase
    collective: str
    group: str  # name of the communicator in the layer: "comm", "tp", "ep"
    calls: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the traffic of one forward and backward pass depends on, on one rank.

    T, D, E, K, C, W: as in moe_ref; C is null for dropless; W: ranks of `comm`. tp: ranks that hold the same tokens.
    itemsize: bytes of an element of what travels: the tokens' dtype, or autocast's.
    token_itemsize: of an element of the tokens themselves.
    rank, rows_WE: for dropless: this rank, and how many choices of each rank fall on each expert. Without them every
        rank is taken to have T K / E for each expert, rounded up.
    weight_bytes: of the parameters of this rank's experts, as they travel. gate_bytes: of the gate's.
    agreements: numbers that ranks agree on before C is known (`DistributedMoE.agreements`).
    input_grad: whether tokens need a gradient; without, nothing goes back through the first exchange.
    """

    T: int
    D: int
    E: int
    K: int
    C: int | None
    W: int
    tp: int = 1
    itemsize: int = 4
    token_itemsize: int = 4
    rank: int = 0
    rows_WE: tuple[tuple[int, ...], ...] | None = None
    weight_bytes: int = 0
    gate_bytes: int = 0
    agreements: int = 0
    input_grad: bool = True

    @property
    def row_bytes(self) -> int:
        """Of one token in the dispatch buffer."""
        return self.D * self.itemsize

    @property
    def pieces(self) -> int:
        """q: ranks of `comm` that share an expert, 1 where a rank has a whole one. Not for tp > 1."""
        return max(1, self.W // self.E)

    def choices(self, rank: int) -> tuple[int, ...]:
        """Of a rank's tokens on each expert, for dropless: [E]."""
        if self.rows_WE is not None:
            return self.rows_WE[rank]
        return (-(-self.T * self.K // self.E),) * self.E


class Schedule(ABC):
    """In which order a layer's gate, dispatch, experts and exchanges run, and in how many parts.

    A schedule has parameters, and no state: it may be taken by many layers, and a layer may take another one in any
    step. It may rely on these of `DistributedMoE`:

    comm, tp, ep: communicators (`Comm`): all ranks of the layer; those that hold the same tokens, or null; those of
        equal place in all tp groups (comm itself where there is no tp).
    route(x_TD, padding_T, generator, gate=None): the routing of any tokens, after ranks of `comm` have agreed on C.
        Calls the gate once: `gate` in place of `layer.gate` where given.
    way(routing): dispatch and combine (`moe_ref.dispatch.Moves`). travelling(x_TD): in the dtype that is sent.
    apply_experts(x, counts_E=None, weights=None): what experts make of [E_g, N, D], or of sorted rows with counts, with
        other parameters where given (`moe_ref.sharding`); x itself where experts are skipped.
    experts, gate: the modules. experts.pieces, experts.piece: into how many pieces of H they are cut, and which is
        here.
    """

    name: ClassVar[str]

    @abstractmethod
    def forward(
        self, layer: DistributedMoE, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Routing]:
        """y [T, D] and the routing. Collective over all of the layer's ranks, as is the way back."""

    @abstractmethod
    def traffic(self, shape: Shape) -> list[Message]:
        """Every collective of one forward and one backward pass, `merged`."""

    def check(self, layer: DistributedMoE) -> None:
        """Raises `UsageError` where this layer is none that the schedule can run. Without tensor parallelism here."""
        if layer.tp is not None:
            raise UsageError(
                f"schedule {self.name} of a layer with a tp communicator of {layer.tp.size} ranks",
                hint="it has no tensor parallelism: leave tp out, or take a schedule that has",
            )

    def __str__(self) -> str:
        given = [f"{field.name}={getattr(self, field.name)}" for field in fields(self)]  # type: ignore[arg-type]
        return " ".join([self.name, *given])


def merged(messages: Iterable[Message]) -> list[Message]:
    """Sorted, with one record for what differs in nothing but `calls`, and none for no calls."""
    calls: Counter[Message] = Counter()
    for message in messages:
        calls[message._replace(calls=0)] += message.calls
    return sorted(message._replace(calls=number) for message, number in calls.items() if number)


def both_ways(messages: Iterable[Message], *, backward: bool = True) -> list[Message]:
    """These of the forward pass and the same once more backward: all-to-alls, whose adjoints are of their kind."""
    forward = list(messages)
    return [*forward, *(message._replace(phase="backward") for message in forward if backward)]


def agreed(shape: Shape) -> list[Message]:
    """What `DistributedMoE.route` sends."""
    return [Message("forward", "all_reduce", "comm", shape.agreements, COUNT_BYTES)]


__all__ = ["Comm", "Message", "Phase", "Schedule", "Shape", "agreed", "both_ways", "merged", "replace"]
