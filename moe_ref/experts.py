"""Experts of one rank, over equal blocks (batched GEMM) or over sorted tokens (grouped GEMM); and how they are shared.

Shapes: E_g experts of this rank, written E in suffixes here; N rows of each, from all ranks; D model; H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from commbench.errors import UsageError, unknown
from moe_ref import compiled, fused, fused_experts

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


def experts_per_rank(experts: int, ranks: int) -> int:
    """Return E_g = E / W. Rank r has experts r E_g .. (r + 1) E_g - 1. Raises `UsageError` where E does not divide."""
    if experts < 1 or ranks < 1 or experts % ranks:
        raise UsageError(f"experts={experts} do not divide among {ranks} ranks", hint="a multiple of the ranks")
    return experts // ranks


def by_expert(received_WECD: Tensor) -> Tensor:
    """Bring what an all-to-all gives, [W, E_g, C, D], source rank first, into the experts' shape [E_g, W C, D].

    Each expert then has one block of rows, whatever W (Tutel's flexible all-to-all, arXiv 2206.03382, 3.1).
    """
    ranks, experts, capacity, width = received_WECD.shape
    return received_WECD.transpose(0, 1).reshape(experts, ranks * capacity, width)


def by_source(out_END: Tensor, ranks: int) -> Tensor:
    """Bring [E_g, W C, D] back to [W, E_g, C, D]. Raises `UsageError` where rows do not divide."""
    experts, rows, width = out_END.shape
    if rows % ranks:
        raise UsageError(f"{rows} rows of each expert in {list(out_END.shape)} do not divide among {ranks} ranks",
                         hint="[E_g, W C, D]")  # fmt: skip
    return out_END.view(experts, ranks, rows // ranks, width).transpose(0, 1).contiguous()


def grouped_mm(x_ND: Tensor, weight_EDH: Tensor, counts_E: Tensor) -> Tensor:
    """Multiply rows of expert e, sorted by expert and counts_E[e] in number, by weight e: [N, H].

    torch's grouped_mm where it takes them; else a loop over experts, for which the host waits for the counts.
    """
    if not fused_experts.grouped_unsupported(x_ND, weight_EDH):
        if torch.compiler.is_compiling() and x_ND.dtype != torch.bfloat16:
            made: Tensor = compiled.grouped_mm(x_ND, weight_EDH, counts_E.cumsum(0).to(torch.int32))
            return made
        y_NH: Tensor = functional.grouped_mm(x_ND.contiguous(), weight_EDH, offs=counts_E.cumsum(0).to(torch.int32))
        if y_NH.requires_grad:
            # A gradient that was expanded from a scalar has strides of 0, and the backward pass would refuse it.
            y_NH.register_hook(Tensor.contiguous)
        return y_NH
    parts = x_ND.split(counts_E.tolist())
    return torch.cat([part @ weight for part, weight in zip(parts, weight_EDH, strict=True)])


class Experts(nn.Module):
    """The base of a rank's experts. `forward` takes equal blocks [E_g, N, D], or sorted rows [N, D] with counts.

    Parameters have the expert in dimension 0. shard_dims: the dimension of each that divides where H does, or of a bias
    of the output D; output_biases: which are such biases. piece, pieces: what of that is here (`moe_ref.sharding`).
    """

    shard_dims: ClassVar[Mapping[str, int]] = {}
    output_biases: ClassVar[frozenset[str]] = frozenset()
    takes_counts_of_host: ClassVar[bool] = False  # of sorted rows on a GPU; else they are brought to its memory first
    piece, pieces = 0, 1

    def __init__(self, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        for name, value in (("experts", experts), ("width", width), ("hidden", hidden)):
            if value < 1:
                raise UsageError(f"{name}={value} is below 1", hint="1 or more")
        self.experts, self.width, self.hidden = experts, width, hidden

    def forward(self, x: Tensor, counts_E: Tensor | None = None) -> Tensor:
        """Return the experts' output, of x's shape.

        counts_E: int64 [E_g], rows of each expert, for sorted rows; on the host where it knows them, so that large
        experts' products are made one by one. Raises `UsageError` for a shape that does not fit.
        """
        experts = len(next(self.parameters()))  # other parameters may have been put in the place of these
        if counts_E is None:
            if x.dim() != 3 or x.shape[0] != experts or x.shape[2] != self.width:
                raise UsageError(
                    f"blocks of shape {list(x.shape)} for {experts} experts of width {self.width}",
                    hint=f"[{experts}, N, {self.width}], or [N, {self.width}] with counts",
                )
        elif x.dim() != 2 or x.shape[1] != self.width or counts_E.shape != (experts,):
            raise UsageError(f"rows of shape {list(x.shape)} with counts of shape {list(counts_E.shape)} "
                             f"for {experts} experts of width {self.width}",
                             hint=f"[N, {self.width}] and [{experts}]")  # fmt: skip
        if counts_E is not None and not self.takes_counts_of_host:
            counts_E = counts_E.to(x.device)
        return self._compute(x, counts_E)

    def _compute(self, x: Tensor, counts_E: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _weight(self, inside: int, out: int, dtype: torch.dtype | None, generator: torch.Generator | None) -> Tensor:
        bound = inside**-0.5
        start = torch.empty(self.experts, inside, out, dtype=dtype).uniform_(-bound, bound, generator=generator)
        return nn.Parameter(start)

    def _product(self, x: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, counts_E: Tensor | None) -> Tensor:
        if x.dtype != weight_EIO.dtype and not torch.is_autocast_enabled(x.device.type):
            raise UsageError(f"tokens of {x.dtype} for experts of {weight_EIO.dtype}",
                             hint=f"x.to({weight_EIO.dtype}), or torch.autocast around the layer")  # fmt: skip
        if counts_E is None:
            return torch.bmm(x, weight_EIO) if bias_EO is None else torch.baddbmm(bias_EO[:, None], x, weight_EIO)
        x, weight_EIO = _autocast(x, weight_EIO)
        counts_E = counts_E.to(x.device)
        y_NO = grouped_mm(x, weight_EIO, counts_E)
        if bias_EO is None:
            return y_NO
        experts_E = torch.arange(len(bias_EO), device=x.device)
        # output_size: or the host would wait for the sum of the counts.
        expert_N = experts_E.repeat_interleave(counts_E, output_size=len(x))
        bias_NO: Tensor = _Repeated.apply(bias_EO, expert_N, counts_E, y_NO.dtype)
        return y_NO + bias_NO


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """Cast to autocast's dtype where that is on: it knows torch's other products, but not those that this is for."""
    kind = tensors[0].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return [tensor if dtype is None else tensor.to(dtype) for tensor in tensors]


class _Repeated(torch.autograd.Function):
    """The bias of each sorted row's expert: [N, O] of `dtype`.

    Its gradient is a sum over rows in fp32 at least: torch's own adds row by row in the gradient's dtype, and in bf16
    a sum of ones stays at 256.
    """

    @staticmethod
    def forward(bias_EO: Tensor, expert_N: Tensor, counts_E: Tensor, dtype: torch.dtype) -> Tensor:
        return bias_EO.to(dtype).index_select(0, expert_N)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, torch.dtype], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:3])
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor, None, None, None]:
        expert_N, counts_E = ctx.saved_tensors
        if not torch.is_grad_enabled() and not fused.unsupported(grad_NO.device):
            return fused.segment_sum(grad_NO, counts_E).to(ctx.dtype), None, None, None
        wide = torch.promote_types(grad_NO.dtype, torch.float32)
        sum_EO = torch.zeros(len(counts_E), grad_NO.shape[1], dtype=wide, device=grad_NO.device)
        return sum_EO.index_add(0, expert_N, grad_NO.to(wide)).to(ctx.dtype), None, None, None


class FFN(Experts):
    """Computes activation(x w1 + b1) w2 + b2 for each expert: fairseq's and Tutel's `ffn`."""

    takes_counts_of_host: ClassVar[bool] = True
    shard_dims: ClassVar[Mapping[str, int]] = {"w1_EDH": 2, "w2_EHD": 1, "b1_EH": 1, "b2_ED": 1}
    output_biases: ClassVar[frozenset[str]] = frozenset({"b2_ED"})

    def __init__(
        self,
        experts: int,
        width: int,
        hidden: int,
        *,
        activation: str = "gelu",
        bias: bool = True,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """experts: E_g; width: D; hidden: H. generator: on the CPU, another one on each rank."""
        super().__init__(experts, width, hidden)
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.activation = activation
        self.w1_EDH = self._weight(width, hidden, dtype, generator)
        self.w2_EHD = self._weight(hidden, width, dtype, generator)
        self.b1_EH = nn.Parameter(torch.zeros(experts, hidden, dtype=dtype)) if bias else None
        self.b2_ED = nn.Parameter(torch.zeros(experts, width, dtype=dtype)) if bias else None

    def _compute(self, x: Tensor, counts_E: Tensor | None) -> Tensor:
        given, w1_EDH, w2_EHD = _autocast(x, self.w1_EDH, self.w2_EHD)
        if not fused_experts.unsupported(given, w1_EDH, w2_EHD):
            rows = fused_experts.rows_of(given, counts_E)
            hidden = fused_experts.affine(given, w1_EDH, self.b1_EH, rows, self.activation)
            return fused_experts.affine(hidden, w2_EHD, self.b2_ED, rows)
        hidden = ACTIVATIONS[self.activation](self._product(x, self.w1_EDH, self.b1_EH, counts_E))
        return self._product(hidden, self.w2_EHD, self.b2_ED, counts_E)


class SwiGLU(Experts):
    """Computes (silu(x w_gate) * x w_up) w_down for each expert (Shazeer, arXiv 2002.05202; Tutel's `llama_ffn`).

    It has no biases.
    """

    takes_counts_of_host: ClassVar[bool] = True
    shard_dims: ClassVar[Mapping[str, int]] = {"gate_EDH": 2, "up_EDH": 2, "down_EHD": 1}

    def __init__(
        self,
        experts: int,
        width: int,
        hidden: int,
        *,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """experts: E_g; width: D; hidden: H. generator: on the CPU, another one on each rank."""
        super().__init__(experts, width, hidden)
        self.gate_EDH = self._weight(width, hidden, dtype, generator)
        self.up_EDH = self._weight(width, hidden, dtype, generator)
        self.down_EHD = self._weight(hidden, width, dtype, generator)

    def _compute(self, x: Tensor, counts_E: Tensor | None) -> Tensor:
        given, gate_EDH, up_EDH, down_EHD = _autocast(x, self.gate_EDH, self.up_EDH, self.down_EHD)
        if not fused_experts.unsupported(given, gate_EDH, up_EDH, down_EHD):
            rows = fused_experts.rows_of(given, counts_E)
            return fused_experts.swiglu(given, gate_EDH, up_EDH, down_EHD, rows)
        gate = self._product(x, self.gate_EDH, None, counts_E)
        up = self._product(x, self.up_EDH, None, counts_E)
        return self._product(functional.silu(gate) * up, self.down_EHD, None, counts_E)
