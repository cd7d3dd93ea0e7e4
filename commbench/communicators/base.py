"""What a communicator is to whoever calls it, so that a wrapper or a test's stand-in can take its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from commbench.communicators.prepared import Pending


class CommLike(Protocol):
    """The collectives of `Communicator` on tensors: commbench's own, or one that counts, times or sends nothing."""

    rank: int
    size: int
    device: torch.device

    def all_to_all(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Pending | None: ...

    def all_to_allv(
        self, out: Tensor, inp: Tensor, received: Sequence[int], sent: Sequence[int], *,
        matrix: Sequence[Sequence[int]] | None = None, async_op: bool = False,
    ) -> Pending | None: ...  # fmt: skip

    def all_gather(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Pending | None: ...

    def reduce_scatter(
        self, out: Tensor, inp: Tensor, op: str = "sum", *, async_op: bool = False
    ) -> Pending | None: ...

    def all_reduce(
        self, out: Tensor, inp: Tensor | None = None, op: str = "sum", *, async_op: bool = False
    ) -> Pending | None: ...

    def tp_all_to_all(
        self, out: Tensor, inp: Tensor, *, tp: int | None = None, tp_input: str = "replicated", async_op: bool = False
    ) -> Pending | None: ...

    def exchange_counts(self, sent: Sequence[int]) -> list[list[int]]: ...
