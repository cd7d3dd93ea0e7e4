"""MPI through mpi4py: numpy buffers over whatever MPI library mpi4py loads.

Calls are MPI's blocking ones, which are what programs use and what IMB and OSU time; where something is computed
meanwhile (`overlap`), the nonblocking ones.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import mpi4py
import numpy as np
import numpy.typing as npt

from commbench.data import Bytes, add
from commbench.errors import EnvironmentProblem
from commbench.fabric import network
from commbench.layout import LinkClass
from commbench.links import LinkRate
from commbench.rank_info import RankInfo
from commbench.transports import out_of_band
from commbench.transports.base import Array, Comm, Done, Message, Ready, TwoSided, Work
from commbench.transports.host_clock import HostClock
from commbench.transports.rows import HostRows, Rows

mpi4py.rc.thread_level = "funneled"  # only the thread that measures calls MPI
from mpi4py import MPI  # noqa: E402  (initialises MPI, with the setting above)

_DONE = Done()
_KINDS = {"fp32": MPI.FLOAT, "int32": MPI.INT32_T, "uint8": MPI.UINT8_T}
_OPS = {"sum": MPI.SUM, "prod": MPI.PROD, "min": MPI.MIN, "max": MPI.MAX}


_Call = tuple[Callable[..., None], Callable[..., MPI.Request], tuple[Any, ...]]


_Posts = list[tuple[Any, int]]  # of a batch of messages: the buffer, and the peer


def _known(messages: Sequence[Message]) -> _Posts:
    """Wrap messages in mpi4py's own kind of buffer."""
    return [(MPI.memory.frombuffer(m.buffer), m.peer) for m in messages]


class _Request:
    """A nonblocking call; its buffers must live until it is waited for."""

    def __init__(self, request: MPI.Request) -> None:
        self._request = request

    def wait(self) -> None:
        self._request.Wait()


class MpiComm(TwoSided):
    """An MPI communicator; buffers are flat arrays of uint8."""

    rows: Rows = HostRows()

    def __init__(self, comm: MPI.Comm, transport: Mpi) -> None:
        self._comm = comm
        self._transport = transport
        self._subgroups: dict[tuple[int, ...], MpiComm] = {}  # a few per layout; they live as long as the process
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    def ready(self, name: str, *arguments: Any, **named: Any) -> Ready:
        if name == "reduce_scatter" and named["in_place"]:  # something is left to do after MPI's call
            return functools.partial(self.reduce_scatter, *arguments, **named)
        if name == "exchange":
            return functools.partial(self._post, *(_known(messages) for messages in arguments))
        if self._transport.nonblocking:
            return functools.partial(getattr(self, name), *arguments, **named)
        # mpi4py reads its own kind of buffer fastest, and no Python of ours stands between it and the timing loop.
        known = [MPI.memory.frombuffer(item) if isinstance(item, np.ndarray) else item for item in arguments]
        blocking, _, words = getattr(self, f"_{name}")(*known, **named)
        return functools.partial(blocking, *words)

    def _now(self, call: _Call) -> Work:
        blocking, nonblocking, words = call
        if self._transport.nonblocking:
            return _Request(nonblocking(*words))
        blocking(*words)
        return _DONE

    # For each collective: MPI's blocking and nonblocking call, and their arguments.

    def _all_to_all(self, out: Array, inp: Array, *, step: str) -> _Call:
        each = out.nbytes // self.size  # type: ignore[attr-defined]
        return self._comm.Alltoall, self._comm.Ialltoall, ((inp, each, MPI.BYTE), (out, each, MPI.BYTE))

    def _all_to_allv(self, out: Array, inp: Array, received: Sequence[int], sent: Sequence[int], *, step: str) -> _Call:
        # Without displacements mpi4py puts blocks one after the other.
        words = (inp, sent, None, MPI.BYTE), (out, received, None, MPI.BYTE)
        return self._comm.Alltoallv, self._comm.Ialltoallv, words

    def _all_gather(self, out: Array, inp: Array, *, in_place: bool, step: str) -> _Call:
        return self._comm.Allgather, self._comm.Iallgather, (MPI.IN_PLACE if in_place else inp, out)

    def _reduce_scatter(self, out: Array, inp: Array, dtype: str, op: str, *, in_place: bool, step: str) -> _Call:
        kind = _KINDS[dtype]
        words = (MPI.IN_PLACE, (inp, kind)) if in_place else ((inp, kind), (out, kind))
        return self._comm.Reduce_scatter_block, self._comm.Ireduce_scatter_block, (*words, _OPS[op])

    def _all_reduce(self, out: Array, inp: Array, dtype: str, op: str, *, in_place: bool, step: str) -> _Call:
        kind = _KINDS[dtype]
        words = (MPI.IN_PLACE if in_place else (inp, kind)), (out, kind), _OPS[op]
        return self._comm.Allreduce, self._comm.Iallreduce, words

    def _broadcast(self, buffer: Array, root: int, *, step: str) -> _Call:
        return self._comm.Bcast, self._comm.Ibcast, (buffer, root)

    def all_to_all(self, out: Array, inp: Array, *, step: str) -> Work:
        return self._now(self._all_to_all(out, inp, step=step))

    def all_to_allv(self, out: Array, inp: Array, received: Sequence[int], sent: Sequence[int], *, step: str) -> Work:
        return self._now(self._all_to_allv(out, inp, received, sent, step=step))

    def all_gather(self, out: Array, inp: Array, *, in_place: bool, step: str) -> Work:
        return self._now(self._all_gather(out, inp, in_place=in_place, step=step))

    def reduce_scatter(self, out: Array, inp: Array, dtype: str, op: str, *, in_place: bool, step: str) -> Work:
        work = self._now(self._reduce_scatter(out, inp, dtype, op, in_place=in_place, step=step))
        # In place MPI leaves the result at the beginning of the buffer; NCCL's place, and ours, is the own part.
        return _Move(work, out, inp[: out.nbytes]) if in_place else work  # type: ignore[attr-defined]

    def all_reduce(self, out: Array, inp: Array, dtype: str, op: str, *, in_place: bool, step: str) -> Work:
        return self._now(self._all_reduce(out, inp, dtype, op, in_place=in_place, step=step))

    def broadcast(self, buffer: Array, root: int, *, step: str) -> Work:
        return self._now(self._broadcast(buffer, root, step=step))

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], *, step: str) -> Work:
        return self._post([(m.buffer, m.peer) for m in sends], [(m.buffer, m.peer) for m in recvs])

    def _post(self, sends: _Posts, recvs: _Posts) -> Work:
        comm = self._comm
        requests = [comm.Irecv(buffer, peer) for buffer, peer in recvs]
        requests += [comm.Isend(buffer, peer) for buffer, peer in sends]
        return _Requests(requests)

    def add(self, out: Array, inp: Array, dtype: str) -> None:
        add(cast(Bytes, out), cast(Bytes, inp), dtype)

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Comm:
        index = next((i for i, ranks in enumerate(partition) if self.rank in ranks), None)
        if index is None:
            raise ValueError(f"rank {self.rank} is in no group of {partition}")
        mine = tuple(partition[index])
        if mine not in self._subgroups:
            self._subgroups[mine] = MpiComm(self._comm.Split(index, mine.index(self.rank)), self._transport)
        return self._subgroups[mine]

    def empty(self, nbytes: int, buffers: str = "plain", *, one_sided: bool = False) -> Array:
        # Pages of its own, as OSU and IMB have it: malloc's header would put every copy 16 bytes off. And pages as the
        # kernel gives them to C and to torch: numpy asks for huge ones from 4 MiB up, which are up to twice as fast.
        pages = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return cast(Array, np.frombuffer(pages, dtype=np.uint8, count=nbytes))

    def write(self, array: Array, data: Bytes) -> None:
        array[: data.size] = data

    def read(self, array: Array) -> Bytes:
        return cast(Bytes, array)


class _Requests:
    def __init__(self, requests: list[MPI.Request]) -> None:
        self._requests = requests

    def wait(self) -> None:
        MPI.Request.Waitall(self._requests)


class _Move:
    """A call whose result must still be moved."""

    def __init__(self, work: Work, out: Array, source: Array) -> None:
        self._work = work
        self._out = out
        self._source = source

    def wait(self) -> None:
        self._work.wait()
        self._out[...] = self._source


class _Votes:
    """Over MPI itself."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self.barrier = comm.Barrier

    def all_gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        mine = np.asarray(values, dtype=np.float64)
        votes = np.empty((self._comm.size, mine.size), dtype=np.float64)
        self._comm.Allgather(mine, votes)
        return votes


class Mpi(HostClock):
    """Blocking calls, so nothing to synchronise; the clock is the host's."""

    name = "mpi"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.rank = self.size = 0
        self.nonblocking = False
        # MPI's own messages, one and all, take the first of the interfaces of an emulated fabric.
        self._apart = options.get("interfaces") is not None

    @staticmethod
    def before_fork(size: int) -> Any:
        raise RuntimeError("MPI does not survive a fork; mpiexec starts its ranks")

    def connect(self, info: RankInfo, shared: Any = None) -> None:
        world = join_world(info)
        self.rank, self.size = world.Get_rank(), world.Get_size()
        self.world: Comm = MpiComm(world, self)
        # Votes and barriers have a communicator of their own, so that they never meet timed messages.
        self._votes: _Votes | out_of_band.Star = _Votes(world.Dup())
        if self._apart:
            # Rank 0 is on node 0. To look for messages is what makes Open MPI go on with those under way.
            host, probe = network.control_address(0), MPI.COMM_SELF.Iprobe
            self._votes = out_of_band.meet(self.rank, self.size, host, lambda port: world.bcast(port), probe)

    def close(self) -> None:
        MPI.Finalize()

    def case_begins(self, labels: dict[str, Any]) -> None:
        return None

    def overlap(self, wanted: bool) -> None:
        self.nonblocking = wanted

    def product(self, rows: int) -> Callable[[], Any]:
        tokens, weights, result = (np.ones(shape, np.float32) for shape in ((rows, 256), (256, 256), (rows, 256)))
        return lambda: np.matmul(tokens, weights, out=result)

    def barrier(self) -> None:
        self._votes.barrier()

    def all_gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        return self._votes.all_gather(values)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError) or (
            isinstance(error, MPI.Exception) and error.Get_error_class() == MPI.ERR_NO_MEM
        )

    @staticmethod
    def versions() -> dict[str, str]:
        library = MPI.Get_library_version().split("\n")[0].strip("\0 ")
        return {"mpi4py": mpi4py.__version__, "mpi": library}

    def links(self) -> dict[LinkClass, LinkRate]:
        return {}


def join_world(info: RankInfo) -> MPI.Intracomm:
    """All ranks. Raises `EnvironmentProblem` where the launcher and the MPI library do not speak of the same world."""
    world = MPI.COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    if (rank, size) != (info.rank, info.size):
        library = MPI.Get_library_version().split("\n")[0].strip("\0 ")
        raise EnvironmentProblem(
            f"the launcher started rank {info.rank} of {info.size}, but the MPI library that mpi4py loads sees "
            f"rank {rank} of {size} ({library})",
            hint="start them with srun --mpi=pmi2 or --mpi=pmix, or set SLURM_MPI_TYPE, as the library needs it"
            if info.launcher == "slurm"
            else "mpiexec and the library are of different MPIs; use the mpiexec that belongs to the library",
        )
    return world
