"""A communicator whose all-to-alls send a payload: rows are quantised before they are sent, and made numbers again.

What travels is an exchange of bytes, which goes by the profile's choice for so many bytes. A payload is what the caller
asks for, never what a profile chooses.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from torch import Tensor

from commbench import payloads
from commbench.communicators.base import CommLike
from commbench.communicators.prepared import Pending
from commbench.communicators.wrapper import CommWrapper
from commbench.errors import UsageError
from commbench.payloads import Payload, tensors

EXCHANGES = ("all_to_all", "all_to_allv")


class PayloadComm(CommWrapper):
    """Stands for `comm`: all_to_all and all_to_allv send a payload, the other collectives what they are given.

    A row of all_to_all is the last dimension, or a block where there is one dimension; a row of all_to_allv is what its
    counts count. Gradients go through quantising as if it were not there, and back by `backward`.
    """

    def __init__(self, comm: CommLike, payload: str, *, backward: str = payloads.NONE) -> None:
        """payload, backward: of calls, and of those that carry gradients back: `commbench.payloads.CHOICES`."""
        super().__init__(comm)
        self._payload, self._names = payloads.get(payload), (payload, backward)
        payloads.get(backward)  # refuses what it is not

    @functools.cached_property
    def adjoint(self) -> PayloadComm:
        """Return the communicator of the way back."""
        return PayloadComm(self.comm, self._names[1], backward=self._names[0])

    def _call(self, name: str, out: Tensor, inp: Tensor | None, *, async_op: bool, **arguments: Any) -> Pending | None:
        payload, values = self._payload, 0
        if payload is not None and inp is not None and name in EXCHANGES and _changes(name, payload, inp):
            values = _row_length(name, inp, self.size)
        if payload is None or inp is None or not values:
            return super()._call(name, out, inp, async_op=async_op, **arguments)
        if out.dtype != inp.dtype or not out.is_contiguous() or out.numel() % values or inp.numel() % values:
            raise UsageError(
                f"{name} with payload={payload.name}: inp is {tuple(inp.shape)} of {inp.dtype}, "
                f"out {tuple(out.shape)} of {out.dtype}",
                hint=f"contiguous tensors of one dtype, in rows of {values}",
            )
        rows = out.view(out.numel() // values, values)
        going = tensors.quantise(inp.reshape(inp.numel() // values, values), payload)
        arrived = going.new_empty(len(rows), going.shape[1])
        work = super()._call(name, arrived, going, async_op=async_op, **arguments)

        def unpack() -> None:
            tensors.dequantise(arrived, values, out.dtype, payload, rows)

        if work is None:
            unpack()
            return None
        return Pending(work, (going, arrived), unpack)


def _changes(name: str, payload: Payload, inp: Tensor) -> bool:
    """Return whether these elements travel as something else. Raises `UsageError` where they cannot."""
    dtype = tensors.DTYPES.get(inp.dtype, str(inp.dtype).removeprefix("torch."))
    if reason := payload.unsupported(dtype):
        raise UsageError(f"{name}: {reason}", hint="payload=none sends elements as they are")
    return payload.changes(dtype)


def _row_length(name: str, inp: Tensor, ranks: int) -> int:
    if name == "all_to_allv":
        return math.prod(inp.shape[1:])
    return inp.shape[-1] if inp.dim() > 1 else inp.numel() // ranks
