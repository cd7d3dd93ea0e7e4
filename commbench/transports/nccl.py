"""NCCL, through torch.distributed: one GPU for each rank.

Collectives run on the current stream, and only where something shall run beside them on NCCL's own. Buffers are
plain, registered with NCCL, or symmetric: windows of NCCL for its own collectives, and torch's symmetric memory for
one-sided ones.
"""

from __future__ import annotations

import functools
import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    AllToAllOptions,
    BroadcastOptions,
    ReduceScatterOptions,
)

from commbench.data import Bytes
from commbench.layout import Layout, LinkClass
from commbench.links import LinkRate
from commbench.rank_info import RankInfo
from commbench.transports.base import Array, Comm, Done, Message, PutPlan, Puts, Ready, RowPutPlan, Timer, Work, Works
from commbench.transports.cuda.device import Cuda, index_of
from commbench.transports.cuda.host_copies import Streams as HostStreams
from commbench.transports.cuda.one_sided import GpuPuts, StreamBarrier, copy_rate_gbps
from commbench.transports.cuda.registered_memory import Windows
from commbench.transports.cuda.row_puts import GpuRowPuts
from commbench.transports.cuda.symmetric_memory import PeerMemory
from commbench.transports.cuda.timer import EventTimer, HostTimer
from commbench.transports.gloo import LIBRARY_TIMEOUT, OPS, TorchComm, gather, lists, meet, typed
from commbench.transports.plain_groups import plain_groups

_DONE = Done()
_LARGE = 256 << 20  # bytes of a case after which the garbage is collected: closures may hold buffers
# Sockets over the loopback, whatever other networks there are.
_VIRTUAL_NETWORK = {
    "NCCL_NET": "Socket",
    "NCCL_IB_DISABLE": "1",
    "NCCL_MNNVL_ENABLE": "0",
    "NCCL_SOCKET_IFNAME": "=lo",
    "NCCL_SOCKET_FAMILY": "AF_INET",
}
# NCCL looks at every eleventh call of a communicator which graphs are gone (GROUP_MAX_RECLAIM_STEPS).
_RECLAIMED_AFTER = 12
_DESTROYED_AFTER_S = 0.005  # CUDA may tell NCCL from a thread of its own
_PRODUCT = 4096  # columns and rows of the weights of the product beside a collective


class NcclComm(TorchComm):
    def __init__(self, group: dist.ProcessGroup, transport: Nccl, members: Sequence[int]) -> None:
        """`members`: the world's ranks of this group, in its order."""
        super().__init__(group, transport.cuda)
        self._calls: Any = group  # whose methods torch types in part
        self._transport = transport
        self._members = list(members)
        transport.comms.append(self)

    def all_to_all(self, out: Array, inp: Array, *, step: str) -> Work:
        return self._all_to_all(out, inp, [], [])

    def all_to_allv(self, out: Array, inp: Array, received: Sequence[int], sent: Sequence[int], *, step: str) -> Work:
        return self._all_to_all(out, inp, list(received), list(sent))

    def _all_to_all(self, out: Array, inp: Array, received: list[int], sent: list[int]) -> Work:
        options = AllToAllOptions()
        options.asyncOp = self._transport.beside
        return self._calls.alltoall_base(out, inp, received, sent, options) or _DONE

    def all_gather(self, out: Array, inp: Array, *, in_place: bool, step: str) -> Work:
        options = AllgatherOptions()
        options.asyncOp = self._transport.beside
        return self._calls._allgather_base(out, inp, options) or _DONE

    def reduce_scatter(self, out: Array, inp: Array, dtype: str, op: str, *, in_place: bool, step: str) -> Work:
        options = ReduceScatterOptions()
        options.reduceOp = dist.ReduceOp(OPS[op])
        options.asyncOp = self._transport.beside
        return self._calls._reduce_scatter_base(typed(out, dtype), typed(inp, dtype), options) or _DONE

    def all_reduce(self, out: Array, inp: Array, dtype: str, op: str, *, in_place: bool, step: str) -> Work:
        if not in_place:
            out[...] = inp
        options = AllreduceOptions()
        options.reduceOp = dist.ReduceOp(OPS[op])
        options.asyncOp = self._transport.beside
        return self._calls.allreduce([typed(out, dtype)], options) or _DONE

    def broadcast(self, buffer: Array, root: int, *, step: str) -> Work:
        options = BroadcastOptions()
        options.rootRank, options.rootTensor = root, 0
        options.asyncOp = self._transport.beside
        return self._calls.broadcast([typed(buffer, "uint8")], options) or _DONE

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], *, step: str) -> Work:
        return self._post(*lists(sends, recvs))

    def _post(self, sends: Sequence[tuple[list[Any], int]], recvs: Sequence[tuple[list[Any], int]]) -> Work:
        """One group of calls for NCCL, on a stream of its own: nothing in it waits for another."""
        if not sends and not recvs:
            return _DONE
        group = self._calls
        group._start_coalescing(self._device)
        for tensors, peer in recvs:
            group.recv(tensors, peer, 0)
        for tensors, peer in sends:
            group.send(tensors, peer, 0)
        work = group._end_coalescing(self._device)
        return Works([work] if work is not None else [])

    def ready(self, name: str, *arguments: Any, **named: Any) -> Ready:
        if name == "exchange":
            return functools.partial(self._post, *lists(*arguments))
        if name == "all_to_all":  # no Python of ours between the timing loop and the library
            options = AllToAllOptions()
            options.asyncOp = self._transport.beside
            return functools.partial(self._calls.alltoall_base, *arguments, [], [], options)
        return super().ready(name, *arguments, **named)

    def reclaim(self, something: torch.Tensor) -> None:
        """Let NCCL give up what graphs of its calls held, once they are gone."""
        options = AllreduceOptions()
        options.asyncOp = False
        for _ in range(_RECLAIMED_AFTER):
            self._calls.allreduce([something], options)

    def puts(self, plan: PutPlan) -> Puts:
        transport = self._transport
        return GpuPuts(
            transport.memory, transport.cuda.index, self._members, self.rank, plan,
            side_stream=transport.side_stream if transport.beside else None, copy_stream=transport.copy_stream,
        )  # fmt: skip

    def row_puts(self, plan: RowPutPlan) -> Puts:
        transport = self._transport
        side_stream = transport.side_stream if transport.beside else None
        return GpuRowPuts(transport.memory, transport.cuda.index, self._members, self.rank, plan, side_stream)

    def empty(self, nbytes: int, buffers: str = "plain", *, one_sided: bool = False) -> Array:
        if buffers == "plain":
            return torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        if buffers == "symmetric" and one_sided:
            return self._transport.memory.allocate(nbytes)
        return self._transport.windows.allocate(nbytes, symmetric=buffers == "symmetric")

    def host_buffer(self, nbytes: int, *, pinned: bool) -> Array:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)

    def copy(self, out: Array, inp: Array) -> Work:
        return self._transport.host_copies.copy(out, inp, beside=self._transport.beside)

    def round_trip(self, out: Array, inp: Array, host: Array, parts: Sequence[slice]) -> Work:
        return self._transport.host_copies.round_trip(out, inp, host, parts, beside=self._transport.beside)

    def write(self, array: Array, data: Bytes) -> None:
        array[: data.size] = torch.from_numpy(data).to(self._device)

    def _of(self, group: dist.ProcessGroup, ranks: Sequence[int]) -> TorchComm:
        # torch sets NCCL up at a group's first call, which may be in a capture, where it cannot be done.
        dist.all_reduce(torch.zeros(1, device=self._device), group=group)
        return NcclComm(group, self._transport, [self._members[rank] for rank in ranks])


class Nccl:
    name = "nccl"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.rank = self.size = 0
        self.beside = False  # whether collectives run on a stream of NCCL's, beside what follows
        self._layout = Layout(*options["layout"])
        self._virtual_hosts: bool = options.get("virtual_hosts", False)
        self._last_bytes = 0
        self._timers: dict[str, Timer] = {}
        self._stream_barrier: StreamBarrier | None = None
        self.comms: list[NcclComm] = []  # in the order in which they were made, which is alike on all their ranks
        self._graphs: list[torch.cuda.CUDAGraph] = []  # of this case

    @staticmethod
    def before_fork(size: int) -> Any:
        return None  # CUDA must not be touched before the fork; importing torch does not

    def connect(self, info: RankInfo, shared: Any = None) -> None:
        self.rank, self.size = info.rank, info.size
        if self._virtual_hosts:
            self._pretend(info)
        place = replace(info, local_rank=self._layout.local(info.rank)) if self._virtual_hosts else info
        self.cuda = torch.device("cuda", index_of(place))
        torch.cuda.set_device(self.cuda)
        # Not the default stream: NCCL's copy engines refuse it, and a graph cannot be captured on it.
        torch.cuda.set_stream(torch.cuda.Stream())
        # Made once: torch has 32 and hands them out in turn.
        self.side_stream, self.copy_stream = torch.cuda.Stream(), torch.cuda.Stream()
        self.host_copies = HostStreams(self.copy_stream, self.side_stream)
        self.device = Cuda(self.cuda.index)
        store = shared if shared is not None else meet(info)
        with plain_groups():
            dist.init_process_group(
                "nccl", store=store, rank=info.rank, world_size=info.size, timeout=LIBRARY_TIMEOUT, device_id=self.cuda
            )
        world = dist.group.WORLD
        assert world is not None
        # Votes and barriers have a group of their own, on the host.
        with plain_groups():
            self._votes = dist.new_group(backend="gloo", timeout=LIBRARY_TIMEOUT)
        self._one_host = info.local_size == info.size
        self._open(world, one_host=self._one_host and not self._virtual_hosts)
        if self._one_sided and self.size > 1:  # one rank has nobody to wait for
            self._stream_barrier = StreamBarrier(self.memory, self.cuda.index, self.rank, self.size)
        self._all_reduce_one()  # connects the ranks
        torch.cuda.synchronize()
        self._links: dict[LinkClass, LinkRate] = {}
        if self._stream_barrier is not None and info.size > 1:
            timer = self.timer("isolated")
            rate = copy_rate_gbps(self.memory, self._stream_barrier, timer, self.cuda.index, self.rank, info.size)
            # The same on all ranks: what the slowest does.
            self._links = (
                {"intra": LinkRate(gbps=float(self.all_gather([rate]).min()), kind="measured")} if rate else {}
            )

    def _open(self, group: dist.ProcessGroup, *, one_host: bool) -> None:
        """Collective: memory that NCCL knows, memory that peers reach, and the communicator of `group`."""
        self.memory = PeerMemory(group.group_name, self.cuda, self._agree)
        self.windows = Windows(group, self.cuda)
        without = self.windows.missing()
        self._no_windows = "" if self._agree(not without) else without or "NCCL cannot register memory on another rank"
        self.world: Comm = NcclComm(group, self, range(self.size))
        self._one_sided = self._agree(one_host and _reaches_peers(self.cuda.index, self.size))
        self._one = torch.zeros(1, device=self.cuda)

    def _pretend(self, info: RankInfo) -> None:
        """Make each node of the layout a host of its own for NCCL, which goes through its network transport then.

        Ranks of several nodes may share a GPU. What the user has set of this stays.
        """
        os.environ["NCCL_HOSTID"] = f"commbench-{self._layout.node(info.rank)}"
        for name, value in _VIRTUAL_NETWORK.items():
            os.environ.setdefault(name, value)

    def close(self) -> None:
        torch.cuda.synchronize()
        self._drop_graphs()
        self.barrier()
        self.windows.release()
        self.memory.forget()
        if dist.is_initialized():
            dist.destroy_process_group()

    def case_begins(self, labels: dict[str, Any]) -> None:
        torch.cuda.synchronize()
        if self._last_bytes >= _LARGE:
            gc.collect()
        self._drop_graphs()
        self.windows.release()
        self.memory.forget([self._stream_barrier.scratch] if self._stream_barrier else [])
        self._last_bytes = int(labels["size_bytes"])

    def _drop_graphs(self) -> None:
        """Before the buffers of a case that captured are freed.

        NCCL registers what the calls in a graph work on, by its address, until it notices that the graph is gone.
        Memory got at the same address meanwhile would be taken for what was there before, and peers would write into
        what is freed: wrong data and no error, seen with NCCL 2.28.9 on buffers registered by the next case.
        """
        if not self._graphs:
            return
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
        self._reclaim()

    def _reclaim(self) -> None:
        """Collective. The graphs are gone already."""
        time.sleep(_DESTROYED_AFTER_S)
        for comm in self.comms:
            comm.reclaim(self._one)
        torch.cuda.synchronize()

    def overlap(self, wanted: bool) -> None:
        self.beside = wanted

    def product(self, rows: int) -> Callable[[], Any]:
        shapes = ((rows, _PRODUCT), (_PRODUCT, _PRODUCT), (rows, _PRODUCT))
        tokens, weights, result = (torch.randn(shape, device=self.cuda).bfloat16() for shape in shapes)
        return lambda: torch.mm(tokens, weights, out=result)

    def timer(self, mode: str) -> Timer:
        kind = "host" if mode == "pipelined" else "events"
        if kind not in self._timers:
            if kind == "host":
                self._timers[kind] = HostTimer(self._latest, one_host=self._one_host)
            else:
                self._timers[kind] = EventTimer(self._stream_barrier or self._all_reduce_one, self.barrier)
        return self._timers[kind]

    def capture(self, calls: Sequence[Ready]) -> Ready:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            for call in calls:
                if (work := call()) is not None:
                    work.wait()
        self._graphs.append(graph)
        self.barrier()  # nobody replays before all have captured
        graph.replay()  # the first time costs more
        torch.cuda.synchronize()
        return graph.replay

    def unsupported(self, buffers: str, *, one_sided: bool) -> str:
        if one_sided:
            return "" if self._one_sided else "these GPUs do not reach each other's memory; see nvidia-smi topo -p2p r"
        return "" if buffers == "plain" else self._no_windows

    def publish(self) -> None:
        self.windows.publish()
        self.memory.publish()

    def barrier(self) -> None:
        torch.cuda.synchronize()
        dist.barrier(group=self._votes)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def all_gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        return gather(self._votes, self.size, values)

    def is_out_of_memory(self, error: BaseException) -> bool:
        text = str(error)
        return (
            isinstance(error, MemoryError | torch.OutOfMemoryError)
            or "out of memory" in text
            or "ncclMemAlloc failed" in text
        )

    @staticmethod
    def versions() -> dict[str, str]:
        loaded = torch.cuda.nccl.version()
        return {
            "torch": torch.__version__,
            "nccl": ".".join(map(str, loaded)) if isinstance(loaded, tuple) else str(loaded),
            "cuda": str(torch.version.cuda),
        }

    def links(self) -> dict[LinkClass, LinkRate]:
        return self._links

    def _agree(self, mine: bool) -> bool:
        return bool(self.all_gather([float(mine)]).all())

    def _latest(self, value: float) -> float:
        return float(self.all_gather([value]).max())

    def _all_reduce_one(self) -> None:
        options = AllreduceOptions()
        options.asyncOp = False
        world = dist.group.WORLD
        assert world is not None
        world.allreduce([self._one], options)


def _reaches_peers(index: int, ranks: int) -> bool:
    """Whether this GPU can read and write the memory of the others, `ranks` with it, as far as this process sees."""
    others = [other for other in range(torch.cuda.device_count()) if other != index]
    return len(others) + 1 >= ranks and all(torch.cuda.can_device_access_peer(index, other) for other in others[:ranks])
