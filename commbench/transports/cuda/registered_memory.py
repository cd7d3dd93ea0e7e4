"""Memory that NCCL knows: registered with it, or symmetric, which it calls a window."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class Windows:
    """Buffers registered with NCCL: its allocator's memory, one pool for each, so that no order of theirs matters."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._backend: Any = group._get_backend(device)
        self._device = device
        self._pools: list[tuple[Any, bool]] = []
        self._published = 0

    def missing(self) -> str:
        """Return why NCCL's allocator does not work here, in its words; "" if it does."""
        try:
            return "" if self._backend.mem_allocator is not None else "NCCL has no allocator here"
        except RuntimeError as error:
            return str(error).splitlines()[0]

    def allocate(self, nbytes: int, *, symmetric: bool) -> torch.Tensor:
        pool = torch.cuda.MemPool(self._backend.mem_allocator)
        with torch.cuda.use_mem_pool(pool):
            tensor = torch.empty(max(nbytes, 1), dtype=torch.uint8, device=self._device)
        self._pools.append((pool, symmetric))
        return tensor

    def publish(self) -> None:
        """Collective where a pool is symmetric."""
        for pool, symmetric in self._pools[self._published :]:
            self._backend.register_mem_pool(pool, symmetric)
        self._published = len(self._pools)

    def withdraw(self) -> None:
        """What was allocated since the last time is not published: another rank lacks the memory."""
        del self._pools[self._published :]

    def release(self) -> None:
        """The buffers are used no more."""
        for pool, _ in self._pools[: self._published]:
            self._backend.deregister_mem_pool(pool)
        self._pools.clear()
        self._published = 0
