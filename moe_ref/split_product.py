"""The gate's product in fp32 of tokens in bf16 or fp16, by tensor cores and without a copy of the tokens in fp32.

A matrix of fp32 is a sum of narrow ones: bf16 keeps 8 bits of each element, so three of them keep all 24; fp16 keeps
11, and two of them 22, or 2.4e-7 of the largest element. Products of tokens, which are narrow already, with each are
exact in fp32, in which tensor cores add. So x W^T is one product of x with the parts below each other, whose results
are added.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from commbench.communicators.differentiation import ON_CPU, differentiated_once

_PARTS = {torch.bfloat16: 3, torch.float16: 2}
_HIGHEST = 14  # exponent to which fp16 parts are scaled, so that their lowest bits are not below its smallest number
_HALF_BITS = 11


def unsupported(x_TD: Tensor, weight_ED: Tensor) -> str:
    """Return in words why this product cannot be split; "" if it can."""
    if torch.compiler.is_compiling():
        return "a compiler makes one product of it"
    if x_TD.device.type != "cuda":
        return f"tokens are on {x_TD.device.type}"
    if x_TD.dtype not in _PARTS or weight_ED.dtype != torch.float32:
        return f"tokens are {x_TD.dtype} and weights {weight_ED.dtype}"
    if x_TD.shape[1] % 8 or not len(x_TD):
        return f"tokens of shape {list(x_TD.shape)}"
    return ""


def product(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """Compute x W^T in fp32: [T, E], for x [T, D] in bf16 or fp16 and W [E, D] in fp32, both with gradients."""
    found: Tensor = _Product.apply(x_TD, weight_ED)  # type: ignore[no-untyped-call]
    return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ED: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, weight_ED)
        parts, scale = _split(weight_ED, x_TD.dtype)
        wide_TN = torch.mm(x_TD, torch.cat(parts).t(), out_dtype=torch.float32)
        return _added(wide_TN.view(len(x_TD), len(parts), len(weight_ED)), 1, scale)

    @staticmethod
    @differentiated_once("a gate's product of narrow tokens", ON_CPU)
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_TD, weight_ED = ctx.saved_tensors
        by_x, by_weight = ctx.needs_input_grad
        parts, scale = _split(grad_TE, x_TD.dtype)
        grad_ED = None
        if by_weight:
            wide_ND = torch.mm(torch.cat(parts, dim=1).t(), x_TD, out_dtype=torch.float32)
            grad_ED = _added(wide_ND.view(len(parts), *weight_ED.shape), 0, scale)
        return _by_tokens(grad_TE, weight_ED, parts, x_TD.dtype) if by_x else None, grad_ED


def _by_tokens(grad_TE: Tensor, weight_ED: Tensor, parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Compute the gradient by tokens, to twice the bits that it is rounded to."""
    if dtype == torch.float16:  # whose range scaled parts would leave
        return (grad_TE @ weight_ED).to(dtype)
    of_weight, _ = _split(weight_ED, dtype)
    left_TN = torch.cat([parts[0], parts[0], parts[1]], dim=1)
    return left_TN @ torch.cat([of_weight[0], of_weight[1], of_weight[0]])


def _split(values: Tensor, dtype: torch.dtype) -> tuple[list[Tensor], Tensor | None]:
    """Return parts in `dtype`, and by what they are too large, None for nothing, without waiting for the device.

    Part n of fp16 is larger by 2^(11 n) besides.
    """
    scale: Tensor | None = None
    step = 0
    rest, parts = values, []
    if dtype == torch.float16:
        largest = values.abs().amax().clamp(min=2.0**-100)
        scale = torch.exp2(_HIGHEST - largest.log2().ceil())
        step = _HALF_BITS
        rest = values * scale
    for number in range(_PARTS[dtype]):
        part = (rest * 2.0 ** (step * number)).to(dtype)
        rest = rest - part.float() / 2.0 ** (step * number)
        parts.append(part)
    return parts, scale


def _added(products: Tensor, dim: int, scale: Tensor | None) -> Tensor:
    """Add the products with all parts, which are along this dimension."""
    if scale is None:
        return products.sum(dim)
    highest, lowest = products.unbind(dim)
    return torch.add(highest, lowest, alpha=2.0**-_HALF_BITS) / scale
