"""Modules that ranks share: each has a piece of some parameters, and the pieces' outputs are summands.

Megatron's two cuts (Shoeybi et al., arXiv 1909.08053, 3): the first product by its outputs, the second by its inputs,
with one all_reduce after them, and one backward of the gradient of what went in. All ranks of a group have the same
tokens before and after.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from commbench.communicators.base import CommLike
from commbench.communicators.differentiation import differentiated_once
from commbench.errors import UsageError


class TensorParallelModule(nn.Module):
    """A module that is whole until `shard` cuts it.

    shard_dims: by parameter's name, the dimension in which it is cut; others are whole.
    """

    shard_dims: ClassVar[Mapping[str, int]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.tp: CommLike | None = None

    def shard(self, tp: CommLike) -> None:
        """Keep this rank's piece of each parameter, in place. Ranks that had equal modules hold all between them.

        Raises `UsageError` where a length does not divide among the ranks of `tp`.
        """
        for name, dimension in self.shard_dims.items():
            whole = self.get_parameter(name)
            length = whole.shape[dimension]
            if length % tp.size:
                raise UsageError(f"{name} of shape {list(whole.shape)} does not divide among {tp.size} ranks",
                                 hint=f"{length} is to be a multiple of {tp.size}")  # fmt: skip
        for name, dimension in self.shard_dims.items():
            path, _, last = name.rpartition(".")
            piece = self.get_parameter(name).detach().chunk(tp.size, dimension)[tp.rank].clone()
            setattr(self.get_submodule(path), last, nn.Parameter(piece))
        self.tp = tp

    def copy_to_tp(self, x: Tensor) -> Tensor:
        """Return x for this rank's piece of a product; backward adds up the gradients of all pieces.

        In autocast's dtype where there is autocast: the products take it in that anyway, and its gradient has half the
        bytes.
        """
        if self.tp is None:
            return x
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        same: Tensor = _CopyToTP.apply(x, self.tp)  # type: ignore[no-untyped-call]
        return same

    def reduce_from_tp(self, x: Tensor, last: nn.Linear) -> Tensor:
        """Compute last(x), of this rank's columns of `last`, added up over ranks; its bias counts once."""
        if self.tp is None:
            out: Tensor = last(x)
            return out
        total: Tensor = _ReduceFromTP.apply(functional.linear(x, last.weight), self.tp)  # type: ignore[no-untyped-call]
        return total if last.bias is None else total + last.bias.to(total.dtype)


class _CopyToTP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: CommLike) -> Tensor:
        ctx.tp = tp
        return x.view_as(x)

    @staticmethod
    @differentiated_once("a tensor-parallel product", "with tp=1 it can")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _sum(gradients[0], ctx.tp), None


class _ReduceFromTP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: CommLike) -> Tensor:
        return _sum(x, tp)

    @staticmethod
    @differentiated_once("a tensor-parallel product", "with tp=1 it can")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _sum(x: Tensor, tp: CommLike) -> Tensor:
    x = x.detach().contiguous()
    out = torch.empty_like(x)
    tp.all_reduce(out, x)
    return out


__all__ = ["TensorParallelModule"]
