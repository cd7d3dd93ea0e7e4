"""NCCL over a process group that a program has made: none of its streams is changed, nor the device."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from commbench.transports.gloo import gather
from commbench.transports.nccl import Nccl


class JoinedNccl(Nccl):
    """Votes go over the group itself: a second one would have to be made by the same ranks at the same time."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, *, one_host: bool) -> None:
        """Collective."""
        self._group = group
        size = dist.get_world_size(group)
        super().__init__({"layout": (1, size)})
        self.rank, self.size = dist.get_rank(group), size
        self.place = self.cuda = device
        self.side_stream, self.copy_stream = torch.cuda.Stream(), torch.cuda.Stream()
        # A program need not have what the kernels are compiled with.
        self._without = "" if _has_compiler() else "the package cuda-bindings is not installed"
        self._open(group, one_host=one_host and not self._without)

    def unsupported(self, buffers: str, *, one_sided: bool) -> str:
        lacking = super().unsupported(buffers, one_sided=one_sided)
        return (self._without or lacking) if one_sided and lacking else lacking

    def all_gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        return gather(self._group, self.size, values, self.cuda)

    def withdraw(self) -> None:
        self.windows.withdraw()
        self.memory.withdraw()

    def gpu(self) -> str:
        return torch.cuda.get_device_name(self.cuda.index)

    def capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def follow(self, last: int | None) -> int:
        handle: Any = torch._C._cuda_getCurrentRawStream(self.cuda.index)
        stream = int(handle)
        if last is not None and stream != last and not self.capturing():
            torch.cuda.current_stream().wait_stream(torch.cuda.ExternalStream(last))
        return stream

    def mark(self) -> Any:
        return None if self.capturing() else torch.cuda.current_stream().record_event()

    def after(self, mark: Any) -> None:
        if not self.capturing():
            torch.cuda.current_stream().wait_event(mark)

    def leave(self, *, captured: bool) -> None:
        torch.cuda.synchronize()
        if captured:
            self._reclaim()
        self.all_gather([0.0])  # nobody frees what another still reaches
        self.windows.release()
        self.memory.forget()
        self.comms.clear()
        del self.world, self.windows, self._group


def _has_compiler() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False
