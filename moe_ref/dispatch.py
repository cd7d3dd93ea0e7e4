"""Tokens into the buffer that is sent, and back: five implementations of the same, and one table of them.

Each dispatcher is made for a routing and has two methods, both with gradients:

    dispatch    tokens [T, D] -> buffer [E, C, D], or [rows, D] for dropless (`Routing.buffer_shape`)
    combine     what experts made of the buffer, same shape -> tokens [T, D]: sum over k of weight x row

Row c of expert e is the token that has slot c there, rows that nobody took are 0, and tokens without any slot get 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from commbench.errors import UsageError, unknown
from moe_ref import fused
from moe_ref.routing import Routing
from moe_ref.sparse_rows import SparseCombine, SparseDispatch


class TokenDispatcher(Protocol):
    """Takes tokens into the dispatch buffer of a routing, and the experts' output back."""

    def __init__(self, routing: Routing) -> None: ...

    def dispatch(self, x_TD: Tensor) -> Tensor:
        """Return the buffer [E, C, D], or [rows, D], of tokens [T, D]."""

    def combine(self, buffer: Tensor) -> Tensor:
        """Return tokens [T, D], each the sum over its choices of weight times row."""


class LoopDispatcher:
    """Moves one row at a time: the oracle of the others. Not for use."""

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self.rows = routing.rows_TK().tolist()

    def dispatch(self, x_TD: Tensor) -> Tensor:
        _check_tokens(self.routing, x_TD)
        # Zeros are sums of nothing: over ranks all have to go back, those without a token too.
        found = [x_TD[:0].sum(0) for _ in range(self.routing.rows)]
        for token, rows in enumerate(self.rows):
            for row in rows:
                if row >= 0:
                    found[row] = x_TD[token]
        buffer_RD = torch.stack(found) if found else x_TD[:0]
        return buffer_RD.view(self.routing.buffer_shape(x_TD.shape[1]))

    def combine(self, buffer: Tensor) -> Tensor:
        buffer_RD = _check_buffer(self.routing, buffer)
        found = []
        for token, rows in enumerate(self.rows):
            y_D = buffer_RD[:0].sum(0)
            for k, row in enumerate(rows):
                if row >= 0:
                    y_D = y_D + self.routing.weights_TK[token, k].to(buffer_RD.dtype) * buffer_RD[row]
            found.append(y_D)
        return torch.stack(found) if found else buffer_RD[:0]


class EinsumDispatcher:
    """Multiplies by dense one-hot tensors [T, E C], as in GShard (arXiv 2006.16668, 3.2), fairseq and DeepSpeed.

    E C is about k f T, so time is O(T^2 k f D) and memory O(T^2 k f), whatever E is. Kept as it is, since it is the
    baseline that published gains are over. Weights are rounded to the tokens' dtype, as in fairseq.

    One difference to fairseq: its mask is `weights != 0`, so a weight that underflowed to 0 leaves its slot empty; here
    the slot is filled, as in the other dispatchers.
    """

    dtype: torch.dtype | None = None  # of the products; None: the tokens'

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self._dense: tuple[Tensor, Tensor] | None = None
        self._dtype: torch.dtype | None = None

    def dispatch(self, x_TD: Tensor) -> Tensor:
        _check_tokens(self.routing, x_TD)
        taken_TR, _ = self._tensors(x_TD.dtype)
        product = self.dtype or x_TD.dtype
        buffer_RD = taken_TR.t().to(product) @ x_TD.to(product)
        return buffer_RD.to(x_TD.dtype).view(self.routing.buffer_shape(x_TD.shape[1]))

    def combine(self, buffer: Tensor) -> Tensor:
        buffer_RD = _check_buffer(self.routing, buffer)
        _, weights_TR = self._tensors(buffer.dtype)
        product = self.dtype or buffer.dtype
        return (weights_TR.to(product) @ buffer_RD.to(product)).to(buffer.dtype)

    def _tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Make who takes which row, as bool, and with which weight: both [T, rows], once."""
        if self._dense is None or self._dtype != dtype:
            routing = self.routing
            weights_TK = routing.weights_TK.to(dtype)
            taken_TR = torch.zeros(routing.tokens, routing.rows, dtype=torch.bool, device=weights_TK.device)
            weights_TR = torch.zeros_like(taken_TR, dtype=dtype)
            for k in range(routing.top_k):
                at_TR = self._one_hot(k)
                taken_TR = taken_TR | at_TR
                weights_TR = weights_TR + at_TR * weights_TK[:, k, None]
            self._dense, self._dtype = (taken_TR, weights_TR), dtype
        return self._dense

    def _one_hot(self, k: int) -> Tensor:
        """Make [T, rows] of bool, true at the row of choice k."""
        routing = self.routing
        device = routing.slots_TK.device
        if routing.capacity is None:
            at_TR: Tensor = routing.rows_TK()[:, k, None] == torch.arange(routing.rows, device=device)
            return at_TR
        expert_TE = routing.experts_TK[:, k, None] == torch.arange(routing.experts, device=device)
        slot_TC = routing.slots_TK[:, k, None] == torch.arange(routing.capacity, device=device)
        return (expert_TE[:, :, None] & slot_TC[:, None, :]).view(routing.tokens, routing.rows)


class EinsumTCDispatcher(EinsumDispatcher):
    """Does the same with products in bf16, which tensor cores do, so that fp32 tokens do not make the baseline slower
    than it has to be. Good to bf16's 8 bits."""

    dtype = torch.bfloat16


class SparseDispatcher:
    """Moves rows by index: O(T K D) time, O(E C + T K) memory beside the buffer itself, and no atomic additions.

    Both methods gather: tokens look up their rows, and rows look up their token in the inverse map. So each is the
    other's gradient, sums have a fixed order, and the buffer is written once, empty rows included. Weights multiply in
    the wider of their dtype and the buffer's.
    """

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self.rows_TK, self.choice_R = routing.rows_TK(), routing.choice_R()

    def dispatch(self, x_TD: Tensor) -> Tensor:
        _check_tokens(self.routing, x_TD)
        buffer_RD: Tensor = SparseDispatch.apply(x_TD, self.rows_TK, self.choice_R)
        return buffer_RD.view(self.routing.buffer_shape(x_TD.shape[1]))

    def combine(self, buffer: Tensor) -> Tensor:
        buffer_RD = _check_buffer(self.routing, buffer)
        y_TD: Tensor = SparseCombine.apply(buffer_RD, self.routing.weights_TK, self.rows_TK, self.choice_R)
        return y_TD


class FusedDispatcher(SparseDispatcher):
    """Does what `SparseDispatcher` does, each method in one kernel forward and one backward.

    The kernels are those of `commbench_kernels.rows`.

    A row that is needed is read once and a row of the result written once. Sums are in fp32, or in fp64 where something
    given is fp64.

    Needs a GPU and triton: raises `UsageError` where a routing is elsewhere, or triton is not installed. A compiler,
    which cannot look into kernels, gets `SparseDispatcher`'s operations.
    """

    def __init__(self, routing: Routing) -> None:
        if not torch.compiler.is_compiling() and (reason := fused.unsupported(routing.slots_TK.device)):
            raise UsageError(f"permute=fused needs {reason}", hint="permute=sparse does the same everywhere")
        super().__init__(routing)

    def dispatch(self, x_TD: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().dispatch(x_TD)
        _check_tokens(self.routing, x_TD)
        buffer_RD: Tensor = fused.Dispatch.apply(x_TD, self.rows_TK, self.choice_R)
        return buffer_RD.view(self.routing.buffer_shape(x_TD.shape[1]))

    def combine(self, buffer: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().combine(buffer)
        buffer_RD = _check_buffer(self.routing, buffer)
        y_TD: Tensor = fused.Combine.apply(buffer_RD, self.routing.weights_TK, self.rows_TK, self.choice_R)
        return y_TD


def fastest(routing: Routing) -> TokenDispatcher:
    """Make the fastest dispatcher that runs where the routing is: `fused` on a GPU with triton, else `sparse`."""
    return SparseDispatcher(routing) if fused.unsupported(routing.slots_TK.device) else FusedDispatcher(routing)


MakeDispatcher = Callable[[Routing], TokenDispatcher]
TABLE: dict[str, MakeDispatcher] = {
    "auto": fastest,
    "loop": LoopDispatcher,
    "fairseq_einsum": EinsumDispatcher,
    "fairseq_einsum_tc": EinsumTCDispatcher,
    "sparse": SparseDispatcher,
    "fused": FusedDispatcher,
}


def get(name: str) -> MakeDispatcher:
    """Return what makes the dispatcher of this name, of a routing. Raises `UsageError` for an unknown name."""
    if name not in TABLE:
        raise unknown("permute", name, TABLE)
    return TABLE[name]


def describe(name: str, device: torch.device) -> str:
    """Return the name; for `auto` which dispatcher that is on this device, and why: "auto (fused: it runs here)"."""
    if name != "auto":
        return name
    reason = fused.unsupported(device)
    return f"auto (sparse: fused needs {reason})" if reason else "auto (fused: it runs here)"


def _check_tokens(routing: Routing, x_TD: Tensor) -> None:
    if x_TD.dim() != 2 or len(x_TD) != routing.tokens:
        raise UsageError(f"tokens of shape {list(x_TD.shape)} for a routing of {routing.tokens} tokens",
                         hint=f"[{routing.tokens}, D]")  # fmt: skip


def _check_buffer(routing: Routing, buffer: Tensor) -> Tensor:
    """View the buffer as [rows, D]."""
    width = buffer.shape[-1] if buffer.dim() else 0
    if tuple(buffer.shape) != routing.buffer_shape(width):
        rows = [routing.rows] if routing.capacity is None else [routing.experts, routing.capacity]
        raise UsageError(f"a buffer of shape {list(buffer.shape)} for a routing with rows of shape {rows}",
                         hint=f"[{', '.join(map(str, rows))}, D], what the exchange back gives")  # fmt: skip
    return buffer.reshape(routing.rows, width)
