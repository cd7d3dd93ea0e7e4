"""What a schedule is: a whole forward pass over ranks, and a formula of every collective that it issues.

Shapes as everywhere in moe_ref. Groups of ranks go by the names of the layer's communicators: `comm`, `tp`, `ep`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from commbench.communicators.base import CommLike
from commbench.errors import UsageError
from commbench.payloads import NONE, Payload
from moe_ref.dispatch import MakeDispatcher
from moe_ref.experts import Experts
from moe_ref.gate import Gate
from moe_ref.kept_buffers import KeptBuffers
from moe_ref.routing import Routing
from moe_ref.sharding import Weights

Phase = Literal["forward", "backward"]
COUNT_BYTES = 8  # of a number that ranks tell each other: int64, or fp64


class TrafficEntry(NamedTuple):
    """Counts `calls` calls of a collective on one rank.

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
    """All that the traffic of one forward and backward pass of one rank depends on.

    T, D, E, K, C, W: as in moe_ref; C is None for dropless; W: ranks of `comm`. tp: ranks that have the same tokens.
    itemsize: bytes of an element of what travels: the tokens' dtype, or autocast's.
    token_itemsize: of an element of the tokens themselves.
    rank, rows_WE: for dropless: this rank, and how many choices of each rank fall on each expert. Without them every
        rank is taken to have T K / E for each expert, rounded up.
    weight_bytes: of the parameters of this rank's experts, as they travel. gate_bytes: of the gate's.
    agreements: numbers that ranks agree on before C is known (`DistributedMoE.agreements`).
    payload, payload_back: how rows of tokens travel, and gradients of them; None: as they are.
    input_grad: whether tokens need a gradient; without, nothing goes back through the first exchange.
    gate_itemsize: of an element of the gate's weights of choices.
    hops: of each hop of an exchange that is not per choice, rows that this rank sends and receives
        (`Schedule.hops`). Without it all experts are taken to be equally likely.
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
    payload: Payload | None = None
    payload_back: Payload | None = None
    input_grad: bool = True
    gate_itemsize: int = 4
    hops: tuple[tuple[int, int], ...] | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one token of the dispatch buffer, as it travels."""
        return self._travels(self.payload)

    @property
    def gradient_row_bytes(self) -> int:
        """Bytes of its gradient, as it travels."""
        return self._travels(self.payload_back)

    def _travels(self, payload: Payload | None) -> int:
        as_it_is = payload is None or (payload.code == "bf16" and self.itemsize == payload.code_bytes)
        return self.D * self.itemsize if payload is None or as_it_is else payload.row_bytes(self.D)

    @property
    def pieces(self) -> int:
        """q, the ranks of `comm` that share an expert, 1 where a rank has a whole one. Not for tp > 1."""
        return max(1, self.W // self.E)

    def choices(self, rank: int) -> tuple[int, ...]:
        """Return a rank's choices of each expert, for dropless: [E]."""
        if self.rows_WE is not None:
            return self.rows_WE[rank]
        return (-(-self.T * self.K // self.E),) * self.E


class HasPayload(Protocol):
    """A layer, or its settings: how rows of tokens travel, and their gradients: names of `commbench.payloads`."""

    @property
    def payload(self) -> str:
        """How tokens travel."""

    @property
    def payload_back(self) -> str:
        """How gradients travel."""


class Layer(Protocol):
    """All that a schedule may rely on of the layer that it runs, a `DistributedMoE`."""

    gate: Gate
    experts: Experts  # this rank's: `experts.pieces`: into how many pieces of H they are cut, `experts.piece`: which
    comms: dict[str, CommLike | None]  # behind `comm`, `tp` and `ep`
    payload: str  # how rows of tokens travel, and their gradients: `commbench.payloads.CHOICES`
    payload_back: str
    kept_buffers: KeptBuffers | None  # where exchanges write to; None: new memory
    equal_tokens: bool  # whether all ranks bring the same T

    @property
    def comm(self) -> CommLike:
        """The communicator of all ranks of the layer."""

    @property
    def token_comm(self) -> CommLike:
        """`comm`, as tokens travel over it: with the layer's payload."""

    @property
    def tp(self) -> CommLike | None:
        """The communicator of ranks that have the same tokens, if there are such."""

    @property
    def ep(self) -> CommLike:
        """The communicator of the ranks of equal rank in all tp groups; without these it is `comm`."""

    @property
    def dispatcher(self) -> MakeDispatcher:
        """What makes the implementation of dispatch and combine, of a routing."""

    @property
    def schedule(self) -> Schedule:
        """The schedule that runs the layer."""

    @schedule.setter
    def schedule(self, schedule: str | Schedule) -> None:
        """Take another one from the next pass on. Raises `UsageError` where it cannot run the layer."""

    def route(
        self,
        x_TD: Tensor,
        padding_T: Tensor | None = None,
        generator: torch.Generator | None = None,
        gate: Callable[..., Any] | None = None,
    ) -> Routing:
        """Route any tokens, after ranks of `comm` have agreed on C.

        Calls the gate once: `gate` in place of the layer's own where given.
        """

    def agreements(self) -> int:
        """Count the numbers that ranks agree on in `route`."""

    def cast_to_send(self, x_TD: Tensor) -> Tensor:
        """Return tokens in the dtype that is sent."""

    def send_dtype(self) -> torch.dtype | None:
        """Return autocast's dtype; None without autocast."""

    def apply_experts(self, x: Tensor, counts_E: Tensor | None = None, weights: Weights | None = None) -> Tensor:
        """Apply the experts to [E_g, N, D], or to sorted rows with counts, with other parameters where given.

        Where experts are skipped, return x itself.
        """

    def parameters(self) -> Iterator[Tensor]:
        """Return all parameters that are here."""

    def __call__(self, x: Tensor, padding: Tensor | None = None, *, generator: torch.Generator | None = None) -> Any:
        """Make the forward pass, as a module does: y and the routing."""


class Schedule(ABC):
    """The order in which a layer's gate, dispatch, experts and exchanges run, and in how many chunks.

    A schedule has parameters, and no state: it may be taken by many layers, and a layer may take another one in any
    step. It may rely on what `Layer` has.
    """

    name: ClassVar[str]
    payloads: ClassVar[bool] = False  # whether tokens can travel as a payload

    @abstractmethod
    def forward(
        self, layer: Layer, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Routing]:
        """Return y [T, D] and the routing. Collective over all of the layer's ranks, as is the way back."""

    @abstractmethod
    def traffic(self, shape: Shape) -> list[TrafficEntry]:
        """Return every collective of one forward and one backward pass, `merged`."""

    def hops(self, layer: Layer, routing: Routing) -> tuple[tuple[int, int], ...] | None:
        """Return the rows that this rank sends and receives in each hop of a routing, for `Shape`. Collective.

        None: the counts of all ranks' choices say all.
        """
        return None

    def settled(self, layer: Layer, x_TD: Tensor) -> Schedule:
        """Return the schedule that runs these tokens: this one, where nothing is left to a profile."""
        return self

    def check(self, layer: Layer) -> None:
        """Raise `UsageError` where the schedule cannot run this layer: here, where it has tensor parallelism."""
        self.check_payload(layer)
        if layer.tp is not None:
            raise UsageError(
                f"schedule {self.name} of a layer with a tp communicator of {layer.tp.size} ranks",
                hint="it has no tensor parallelism: leave tp out, or take a schedule that has",
            )

    def check_payload(self, layer: HasPayload) -> None:
        """Raise `UsageError` for a payload where the schedule sends tokens as they are."""
        if not self.payloads and {layer.payload, layer.payload_back} != {NONE}:
            raise UsageError(
                f"schedule {self.name} sends tokens as they are, and payload={layer.payload}, "
                f"payload_back={layer.payload_back}",
                hint="payload=none, or schedule sequential, pipelined or expert_groups",
            )

    def __str__(self) -> str:
        given = [f"{field.name}={getattr(self, field.name)}" for field in fields(self)]  # type: ignore[arg-type]
        return " ".join([self.name, *given])


def merged(messages: Iterable[TrafficEntry]) -> list[TrafficEntry]:
    """Sort messages, with one record for what differs in nothing but `calls`, and none for no calls."""
    calls: Counter[TrafficEntry] = Counter()
    for message in messages:
        calls[message._replace(calls=0)] += message.calls
    return sorted(message._replace(calls=number) for message, number in calls.items() if number)


def agreement_traffic(shape: Shape) -> list[TrafficEntry]:
    """Return what `DistributedMoE.route` sends."""
    return [TrafficEntry("forward", "all_reduce", "comm", shape.agreements, COUNT_BYTES)]


__all__ = ["Layer", "Phase", "Schedule", "Shape", "TrafficEntry", "agreement_traffic", "merged"]
