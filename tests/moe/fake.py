"""A communicator of one rank, in this process, that notes what happens when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Later:
    """A call whose result is there after `wait`, and not before."""

    def __init__(self, comm: Alone, number: int, out: Tensor, inp: Tensor) -> None:
        self.comm, self.number, self.out, self.inp = comm, number, out, inp

    def wait(self) -> None:
        self.out.copy_(self.inp.view_as(self.out))
        self.comm.events.append(f"wait {self.number}")


class Alone:
    """All collectives of one rank are copies. `events`: "issue 0", "wait 0", .., numbered as issued.

    Until `wait` outputs are nan, so that what is used too early spoils the result.
    """

    rank, size = 0, 1
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.events: list[str] = []
        self.issued = 0

    def _call(self, out: Tensor, inp: Tensor, async_op: bool) -> Any:
        number, self.issued = self.issued, self.issued + 1
        self.events.append(f"issue {number}")
        if out.data_ptr() != inp.data_ptr() and out.is_floating_point():
            out.fill_(torch.nan)
        later = Later(self, number, out, inp)
        if async_op:
            return later
        later.wait()
        return None

    def all_to_all(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Any:
        return self._call(out, inp, async_op)

    def all_to_allv(
        self, out: Tensor, inp: Tensor, received: Sequence[int], sent: Sequence[int], *,
        matrix: Sequence[Sequence[int]] | None = None, async_op: bool = False,
    ) -> Any:  # fmt: skip
        assert list(received) == list(sent) == [len(inp)] == [len(out)]
        return self._call(out, inp, async_op)

    def all_gather(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Any:
        return self._call(out, inp, async_op)

    def reduce_scatter(self, out: Tensor, inp: Tensor, op: str = "sum", *, async_op: bool = False) -> Any:
        return self._call(out, inp, async_op)

    def all_reduce(self, out: Tensor, inp: Tensor | None = None, op: str = "sum", *, async_op: bool = False) -> Any:
        return self._call(out, out if inp is None else inp, async_op)

    def tp_all_to_all(
        self, out: Tensor, inp: Tensor, *, tp: int | None = None, tp_input: str = "replicated", async_op: bool = False
    ) -> Any:
        return self._call(out, inp, async_op)

    def exchange_counts(self, sent: Sequence[int]) -> list[list[int]]:
        return [list(sent)]
