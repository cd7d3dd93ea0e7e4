"""Experts of one rank, over equal blocks (batched GEMM) or over sorted tokens (grouped GEMM); and how they are shared.

Shapes: E_g experts of this rank, written E in suffixes here; N rows of each, from all ranks; D model; H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from commbench.errors import UsageError, unknown
from moe_ref import compiled, fused

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}
_ALIGNED = 16  # bytes: what torch's grouped product asks of rows
_FEW, _MANY = 4, 1024  # experts and rows of each, for products one by one


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


def unsupported(x_ND: Tensor, weight_EDH: Tensor) -> str:
    """Return in words why torch's grouped product would refuse this, or fail in backward; "" if it would not."""
    if not hasattr(functional, "grouped_mm"):
        return f"torch {torch.__version__} has no grouped_mm"
    dtype = x_ND.dtype
    on_gpu = x_ND.is_cuda
    if on_gpu and torch.cuda.get_device_capability(x_ND.device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or more"
    if dtype not in ((torch.bfloat16,) if on_gpu else (torch.bfloat16, torch.float16, torch.float32)):
        return f"it does not take {dtype} on {x_ND.device.type}"
    if weight_EDH.dtype != dtype:
        return f"tokens are {dtype} and weights {weight_EDH.dtype}"
    if not len(x_ND):
        return "there are no rows"
    if any(length * x_ND.element_size() % _ALIGNED for length in weight_EDH.shape[1:]):
        return f"rows of {list(weight_EDH.shape[1:])} elements are not multiples of {_ALIGNED} bytes"
    return ""


def grouped_mm(x_ND: Tensor, weight_EDH: Tensor, counts_E: Tensor) -> Tensor:
    """Multiply rows of expert e, sorted by expert and counts_E[e] in number, by weight e: [N, H].

    torch's grouped_mm where it takes them; else a loop over experts, for which the host waits for the counts.
    """
    if not unsupported(x_ND, weight_EDH):
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
    piece, pieces = 0, 1

    def __init__(self, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        for name, value in (("experts", experts), ("width", width), ("hidden", hidden)):
            if value < 1:
                raise UsageError(f"{name}={value} is below 1", hint="1 or more")
        self.experts, self.width, self.hidden = experts, width, hidden

    def forward(self, x: Tensor, counts_E: Tensor | None = None) -> Tensor:
        """Return the experts' output, of x's shape.

        counts_E: int64 [E_g], rows of each expert, for sorted rows. Raises `UsageError` for a shape that does not fit.
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
        return self._compute(x, counts_E)

    def _compute(self, x: Tensor, counts_E: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _weight(self, inside: int, out: int, dtype: torch.dtype | None, generator: torch.Generator | None) -> Tensor:
        bound = inside**-0.5
        start = torch.empty(self.experts, inside, out, dtype=dtype).uniform_(-bound, bound, generator=generator)
        return nn.Parameter(start)

    def _product(self, x: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, counts_E: Tensor | None) -> Tensor:
        if counts_E is None:
            return torch.bmm(x, weight_EIO) if bias_EO is None else _biased(x, weight_EIO, bias_EO)
        x, weight_EIO = _autocast(x, weight_EIO)
        y_NO = grouped_mm(x, weight_EIO, counts_E)
        if bias_EO is None:
            return y_NO
        bias_NO: Tensor = _Repeated.apply(bias_EO, counts_E, len(x), y_NO.dtype)
        return y_NO + bias_NO


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """Cast to autocast's dtype where that is on: it knows torch's other products, but not those that this is for."""
    kind = tensors[0].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return [tensor if dtype is None else tensor.to(dtype) for tensor in tensors]


def _biased(x_END: Tensor, weight_EDH: Tensor, bias_EH: Tensor) -> Tensor:
    """Compute x w + b of each expert: [E, N, H]."""
    if len(x_END) > _FEW or x_END.shape[1] < _MANY:
        return torch.baddbmm(bias_EH[:, None], x_END, weight_EDH)
    y_ENH: Tensor = _Biased.apply(*_autocast(x_END, weight_EDH, bias_EH))
    return y_ENH


class _Biased(torch.autograd.Function):
    """Makes one product after the other, so that each adds its bias as it writes, where baddbmm takes a pass more.

    733 to 1063 us, for two of 32768 x 2048 by 2048 x 2048 in fp16 on an H100.
    """

    @staticmethod
    def forward(ctx: Any, x_END: Tensor, weight_EDH: Tensor, bias_EH: Tensor) -> Tensor:
        ctx.save_for_backward(x_END, weight_EDH)
        y_ENH = x_END.new_empty(*x_END.shape[:2], weight_EDH.shape[2])
        for y_NH, x_ND, weight_DH, bias_H in zip(y_ENH, x_END, weight_EDH, bias_EH, strict=True):
            torch.addmm(bias_H, x_ND, weight_DH, out=y_NH)
        return y_ENH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ENH: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_END, weight_EDH = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        return (
            torch.bmm(grad_ENH, weight_EDH.transpose(1, 2)) if by_x else None,
            torch.bmm(x_END.transpose(1, 2), grad_ENH) if by_weight else None,
            grad_ENH.sum(1) if by_bias else None,
        )


class _Repeated(torch.autograd.Function):
    """The bias of each sorted row's expert: [N, O] of `dtype`.

    Its gradient is a sum over rows in fp32 at least: torch's own adds row by row in the gradient's dtype, and in bf16
    a sum of ones stays at 256.
    """

    @staticmethod
    def forward(ctx: Any, bias_EO: Tensor, counts_E: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
        experts_E = torch.arange(len(bias_EO), device=bias_EO.device)
        # output_size: or the host would wait for the sum of the counts.
        expert_N = experts_E.repeat_interleave(counts_E, output_size=rows)
        ctx.save_for_backward(expert_N, counts_E)
        ctx.dtype = bias_EO.dtype
        return bias_EO.to(dtype).index_select(0, expert_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor, None, None, None]:
        expert_N, counts_E = ctx.saved_tensors
        if not fused.unsupported(grad_NO.device):
            return fused.segment_sum(grad_NO, counts_E).to(ctx.dtype), None, None, None
        wide = torch.promote_types(grad_NO.dtype, torch.float32)
        sum_EO = torch.zeros(len(counts_E), grad_NO.shape[1], dtype=wide, device=grad_NO.device)
        return sum_EO.index_add_(0, expert_N, grad_NO.to(wide)).to(ctx.dtype), None, None, None


class FFN(Experts):
    """Computes activation(x w1 + b1) w2 + b2 for each expert: fairseq's and Tutel's `ffn`."""

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
        hidden = ACTIVATIONS[self.activation](self._product(x, self.w1_EDH, self.b1_EH, counts_E))
        return self._product(hidden, self.w2_EHD, self.b2_ED, counts_E)


class SwiGLU(Experts):
    """Computes (silu(x w_gate) * x w_up) w_down for each expert (Shazeer, arXiv 2002.05202; Tutel's `llama_ffn`).

    It has no biases.
    """

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
        gate = self._product(x, self.gate_EDH, None, counts_E)
        up = self._product(x, self.up_EDH, None, counts_E)
        return self._product(functional.silu(gate) * up, self.down_EHD, None, counts_E)
