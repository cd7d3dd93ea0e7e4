"""The protocols between algorithms, the timing loop and the libraries that move bytes.

An `Array` is a flat buffer of bytes: a torch tensor of uint8 (gloo, nccl) or a numpy array of uint8 (mpi, scripted).
Algorithms use only what both spell the same way, so one algorithm serves every transport.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from commbench.bound import LinkRate
from commbench.data import Bytes
from commbench.launch.environment import RankInfo
from commbench.layout import LinkClass


class Array(Protocol):
    """The part of numpy's and torch's array interface that an algorithm may use. Views, never copies."""

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


class Comm(Protocol):
    """Ranks of one group and the ways to move bytes between them. `step` names the algorithm's step that this is."""

    rank: int
    size: int

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

    def empty(self, nbytes: int) -> Array:
        """An uninitialised buffer of bytes, of the kind that this transport moves fastest."""
        ...

    def write(self, array: Array, data: Bytes) -> None:
        """Bytes from the host into the beginning of `array`."""
        ...

    def read(self, array: Array) -> Bytes:
        """`array` on the host, once it is complete there."""
        ...


class Transport(Protocol):
    """One rank's end of a library that moves bytes, with the clock and the votes that measuring needs."""

    name: str
    rank: int
    size: int
    world: Comm

    def __init__(self, options: Mapping[str, Any]) -> None:
        """`options` is what `Order.transport_options` gives."""
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

    def upload(self, array: Array, offset: int, data: Bytes) -> None:
        """Write `data` into `array` from byte `offset`."""
        ...

    def download(self, array: Array, offset: int, nbytes: int) -> Bytes:
        """`nbytes` bytes of `array` from `offset`, in host memory; valid until the next call."""
        ...

    def overlap(self, wanted: bool) -> None:
        """Whether calls from now on must return before they are done, so that the caller can compute meanwhile."""
        ...

    def product(self, rows: int) -> Callable[[], Any]:
        """A product of a `rows` x 256 with a 256 x 256 matrix in fp32, on this rank's device, ready to be called."""
        ...

    def barrier(self) -> None:
        """Untimed, before each sample."""
        ...

    def synchronize(self) -> None:
        """Wait until all that this rank has enqueued is done (nothing to do where calls block)."""
        ...

    def mark(self) -> Any:
        """A point in time on the clock that samples are taken with (an event on a GPU)."""
        ...

    def between_us(self, start: Any, end: Any) -> float:
        """Microseconds between two marks; may be called after `synchronize` only."""
        ...

    def moment_us(self, mark: Any) -> float:
        """When a mark was, microseconds on a clock that all ranks of one host share."""
        ...

    def host_us(self) -> float:
        """The host's clock, microseconds since an arbitrary point."""
        ...

    def all_gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """Every rank's `values` (k each): an array of size x k. The one primitive of votes; never in a timed region."""
        ...

    def is_out_of_memory(self, error: BaseException) -> bool: ...

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that are really loaded."""
        ...

    def links(self) -> dict[LinkClass, LinkRate]:
        """Declared rates; empty where nobody declared one."""
        ...
