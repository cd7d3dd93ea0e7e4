"""A whole layer on one rank: gate, dispatch, experts, combine."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from commbench.errors import UsageError
from moe_ref import dispatch as ways
from moe_ref.experts import Experts
from moe_ref.gate import Gate
from moe_ref.routing import Routing


class Output(NamedTuple):
    """y: of the input's shape, 0 for padding and for tokens that found no slot; in the dtype of the experts' output,
    which under autocast is not the input's.

    routing: what the gate decided, with the losses to add to the loss of the model.
    """

    y: Tensor
    routing: Routing


class MoE(nn.Module):
    """y = sum over the choices k of a token: weight_k expert_k(token). Residual and norm are the caller's.

    A distributed layer does the same with an all-to-all on either side of the experts, and overrides `apply_experts`
    alone: what that gets is the buffer to send, [E, C, D], or for dropless [rows, D] with `routing.counts_E`.
    """

    def __init__(self, gate: Gate, experts: Experts, *, dispatch: str = "sparse") -> None:
        """dispatch: a name of `moe_ref.dispatch.TABLE`. Raises `UsageError` where gate and experts do not fit."""
        super().__init__()
        if gate.width != experts.width:
            raise UsageError(f"a gate of width {gate.width} with experts of width {experts.width}", hint="one D")
        self.gate, self.experts = gate, experts
        self._way = ways.get(dispatch)
        self._check_experts()

    def forward(self, x: Tensor, padding: Tensor | None = None, *, generator: torch.Generator | None = None) -> Output:
        """x: [.., D], any leading shape. padding: bool [..], true for padding. generator: of the gate's draws.

        Raises `UsageError` for shapes that do not fit, with both.
        """
        if x.dim() < 1 or x.shape[-1] != self.gate.width:
            raise UsageError(f"input of shape {list(x.shape)} for a layer of width {self.gate.width}",
                             hint=f"[.., {self.gate.width}]")  # fmt: skip
        if padding is not None and padding.shape != x.shape[:-1]:
            raise UsageError(f"a padding mask of shape {list(padding.shape)} for input of shape {list(x.shape)}",
                             hint=f"{list(x.shape[:-1])}, true for padding")  # fmt: skip
        x_TD = x.reshape(-1, self.gate.width)
        routing = self.route(x_TD, None if padding is None else padding.reshape(-1), generator)
        moves = self._way(routing)
        y_TD = moves.combine(self.apply_experts(moves.dispatch(x_TD), routing))
        return Output(y_TD.view(x.shape), routing)

    def route(self, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None) -> Routing:
        """The gate's decision; ranks that have to agree on C do it here."""
        routing: Routing = self.gate(x_TD, padding_T, generator=generator)
        return routing

    def apply_experts(self, buffer: Tensor, routing: Routing) -> Tensor:
        """What the experts make of the dispatch buffer, in its shape."""
        out: Tensor = self.experts(buffer) if routing.capacity is not None else self.experts(buffer, routing.counts_E)
        return out

    def _check_experts(self) -> None:
        if self.gate.config.experts != self.experts.experts:
            raise UsageError(f"a gate for {self.gate.config.experts} experts with {self.experts.experts} experts here",
                             hint="one rank has them all")  # fmt: skip
