"""Gradients of a model that is the same on all ranks in part, and in part cut over them: one mean, one norm.

What is differentiated is the mean over the micro-batches, each divided by their number before backward. Then the
gradient of an expert is whole where it is: it has met the tokens of all ranks, whose gradients came by the all-to-all.
Gradients of what other ranks have too are each rank's summand, and are added up here. The ranks of a tensor-parallel
group have the same tokens and so the same summand of what is on every rank: their sum is divided by their number, which
keeps copies equal bit by bit and lets a ring cross each link between nodes once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from moe_ref.training.parallel_dims import ParallelDims

Kind = Literal["replicated", "cut", "expert"]
_TINY = 1e-6


class GradBuckets:
    """The gradients of all parameters. Those that other ranks have too live in flat buckets, reduced as they are."""

    def __init__(self, model: Mapping[Kind, Sequence[nn.Parameter]], dims: ParallelDims, bucket_bytes: int) -> None:
        """model: the parameters of this rank, by `build.ParamPlacement.kind`."""
        self._dims = dims
        self.experts = list(model["expert"])
        self._replicated, self._cut = ([_flat(bucket) for bucket in _packed(model[kind], bucket_bytes)]
                                       for kind in ("replicated", "cut"))  # fmt: skip

    @property
    def buckets(self) -> list[Tensor]:
        """All flat buckets of gradients that other ranks have too."""
        return [*self._replicated, *self._cut]

    def zero(self) -> None:
        """Set all gradients to 0."""
        for bucket in self.buckets:
            bucket.zero_()
        for parameter in self.experts:
            parameter.grad = None

    def reduce(self) -> None:
        """Add up what several ranks have, a bucket a call. Collective."""
        dims = self._dims
        if dims.comms is None:
            return
        for bucket in self._replicated:
            dims.comms.world.all_reduce(bucket)
            if dims.tp_size > 1:
                bucket.div_(dims.tp_size)
        for bucket in self._cut:
            dims.comms.ep.all_reduce(bucket)

    def squares(self) -> Tensor:
        """Compute this rank's summand of the sum of squares, after `reduce`: fp64, 0-dimensional."""
        dims = self._dims
        shared = _squares(self._replicated) / dims.size + _squares(self._cut) * dims.tp_size / dims.size
        return shared + _squares(self._own())

    def clip(self, norm: float, most: float) -> None:
        """Scale all so that a global norm of `norm` becomes `most`, where it is above (Pascanu, arXiv 1211.5063)."""
        if norm > most:
            factor = most / (norm + _TINY)
            for gradient in (*self.buckets, *self._own()):
                gradient.mul_(factor)

    def _own(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.experts if parameter.grad is not None]


def _packed(parameters: Iterable[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Pack parameters in lists of one dtype and device of at most so many bytes, unless one alone has more."""
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
    """Make one buffer of zeros, of which each parameter's gradient is a view: backward adds to it."""
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
