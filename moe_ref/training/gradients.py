"""Gradients of a model that is the same on all ranks in part, and in part cut over them: one mean, one norm.

What is differentiated is the mean over the parts of a batch, each divided by their number before backward. Then the
gradient of an expert is whole where it is: it has met the tokens of all ranks, whose gradients came by the all-to-all.
Gradients of what is on every rank are each rank's summand, and are added up here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from moe_ref.schedules.base import Comm

_TINY = 1e-6


class Gradients:
    """The gradients of all parameters. Those of `replicated` ones live in flat buckets that are reduced as they are."""

    def __init__(
        self, replicated: Sequence[nn.Parameter], sharded: Sequence[nn.Parameter], comm: Comm | None, bucket_bytes: int
    ) -> None:
        """replicated: on every rank of `comm`; sharded: this rank's own. comm: null where there is one rank."""
        self._replicated, self._sharded, self._comm = list(replicated), list(sharded), comm
        self.buckets = [_flat(bucket) for bucket in _packed(replicated, bucket_bytes)]

    def zero(self) -> None:
        for bucket in self.buckets:
            bucket.zero_()
        for parameter in self._sharded:
            parameter.grad = None

    def reduce(self) -> None:
        """Collective: add up what is replicated, a bucket a call."""
        if self._comm is not None:
            for bucket in self.buckets:
                self._comm.all_reduce(bucket)

    def squares(self) -> tuple[Tensor, Tensor]:
        """Sums of squares, fp64, 0-dimensional: of what is replicated, after `reduce`, and of this rank's own."""
        return _squares(self.buckets), _squares(p.grad for p in self._sharded if p.grad is not None)

    def clip(self, norm: float, most: float) -> None:
        """Scale all so that a global norm of `norm` becomes `most`, where it is above (Pascanu, arXiv 1211.5063)."""
        if norm > most:
            factor = most / (norm + _TINY)
            for gradient in (*self.buckets, *(p.grad for p in self._sharded if p.grad is not None)):
                gradient.mul_(factor)


def _packed(parameters: Iterable[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """In order, in lists of one dtype and device of at most so many bytes, unless one alone has more."""
    lists: list[list[nn.Parameter]] = []
    left = 0
    for parameter in parameters:
        fits = lists and parameter.dtype is lists[-1][0].dtype and parameter.nbytes <= left
        if not fits:
            lists.append([])
            left = bucket_bytes
        lists[-1].append(parameter)
        left -= parameter.nbytes
    return lists


def _flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    """One buffer of zeros, of which each parameter's gradient is a view: backward adds to it."""
    buffer = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
    at = 0
    for parameter in parameters:
        parameter.grad = buffer[at : at + parameter.numel()].view(parameter.shape)
        at += parameter.numel()
    return buffer


def _squares(tensors: Iterable[Tensor]) -> Tensor:
    # Norms in fp32 at least, their sum in fp64: no copy of a bucket is made.
    norms = [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)).double() for t in tensors]
    return torch.stack(norms).square().sum() if norms else torch.zeros((), dtype=torch.float64)
