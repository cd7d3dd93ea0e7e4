"""Buffers that exchanges write to, kept from pass to pass, in the memory that a profile's choices want.

A choice may need registered or symmetric memory, which `comm.empty` makes once and keeps; what torch allocates for each
pass is plain, and a call on it goes by the choice for plain memory. So a layer that keeps its buffers gets all of a
profile, and one that does not gets what plain memory allows.

There is one buffer for each exchange of a pass and one for its gradient's, and the next pass writes to the same ones.
A pass has to be gone back through before the next: autograd is told of each writing, and raises where somebody still
needs what was there.
"""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import increment_version

from commbench.communicators.base import CommLike

KEPT = ("all_to_all",)  # of others each rank may need another length, or another one with each pass


class KeptBuffers:
    """The buffers of one layer, by the exchange that writes to them."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], Tensor] = {}
        self._next = 0

    def begin_pass(self) -> None:
        """Number exchanges from 1 again."""
        self._next = 0

    def next_number(self) -> int:
        """Return the number of the next exchange of this pass, the same on all ranks."""
        self._next += 1
        return self._next

    def empty(
        self, comm: CommLike, collective: str, shape: tuple[int, ...], like: Tensor, use: tuple[int, str]
    ) -> Tensor:
        """Return a buffer for what comes by `collective`, at this use in a pass. Collective where it is made."""
        make = getattr(comm, "empty", None)  # what stands for a communicator may have none
        if collective not in KEPT or make is None:
            return like.new_empty(shape)
        key = (use, shape, like.dtype)
        if key not in self._kept:
            self._kept[key] = make(shape, like.dtype, collective=collective)
        kept = self._kept[key]
        increment_version(kept)
        return kept.detach()  # another tensor, which autograd makes a part of this pass's graph
