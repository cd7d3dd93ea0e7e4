"""A communicator that sends nothing, for ablation: how long does a step take without its communication?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from commbench.communicators.prepared import Pending
from commbench.communicators.wrapper import CommWrapper


class NoOpComm(CommWrapper):
    """Sends nothing: what arrives is a copy of what would have been sent, cut or repeated to its length.

    It is right in shape, and wrong.

    The copy stays, so that memory is read and written as often as with the rank's own block.
    """

    def exchange_counts(self, sent: Sequence[int]) -> list[list[int]]:
        """Answer as if every rank sent what this one does."""
        return [list(sent) for _ in range(self.size)]

    def _call(self, name: str, out: Tensor, inp: Tensor | None, *, async_op: bool, **arguments: Any) -> Pending | None:
        if inp is not None:
            _copy(out, inp)
        return Pending(None, ()) if async_op else None


def _copy(out: Tensor, inp: Tensor) -> None:
    to, source = out.view(-1), inp.detach().view(-1)
    if out.data_ptr() == inp.data_ptr() or not len(to):
        return
    if not len(source):
        to.zero_()
        return
    for start in range(0, len(to), len(source)):
        chunk = to[start : start + len(source)]
        chunk.copy_(source[: len(chunk)])
