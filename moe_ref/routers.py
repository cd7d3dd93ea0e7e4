"""What makes a gate's logits of tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_ref import split_product

_STEEPEST = math.log(100.0)


class LinearRouter(nn.Module):
    """Computes logits [T, E] = x W^T for x [T, D], whatever dtype a cast of the whole model gave W."""

    def __init__(
        self, width: int, experts: int, *, dtype: torch.dtype | None, generator: torch.Generator | None
    ) -> None:
        """width: D. dtype: of W; None: torch's default. generator: on the CPU, for the first W."""
        super().__init__()
        self.weight_ED = _uniform_weight(experts, width, dtype, generator)

    def forward(self, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
        """Return logits in `dtype`, in which products are added."""
        if dtype == torch.float32 and not split_product.unsupported(x_TD, self.weight_ED):
            return split_product.product(x_TD, self.weight_ED)
        return x_TD.to(dtype) @ self.weight_ED.to(dtype).t()


class CosineRouter(nn.Module):
    """Computes logits [T, E] = cos(W x, v_e) min(100, exp(steepness)), for x [T, D]."""

    def __init__(
        self, width: int, experts: int, dim: int, *, temperature: float, dtype: torch.dtype | None,
        generator: torch.Generator | None,
    ) -> None:  # fmt: skip
        """dim: of the projection W x. temperature: 1 / exp(steepness) at the start. The others as of `LinearRouter`."""
        super().__init__()
        self.project_PD = _uniform_weight(dim, width, dtype, generator)
        start_EP = torch.empty(experts, dim, dtype=dtype).normal_(0, 0.01, generator=generator)
        self.vectors_EP = nn.Parameter(start_EP)
        self.steepness = nn.Parameter(torch.tensor(-math.log(temperature), dtype=dtype))

    def forward(self, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
        """Return logits in `dtype`, as everything before them."""
        x_TD = x_TD.to(dtype)
        projected_TP = functional.normalize(x_TD @ self.project_PD.to(x_TD.dtype).t(), dim=1)
        vectors_EP = functional.normalize(self.vectors_EP.to(x_TD.dtype), dim=1)
        return projected_TP @ vectors_EP.t() * self.steepness.to(x_TD.dtype).clamp(max=_STEEPEST).exp()


def _uniform_weight(
    rows: int, width: int, dtype: torch.dtype | None, generator: torch.Generator | None
) -> nn.Parameter:
    bound = width**-0.5
    return nn.Parameter(torch.empty(rows, width, dtype=dtype).uniform_(-bound, bound, generator=generator))
