"""torch.distributed as a transport: gloo, and what nccl shares with it."""

from __future__ import annotations

import datetime
import functools
import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, TCPStore
from torch.distributed.rendezvous import rendezvous

from commbench.data import Bytes
from commbench.errors import EnvironmentProblem
from commbench.files import write_atomically
from commbench.layout import LinkClass
from commbench.links import LinkRate
from commbench.rank_info import RankInfo
from commbench.transports.base import Array, Comm, Message, Ready, TwoSided, Work, Works
from commbench.transports.host_clock import HostClock
from commbench.transports.plain_groups import plain_groups
from commbench.transports.rows import Rows
from commbench.transports.torch_rows import TorchRows

# Hangs are cut by commbench itself, per case and earlier; this only ends ranks that nobody watches.
LIBRARY_TIMEOUT = datetime.timedelta(minutes=60)
_INTERFACE = "GLOO_SOCKET_IFNAME"  # read whenever a group is made
_RENDEZVOUS_TIMEOUT = datetime.timedelta(minutes=5)  # ranks on a busy cluster start minutes apart

KINDS = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int32": torch.int32,
    "uint8": torch.uint8,
    # What sweeps do not measure, and programs have.
    "fp64": torch.float64,
    "int64": torch.int64,
    "int8": torch.int8,
}
OPS = {
    "sum": dist.ReduceOp.SUM,
    "prod": dist.ReduceOp.PRODUCT,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
}


def meet_by_environment() -> Any:
    """The key-value store that MASTER_ADDR and MASTER_PORT name; once per process, as rank 0 may have to host it."""
    return next(rendezvous("env://"))[0]


def meet_at(path: Path, info: RankInfo) -> Any:
    """A store at rank 0, on a port that is free there; the others read its address in `path`."""
    if info.rank == 0:
        # Names are not for machines without a network.
        host = "127.0.0.1" if info.local_size == info.size else socket.gethostname()
        server = _listening(host)
        port = server.getsockname()[1]
        store = TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=_RENDEZVOUS_TIMEOUT,
            master_listen_fd=server.detach(),  # left alone, torch listens at every address of the machine
        )
        write_atomically(path, json.dumps([host, port]), 0o600)
        return store
    deadline = time.monotonic() + _RENDEZVOUS_TIMEOUT.total_seconds()
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"rank 0 has not published its address in {path}")
        time.sleep(0.01)
    host, port = json.loads(path.read_text())
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_RENDEZVOUS_TIMEOUT)


def _listening(host: str) -> socket.socket:
    """Return a socket that listens at a free port of `host`, and nowhere else.

    Where this machine knows its own name as a loopback address only, the others know another one, and any will do.
    """
    kind, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    at = str(address[0])
    if ipaddress.ip_address(at.partition("%")[0]).is_loopback and host != "127.0.0.1":
        return socket.create_server(("", 0))
    return socket.create_server((at, 0), family=kind)


def meet(info: RankInfo) -> Any:
    """The store at which the ranks of a launch meet."""
    kind, _, path = info.rendezvous.partition(":")
    if kind == "file":
        return FileStore(path, info.size)
    return meet_at(Path(path), info) if kind == "address" else meet_by_environment()


def gather(
    group: dist.ProcessGroup, size: int, values: Sequence[float], device: torch.device | None = None
) -> npt.NDArray[np.float64]:
    """`Transport.all_gather` over a group, by way of the memory of `device`; None: of the host."""
    mine = torch.from_numpy(np.asarray(values, dtype=np.float64)).to(device)
    votes = torch.empty(size, mine.numel(), dtype=torch.float64, device=device)
    dist.all_gather(list(votes), mine, group=group)
    array: npt.NDArray[np.float64] = votes.cpu().numpy()
    return array


class TorchComm(TwoSided):
    """A process group; buffers are flat uint8 tensors on `device`."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group = group
        self._device = device
        self._subgroups: dict[tuple[int, ...], TorchComm] = {}  # a few per layout; they live as long as the process
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.rows: Rows = TorchRows(device)

    def all_to_all(self, out: Array, inp: Array, *, step: str) -> Work:
        work: Work = dist.all_to_all_single(out, inp, group=self._group, async_op=True)
        return work

    def all_to_allv(self, out: Array, inp: Array, received: Sequence[int], sent: Sequence[int], *, step: str) -> Work:
        work: Work = dist.all_to_all_single(out, inp, received, sent, group=self._group, async_op=True)
        return work

    def all_gather(self, out: Array, inp: Array, *, in_place: bool, step: str) -> Work:
        work: Work = dist.all_gather_into_tensor(out, inp, group=self._group, async_op=True)
        return work

    def reduce_scatter(self, out: Array, inp: Array, dtype: str, op: str, *, in_place: bool, step: str) -> Work:
        work: Work = dist.reduce_scatter_tensor(
            typed(out, dtype), typed(inp, dtype), OPS[op], group=self._group, async_op=True
        )
        return work

    def all_reduce(self, out: Array, inp: Array, dtype: str, op: str, *, in_place: bool, step: str) -> Work:
        if not in_place:
            out[...] = inp  # torch has this collective in place only
        work: Work = dist.all_reduce(typed(out, dtype), OPS[op], group=self._group, async_op=True)
        return work

    def broadcast(self, buffer: Array, root: int, *, step: str) -> Work:
        work: Work = dist.broadcast(typed(buffer, "uint8"), group=self._group, group_src=root, async_op=True)
        return work

    def add(self, out: Array, inp: Array, dtype: str) -> None:
        total = typed(out, dtype)
        torch.add(total, typed(inp, dtype), out=total)

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], *, step: str) -> Work:
        ops = [dist.P2POp(dist.irecv, m.buffer, group=self._group, group_peer=m.peer) for m in recvs]  # type: ignore[arg-type]
        ops += [dist.P2POp(dist.isend, m.buffer, group=self._group, group_peer=m.peer) for m in sends]  # type: ignore[arg-type]
        return Works(dist.batch_isend_irecv(ops) if ops else [])

    def ready(self, name: str, *arguments: Any, **named: Any) -> Ready:
        return functools.partial(getattr(self, name), *arguments, **named)

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Comm:
        mine = next((list(ranks) for ranks in partition if self.rank in ranks), None)
        if mine is None:
            raise ValueError(f"rank {self.rank} is in no group of {partition}")
        key = tuple(mine)
        if key not in self._subgroups:
            self._subgroups[key] = self._of(self._new_group(mine), mine)
        return self._subgroups[key]

    def _new_group(self, mine: Sequence[int]) -> dist.ProcessGroup:
        """Return a group of `mine`, ranks of this one. Collective for these, and only they call it."""
        ours = dist.get_process_group_ranks(self._group)
        _check_names(self)
        # Only the members of a group create it, so that groups of groups work; torch names it after its ranks.
        # The backend is the parent's: a program's default group may have another.
        with plain_groups():
            group: dist.ProcessGroup = dist.new_group(
                [ours[rank] for rank in mine], timeout=LIBRARY_TIMEOUT, backend=dist.get_backend(self._group),
                use_local_synchronization=True,
            )  # fmt: skip
        return group

    def _of(self, group: dist.ProcessGroup, ranks: Sequence[int]) -> TorchComm:
        """The communicator of `group`: `ranks` of this one."""
        return type(self)(group, self._device)

    def empty(self, nbytes: int, buffers: str = "plain", *, one_sided: bool = False) -> Array:
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def write(self, array: Array, data: Bytes) -> None:
        array[: data.size] = torch.from_numpy(data)

    def read(self, array: Array) -> Bytes:
        assert isinstance(array, torch.Tensor)
        host: Bytes = array.cpu().numpy()
        return host


def _check_names(comm: TorchComm) -> None:
    """Collective. torch puts the number of a rank's groups into the name of the next: with different ones it hangs."""
    counts = gather(comm._group, comm.size, [len(dist.distributed_c10d._world.pg_names)], comm._device)[:, 0]
    if len({*counts.tolist()}) > 1:
        raise EnvironmentProblem(
            f"the ranks are in {', '.join(str(int(count)) for count in counts)} process groups each, and where that "
            "differs torch does not bring them together in a new one",
            hint="let each rank be in as many groups as the others, or prepare() before they differ",
        )


class GlooComm(TorchComm):
    """gloo starts messages one by one anyway, so they can do without torch's Python around each of them.

    With one tag for all, gloo matches messages between two ranks in the order in which they are posted. NCCL needs the
    grouped calls that `TorchComm.exchange` makes.
    """

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], *, step: str) -> Work:
        return _post(self._group, *lists(sends, recvs))

    def ready(self, name: str, *arguments: Any, **named: Any) -> Ready:
        if name == "exchange":
            return functools.partial(_post, self._group, *lists(*arguments))
        return super().ready(name, *arguments, **named)


_Posts = list[tuple[list[Any], int]]


def lists(sends: Sequence[Message], recvs: Sequence[Message]) -> tuple[_Posts, _Posts]:
    """Return messages as a process group takes them: a list of one tensor, and the peer."""
    return [([m.buffer], m.peer) for m in sends], [([m.buffer], m.peer) for m in recvs]


def _post(group: dist.ProcessGroup, sends: _Posts, recvs: _Posts) -> Works:
    works = [group.recv(tensors, peer, 0) for tensors, peer in recvs]
    return Works([*works, *(group.send(tensors, peer, 0) for tensors, peer in sends)])


def typed(array: Array, dtype: str) -> torch.Tensor:
    """The same bytes as elements of `dtype`."""
    assert isinstance(array, torch.Tensor)
    return array.view(KINDS[dtype])


class Gloo(HostClock):
    """CPU tensors over gloo. Blocking calls, so nothing to synchronise; the clock is the host's."""

    name = "gloo"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.rank = self.size = 0
        # Where a fabric is emulated: the interfaces of data, and of votes.
        self._interfaces: tuple[str, str] | None = options.get("interfaces")

    @staticmethod
    def before_fork(size: int) -> Any:
        return None  # importing torch was the point: the forked ranks have it already

    def connect(self, info: RankInfo, shared: Any = None) -> None:
        self.rank, self.size = info.rank, info.size
        store = shared if shared is not None else meet(info)
        if self._interfaces is not None:
            os.environ[_INTERFACE] = self._interfaces[0]
        with plain_groups():
            dist.init_process_group("gloo", store=store, rank=info.rank, world_size=info.size, timeout=LIBRARY_TIMEOUT)
        world = dist.group.WORLD
        assert world is not None
        self.world: Comm = GlooComm(world, torch.device("cpu"))
        # Votes and barriers have a group of their own, so that they never meet timed messages.
        if self._interfaces is not None:
            os.environ[_INTERFACE] = self._interfaces[1]
        with plain_groups():
            self._votes = dist.new_group(timeout=LIBRARY_TIMEOUT)
        if self._interfaces is not None:
            os.environ[_INTERFACE] = self._interfaces[0]

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def case_begins(self, labels: dict[str, Any]) -> None:
        return None

    def overlap(self, wanted: bool) -> None:
        return None  # gloo's calls run on threads of its own anyway

    def product(self, rows: int) -> Callable[[], Any]:
        tokens, weights, result = (torch.ones(shape) for shape in ((rows, 256), (256, 256), (rows, 256)))
        return lambda: torch.mm(tokens, weights, out=result)

    def barrier(self) -> None:
        dist.barrier(group=self._votes)

    def all_gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        return gather(self._votes, self.size, values)

    def is_out_of_memory(self, error: BaseException) -> bool:
        # The CPU allocator raises a plain RuntimeError.
        return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)

    @staticmethod
    def versions() -> dict[str, str]:
        return {"torch": torch.__version__, "gloo": f"in torch {torch.__version__}"}

    def links(self) -> dict[LinkClass, LinkRate]:
        return {}
