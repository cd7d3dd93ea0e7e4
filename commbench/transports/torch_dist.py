"""torch.distributed as a transport: gloo now, and the part that nccl will share."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from commbench.data import Bytes
from commbench.launch.environment import RankInfo
from commbench.layout import LinkClass
from commbench.transports.base import Array, Comm, Message, Work, Works

# Hangs are cut by commbench itself, per case and earlier; this only ends ranks that nobody watches.
_LIBRARY_TIMEOUT = datetime.timedelta(minutes=60)


def meet_by_environment() -> Any:
    """The key-value store that MASTER_ADDR and MASTER_PORT name; once per process, as rank 0 may have to host it."""
    return next(rendezvous("env://"))[0]


class TorchComm:
    """A process group; buffers are flat uint8 tensors on `device`."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group = group
        self._device = device
        self._subgroups: dict[tuple[int, ...], TorchComm] = {}  # a few per layout; they live as long as the process
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def all_to_all(self, out: Array, inp: Array, *, step: str) -> Work:
        work: Work = dist.all_to_all_single(out, inp, group=self._group, async_op=True)
        return work

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], *, step: str) -> Work:
        ops = [dist.P2POp(dist.irecv, m.buffer, group=self._group, group_peer=m.peer) for m in recvs]  # type: ignore[arg-type]
        ops += [dist.P2POp(dist.isend, m.buffer, group=self._group, group_peer=m.peer) for m in sends]  # type: ignore[arg-type]
        return Works(dist.batch_isend_irecv(ops) if ops else [])

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Comm:
        mine = next((list(ranks) for ranks in partition if self.rank in ranks), None)
        if mine is None:
            raise ValueError(f"rank {self.rank} is in no group of {partition}")
        key = tuple(mine)
        if key not in self._subgroups:
            ours = dist.get_process_group_ranks(self._group)
            # Only the members of a group create it, so that groups of groups work; torch names it after its ranks.
            group = dist.new_group(
                [ours[rank] for rank in mine], timeout=_LIBRARY_TIMEOUT, use_local_synchronization=True
            )
            self._subgroups[key] = TorchComm(group, self._device)
        return self._subgroups[key]

    def empty(self, nbytes: int) -> Array:
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)


class Gloo:
    """CPU tensors over gloo. Blocking calls, so nothing to synchronise; the clock is the host's."""

    name = "gloo"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.rank = self.size = 0

    @staticmethod
    def before_fork(size: int) -> Any:
        return None  # importing torch was the point: the forked ranks have it already

    def connect(self, info: RankInfo, shared: Any = None) -> None:
        self.rank, self.size = info.rank, info.size
        if shared is not None:
            store = shared
        elif info.rendezvous == "env://":
            store = meet_by_environment()
        else:
            store = dist.FileStore(info.rendezvous, info.size)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=info.rank, world_size=info.size, timeout=_LIBRARY_TIMEOUT)
        world = dist.group.WORLD
        assert world is not None
        self.world: Comm = TorchComm(world, torch.device("cpu"))
        # Votes have a group of their own, so that they never meet timed messages.
        self._votes = dist.new_group(timeout=_LIBRARY_TIMEOUT)

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def case_begins(self, labels: dict[str, Any]) -> None:
        return None

    def upload(self, array: Array, offset: int, data: Bytes) -> None:
        self._numpy(array)[offset : offset + data.size] = data

    def download(self, array: Array, offset: int, nbytes: int) -> Bytes:
        return self._numpy(array)[offset : offset + nbytes]

    @staticmethod
    def _numpy(array: Array) -> Bytes:
        assert isinstance(array, torch.Tensor)
        view: Bytes = array.numpy()
        return view

    def barrier(self) -> None:
        dist.barrier()

    def synchronize(self) -> None:
        return None

    mark = staticmethod(time.perf_counter_ns)

    def between_us(self, start: int, end: int) -> float:
        return (end - start) / 1e3

    def moment_us(self, mark: int) -> float:
        return mark / 1e3  # CLOCK_MONOTONIC: the same for all processes of a host

    def host_us(self) -> float:
        return time.perf_counter_ns() / 1e3

    def all_gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        mine = torch.from_numpy(np.asarray(values, dtype=np.float64))
        votes = torch.empty(self.size, mine.numel(), dtype=torch.float64)
        dist.all_gather(list(votes), mine, group=self._votes)
        array: npt.NDArray[np.float64] = votes.numpy()
        return array

    def is_out_of_memory(self, error: BaseException) -> bool:
        # The CPU allocator raises a plain RuntimeError.
        return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "gloo": f"in torch {torch.__version__}"}

    def link_gbps(self) -> dict[LinkClass, float] | None:
        return None
