"""The protocols between algorithms, the timing loop and the libraries that move bytes.

An `Array` is a flat buffer of bytes: a torch tensor of uint8 (gloo, nccl) or a numpy array of uint8 (mpi, scripted).
Algorithms use only what both spell the same way, so one algorithm serves every transport.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from commbench.data import Bytes
from commbench.layout import LinkClass
from commbench.links import LinkRate
from commbench.rank_info import RankInfo
from commbench.transports.device import Device
from commbench.transports.rows import Rows


class Array(Protocol):
    """The part of numpy's and torch's array interface that an algorithm may use. Views, never copies."""

    def __len__(self) -> int: ...

    def reshape(self, *shape: int) -> Self: ...

    def swapaxes(self, axis0: int, axis1: int) -> Self: ...

    def __getitem__(self, key: Any) -> Self: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


class Work(Protocol):
    """A started exchange; `wait` returns when this rank's buffers may be used again (on a GPU: by the stream)."""

    def wait(self) -> Any: ...


# A call with all its arguments. None instead of a Work: it was done when it returned.
Ready = Callable[[], Work | None]


class Done:
    """A Work that has nothing left to wait for."""

    def wait(self) -> None:
        return None


class Works:
    """Several Works as one."""

    def __init__(self, works: Sequence[Work]) -> None:
        self._works = works

    def wait(self) -> None:
        for work in self._works:
            work.wait()


class Message(NamedTuple):
    """One side of a point-to-point message: the peer's rank in this communicator, and the bytes."""

    peer: int
    buffer: Array


class Route(NamedTuple):
    """What one rank exchanges with one peer by one-sided writes: parts of buffers, in bytes."""

    source: slice  # of the own input: what goes to the peer
    target: slice  # of the peer's output: where that belongs
    arrival: slice  # of the own output: where what comes from the peer belongs


@dataclass(frozen=True, slots=True, kw_only=True)
class PutPlan:
    """A one-sided exchange: every rank writes into the outputs of the others, in one step of an algorithm."""

    engine: str  # "store" or "packets" (threads of the GPU), "copies" (its copy engines)
    routes: Sequence[Route]  # one for each rank of the communicator, the own one included
    largest: int  # bytes of the largest message between any two ranks
    ctas: int  # thread blocks, the same on all ranks
    threads: int  # in each
    params: Mapping[str, int]  # of the algorithm
    scratch_bytes: int  # for flags and slots
    step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPutPlan:
    """A dispatch or a combine by one-sided writes: ranks of one node, experts in equal numbers on each.

    All ranks know `experts` and `weights`, [ranks, tokens, top_k], of a combine; of a dispatch the ranks look into its
    input where `told`, and the output says of each row whose it is.
    """

    combines: bool
    slots: bool  # whether rows go into slots, where nobody has to be asked before
    told: bool
    waits: bool  # whether the host waits until it knows how many rows have come
    row_bytes: int
    per_rank: int  # experts of a rank
    by_expert: bool  # whether there is a row for each choice, by expert; or for each token
    dtype: str
    experts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    ctas: int
    scratch_bytes: int
    steps: Sequence[str]  # the names of what moves: counts, where they are told before; and rows
    sends: Sequence[tuple[str, int, int]]  # what this rank sends: step, rank, bytes


class Puts(Protocol):
    """A one-sided exchange, ready for any pair of buffers."""

    def ready(self, out: Array, inp: Array) -> Ready:
        """A call on these buffers. `out` was made by `Comm.empty`, at the same time by all ranks."""
        ...

    def close(self) -> None:
        """Free what it needed. No call may be under way."""
        ...


class HostMemory:
    """Copies between the host and a device that is the host itself. Transports of GPUs have their own."""

    def host_buffer(self, nbytes: int, *, pinned: bool) -> Array:
        """Return an uninitialised buffer of bytes in the host's memory."""
        made: Array = self.empty(nbytes)  # type: ignore[attr-defined]
        return made

    def copy(self, out: Array, inp: Array) -> Work:
        """Copy to or from the host; where calls overlap it goes on beside what follows."""
        out[...] = inp
        return Done()

    def round_trip(self, out: Array, inp: Array, host: Array, parts: Sequence[slice]) -> Work:
        """Copy `inp` to `host` and from there to `out`, part by part: one leaves while the one before comes."""
        for part in parts:
            host[part] = inp[part]
            out[part] = host[part]
        return Done()


class TwoSided(HostMemory):
    """A communicator that cannot write into the memory of other ranks; the plan knows."""

    def puts(self, plan: PutPlan) -> Puts:
        raise NotImplementedError("no rank reaches the memory of another over this transport")

    def row_puts(self, plan: RowPutPlan) -> Puts:
        raise NotImplementedError("no rank reaches the memory of another over this transport")


class Comm(Protocol):
    """Ranks of one group and the ways to move bytes between them. `step` names the algorithm's step that this is."""

    rank: int
    size: int
    rows: Rows  # work on rows of its buffers

    def all_to_all(self, out: Array, inp: Array, *, step: str) -> Work:
        """Equal blocks: block i of `inp` goes to rank i, block i of `out` comes from rank i, the own one included."""
        ...

    def all_to_allv(self, out: Array, inp: Array, received: Sequence[int], sent: Sequence[int], *, step: str) -> Work:
        """Blocks of any size, in rank order: `sent[i]` bytes go to rank i, `received[i]` come from it."""
        ...

    def all_gather(self, out: Array, inp: Array, *, in_place: bool, step: str) -> Work:
        """`inp` of every rank, in rank order, in `out`; in place, `inp` is the own part of `out`."""
        ...

    def reduce_scatter(self, out: Array, inp: Array, dtype: str, op: str, *, in_place: bool, step: str) -> Work:
        """The own part of the combined inputs; in place, `out` is the own part of `inp`, whose rest is lost."""
        ...

    def all_reduce(self, out: Array, inp: Array, dtype: str, op: str, *, in_place: bool, step: str) -> Work:
        """The combined inputs; in place, `out` is `inp`."""
        ...

    def broadcast(self, buffer: Array, root: int, *, step: str) -> Work:
        """The root's `buffer` in everybody's."""
        ...

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], *, step: str) -> Work:
        """A batch of point-to-point messages, all in flight at once. None is empty; the batch may be.

        Messages from one rank to another arrive in the order in which they are sent, within a batch and between.
        """
        ...

    def host_buffer(self, nbytes: int, *, pinned: bool) -> Array:
        """An uninitialised buffer of bytes in the host's memory, which a GPU reaches by itself where it is pinned."""
        ...

    def copy(self, out: Array, inp: Array) -> Work:
        """Copy between a buffer of the host's and one of this rank's device."""
        ...

    def round_trip(self, out: Array, inp: Array, host: Array, parts: Sequence[slice]) -> Work:
        """Copy `inp` to `host` and from there to `out`, part by part: one leaves while the one before comes."""
        ...

    def add(self, out: Array, inp: Array, dtype: str) -> None:
        """Add to the elements of `out` those of `inp`, on this rank alone. Rows may lie apart, elements of one not."""
        ...

    def ready(self, name: str, *arguments: Any, **named: Any) -> Ready:
        """A call of the method `name` with these arguments, made as ready as it can be."""
        ...

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Comm:
        """The group of `partition` that this rank is in.

        `partition` splits the ranks *of this communicator*, 0 .. size - 1; all of them call it with the same one.
        """
        ...

    def puts(self, plan: PutPlan) -> Puts:
        """Collective, untimed: an exchange by one-sided writes, with scratch of its own.

        A rank is written to only after it has entered the call.
        """
        ...

    def row_puts(self, plan: RowPutPlan) -> Puts:
        """Collective, untimed: a dispatch or combine by one-sided writes, with scratch of its own."""
        ...

    def empty(self, nbytes: int, buffers: str = "plain", *, one_sided: bool = False) -> Array:
        """An uninitialised buffer of bytes, of one of the kinds that the transport's entry lists.

        "registered" and "symmetric" ones are ready after `Transport.publish`. `one_sided`: others write into it.
        Symmetric ones have the same number of bytes on all ranks.
        """
        ...

    def write(self, array: Array, data: Bytes) -> None:
        """Bytes from the host into the beginning of `array`."""
        ...

    def read(self, array: Array) -> Bytes:
        """`array` on the host, once it is complete there."""
        ...


class Timer(Protocol):
    """The clock of one mode, and the barrier before each sample."""

    # Between the first and the last rank leaving the barrier, at most, where `moment_us` cannot tell.
    skew_us: float | None
    # Whether a call goes on when its work was waited for, so that a mark must come after `synchronize`.
    drains: bool

    def barrier(self) -> None:
        """Untimed, before each sample: what follows begins at the same time on all ranks."""
        ...

    def synchronize(self) -> None:
        """Wait until all that this rank has enqueued is done (nothing to do where calls block)."""
        ...

    def mark(self) -> Any:
        """A point in time on the clock that samples are taken with (an event on a GPU)."""
        ...

    def aside(self) -> Any:
        """A mark around what is done between samples, which no sample has to pay for."""
        ...

    def between_us(self, start: Any, end: Any) -> float:
        """Microseconds between two marks; may be called after `synchronize` only."""
        ...

    def moment_us(self, mark: Any) -> float:
        """When a mark was, microseconds on a clock that all ranks of one host share; NaN where there is none."""
        ...

    def host_us(self) -> float:
        """The host's clock, microseconds since an arbitrary point."""
        ...

    def preemptions(self) -> int:
        """How often this process has been switched out against its will; 0 where the clock is another's than its."""
        ...


class Transport(Protocol):
    """One rank's end of a library that moves bytes, with the clock and the votes that measuring needs."""

    name: str
    rank: int
    size: int
    world: Comm
    device: Device

    def __init__(self, options: Mapping[str, Any]) -> None:
        """`options` is what `Job.transport_options` gives."""
        ...

    @staticmethod
    def before_fork(size: int) -> Any:
        """Called once in the process that then forks `size` ranks: what they inherit and get as `shared`."""
        ...

    def connect(self, info: RankInfo, shared: Any = None) -> None: ...

    def close(self) -> None: ...

    def case_begins(self, labels: dict[str, Any]) -> None:
        """Told before each case: what runs next, for logs and scripts."""
        ...

    def overlap(self, wanted: bool) -> None:
        """Whether calls from now on must return before they are done, so that the caller can compute meanwhile."""
        ...

    def product(self, rows: int) -> Callable[[], Any]:
        """A product of a `rows` x 256 with a 256 x 256 matrix in fp32, on this rank's device, ready to be called."""
        ...

    def timer(self, mode: str) -> Timer:
        """How samples of a mode are timed. Collective."""
        ...

    def capture(self, calls: Sequence[Ready]) -> Ready:
        """All `calls`, one after the other, as one call: a CUDA graph. They have been made before."""
        ...

    def unsupported(self, buffers: str, *, one_sided: bool) -> str:
        """Return in words why this machine has no such buffers, the same on all ranks; "" if it has."""
        ...

    def publish(self) -> None:
        """Collective, untimed: registered and symmetric buffers made since the last time become usable."""
        ...

    def barrier(self) -> None:
        """All ranks have done all that they have enqueued."""
        ...

    def synchronize(self) -> None:
        """Wait until all that this rank has enqueued is done (nothing to do where calls block)."""
        ...

    def all_gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """Every rank's `values` (k each): an array of size x k. The one primitive of votes; never in a timed region."""
        ...

    def is_out_of_memory(self, error: BaseException) -> bool: ...

    @staticmethod
    def versions() -> dict[str, str]:
        """Versions of the libraries that are really loaded."""
        ...

    def links(self) -> dict[LinkClass, LinkRate]:
        """Declared rates; empty where nobody declared one."""
        ...
