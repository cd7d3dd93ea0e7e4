"""Memory of a GPU that the other ranks of the host reach: torch's symmetric memory.

NVLink multicast is not used, and nothing here switches it on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._C._distributed_c10d import _SymmetricMemory

Agree = Callable[[bool], bool]  # whether all ranks say yes


class _Known(NamedTuple):
    start: int
    nbytes: int
    bases: list[int]  # where it begins on each rank, for this rank to write to
    handle: Any  # the mapping lives as long as this


class PeerMemory:
    """Symmetric allocations of one rank. All ranks make the same ones, in the same order."""

    def __init__(self, group_name: str, device: torch.device, agree: Agree) -> None:
        """`agree` also makes the ranks meet."""
        self._group = group_name
        self._device = device
        self._agree = agree
        self._new: list[torch.Tensor] = []
        self._known: list[_Known] = []
        # Read at each rendezvous: without it torch switches NVLink multicast on.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        # torch's socket is named after the process, and a killed one with the same number may have left it.
        Path(os.environ.get("TMPDIR", "/tmp"), f"symm_mem-{os.getpid()}").unlink(missing_ok=True)

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Bytes that others reach after `publish`. Raises where there is no memory; no other rank waits for it."""
        tensor = _SymmetricMemory.empty_strided_p2p((max(nbytes, 1),), (1,), torch.uint8, self._device)
        self._new.append(tensor)
        return tensor

    def zeros(self, nbytes: int) -> torch.Tensor:
        """Collective: published, and zero on all ranks before any goes on. All ranks raise if one lacks the memory."""
        failure = ""
        tensor: torch.Tensor | None = None
        try:
            tensor = self.allocate(nbytes)
            tensor.zero_()
            torch.cuda.synchronize()
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            failure = str(error)  # and not the error, whose frames hold the buffers of the case
        if not self._agree(not failure) or tensor is None:
            raise MemoryError(f"no {nbytes} bytes of symmetric memory on some rank: {failure or 'see the others'}")
        self.publish()
        return tensor

    def publish(self) -> None:
        """Collective: let others reach what was allocated since the last time."""
        if self._new:
            torch.cuda.synchronize()  # torch clears them on a stream of its own
        for tensor in self._new:
            handle = _SymmetricMemory.rendezvous(tensor, self._group)
            self._known.append(_Known(tensor.data_ptr(), tensor.numel(), list(handle.buffer_ptrs), handle))
        self._new.clear()

    def addresses(self, tensor: torch.Tensor) -> list[int]:
        """Where the memory of `tensor`, or of a part of one, is on each rank, for this rank to write to."""
        at = tensor.untyped_storage().data_ptr() + tensor.storage_offset()  # data_ptr is 0 where nothing is in it
        for start, nbytes, bases, _ in reversed(self._known):  # an address may have been used before
            if start <= at and at + tensor.numel() <= start + nbytes:
                return [base + at - start for base in bases]
        raise ValueError("other ranks do not reach this buffer: make it with empty(..., buffers='symmetric')")

    def withdraw(self) -> None:
        """What was allocated since the last time is not published: another rank lacks the memory."""
        self._new.clear()

    def release(self, tensor: torch.Tensor) -> None:
        """Forget one allocation. Nobody writes into it any more."""
        self._known = [item for item in self._known if item.start != tensor.data_ptr()]

    def forget(self, tensors: Sequence[torch.Tensor] = ()) -> None:
        """Forget all allocations but those of `tensors`: others are not reached any more, and free once dropped."""
        kept = {tensor.data_ptr() for tensor in tensors}
        self._known = [item for item in self._known if item.start in kept]
        self._new.clear()
