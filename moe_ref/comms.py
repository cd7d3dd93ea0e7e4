"""A communicator that sends nothing, for ablation: how long does a step take without its communication?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor

from commbench.communicators.prepared import Pending
from moe_ref.schedules.base import Comm

if TYPE_CHECKING:
    from commbench.communicators.autograd import Gradients
    from commbench.communicators.communicator import Communicator


class Silent:
    """What arrives is a copy of what would have been sent, cut or repeated to its length: right in shape, and wrong.

    The copy stays, so that memory is read and written as often as with the rank's own block.
    """

    def __init__(self, comm: Comm) -> None:
        self.rank, self.size, self.device = comm.rank, comm.size, comm.device

    def all_to_all(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Pending | None:
        return _copied(out, inp, async_op)

    def all_to_allv(
        self, out: Tensor, inp: Tensor, received: Sequence[int], sent: Sequence[int], *,
        matrix: Sequence[Sequence[int]] | None = None, async_op: bool = False,
    ) -> Pending | None:  # fmt: skip
        return _copied(out, inp, async_op)

    def all_gather(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Pending | None:
        return _copied(out, inp, async_op)

    def reduce_scatter(self, out: Tensor, inp: Tensor, op: str = "sum", *, async_op: bool = False) -> Pending | None:
        return _copied(out, inp, async_op)

    def all_reduce(
        self, out: Tensor, inp: Tensor | None = None, op: str = "sum", *, async_op: bool = False
    ) -> Pending | None:
        return _copied(out, out if inp is None else inp, async_op)

    def tp_all_to_all(
        self, out: Tensor, inp: Tensor, *, tp: int | None = None, tp_input: str = "replicated", async_op: bool = False
    ) -> Pending | None:
        return _copied(out, inp, async_op)

    def exchange_counts(self, sent: Sequence[int]) -> list[list[int]]:
        """As if every rank sent what this one does."""
        return [list(sent) for _ in range(self.size)]

    @property
    def autograd(self) -> Gradients:
        from commbench.communicators.autograd import Gradients

        return Gradients(cast("Communicator", self))


def _copied(out: Tensor, inp: Tensor, async_op: bool) -> Pending | None:
    to, source = out.view(-1), inp.detach().view(-1)
    if out.data_ptr() != inp.data_ptr() and len(to):
        if not len(source):
            to.zero_()
        for start in range(0, len(to) if len(source) else 0, max(1, len(source))):
            part = to[start : start + len(source)]
            part.copy_(source[: len(part)])
    return Pending(None, ()) if async_op else None
