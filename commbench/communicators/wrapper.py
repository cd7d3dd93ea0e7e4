"""A communicator around another one: what counts, times or replaces calls overrides one method."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from commbench.communicators.autograd import DifferentiableCollectives
from commbench.communicators.base import CommLike
from commbench.communicators.prepared import Pending


class CommWrapper:
    """Stands for `comm`: the same collectives, each of which goes through `_call`, which makes it on `comm`."""

    def __init__(self, comm: CommLike) -> None:
        self.comm = comm
        self.rank, self.size, self.device = comm.rank, comm.size, comm.device

    def all_to_all(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Pending | None:
        return self._call("all_to_all", out, inp, async_op=async_op)

    def all_to_allv(
        self, out: Tensor, inp: Tensor, received: Sequence[int], sent: Sequence[int], *,
        matrix: Sequence[Sequence[int]] | None = None, async_op: bool = False,
    ) -> Pending | None:  # fmt: skip
        return self._call("all_to_allv", out, inp, received=received, sent=sent, matrix=matrix, async_op=async_op)

    def all_gather(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Pending | None:
        return self._call("all_gather", out, inp, async_op=async_op)

    def reduce_scatter(self, out: Tensor, inp: Tensor, op: str = "sum", *, async_op: bool = False) -> Pending | None:
        return self._call("reduce_scatter", out, inp, op=op, async_op=async_op)

    def all_reduce(
        self, out: Tensor, inp: Tensor | None = None, op: str = "sum", *, async_op: bool = False
    ) -> Pending | None:
        return self._call("all_reduce", out, inp, op=op, async_op=async_op)

    def broadcast(self, tensor: Tensor, root: int = 0, *, async_op: bool = False) -> Pending | None:
        return self._call("broadcast", tensor, None, root=root, async_op=async_op)

    def tp_all_to_all(
        self, out: Tensor, inp: Tensor, *, tp: int | None = None, tp_input: str = "replicated", async_op: bool = False
    ) -> Pending | None:
        return self._call("tp_all_to_all", out, inp, tp=tp, tp_input=tp_input, async_op=async_op)

    def exchange_counts(self, sent: Sequence[int]) -> list[list[int]]:
        return self.comm.exchange_counts(sent)

    @functools.cached_property
    def autograd(self) -> DifferentiableCollectives:
        """Return the collectives as functions of their input, whose gradients take the same way."""
        return DifferentiableCollectives(self)

    def _call(self, name: str, out: Tensor, inp: Tensor | None, *, async_op: bool, **arguments: Any) -> Pending | None:
        """Make the call `name` on the communicator. `inp` is None where `out` is the input too."""
        tensors = (out,) if inp is None else (out, inp)
        work: Pending | None = getattr(self.comm, name)(*tensors, async_op=async_op, **arguments)
        return work


def bare(comm: CommLike) -> CommLike:
    """Return the communicator below all wrappers: for calls that are none of the program's."""
    while isinstance(comm, CommWrapper):
        comm = comm.comm
    return comm
