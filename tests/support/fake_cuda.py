"""torch.cuda, pretended on CPU tensors in this process: streams, events, graphs and allocations, as far as used.

What is enqueued on a stream runs at once, or becomes part of the graph that is captured. Strict where CUDA is: what is
not pretended raises, and so does what a capture forbids. tests/support/fake_nccl.py has the rest.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Overlay:
    """`real`, but for `own`."""

    def __init__(self, real: Any, **own: Any) -> None:
        self.__dict__.update(own, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Stream:
    known: dict[int, Stream] = {}
    handles = itertools.count(0, 0x1000)  # 0: the default stream

    def __init__(self) -> None:
        self.cuda_stream = next(Stream.handles)
        Stream.known[self.cuda_stream] = self

    def synchronize(self) -> None:
        refuse_capturing("cudaStreamSynchronize")

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def wait_event(self, event: Event) -> None:
        graph = Graph.capturing
        if graph is None or event.stream is None:
            return
        if event.graph is graph:
            graph.waits(self, event.stream)
        elif self in graph.streams:
            raise RuntimeError("CUDA: a captured stream waits for an event outside of the capture")


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.timed = enable_timing
        self.stream: Stream | None = None
        self.graph: Graph | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or Now.stream
        graph = Graph.capturing
        self.graph = graph if graph is not None and self.stream in graph.streams else None
        self.at = time.perf_counter_ns()

    def elapsed_time(self, end: Event) -> float:
        assert self.timed and end.timed and self.graph is None and end.graph is None
        return (end.at - self.at) / 1e6


class Graph:
    capturing: Graph | None = None

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []
        self.streams: list[Stream] = []  # the first is where capturing began
        self.loose: set[Stream] = set()  # that nobody has joined
        self.gone = False

    def add(self, stream: Stream, call: Callable[[], Any]) -> None:
        if stream not in self.streams:
            raise RuntimeError("CUDA: work on a stream that is not part of the capture")
        if stream is not self.streams[0]:
            self.loose.add(stream)
        self.calls.append(call)

    def waits(self, stream: Stream, for_stream: Stream) -> None:
        if stream is self.streams[0]:
            self.loose.discard(for_stream)
        else:
            self.streams.append(stream)
            self.loose.add(stream)

    def replay(self) -> None:
        refuse_capturing("cudaGraphLaunch")
        assert self.calls and not self.loose
        for call in self.calls:
            call()

    def reset(self) -> None:
        refuse_capturing("cudaGraphExecDestroy")
        self.calls, self.gone = [], True


class Now:
    stream = Stream()
    pool: Any = None
    limit = 1 << 62  # bytes of one allocation
    unregistered: set[int] = set()  # where memory is that NCCL shall know, and does not yet


class Idle(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class Recorder(TorchDispatchMode):
    """Copies become part of the graph; views are made."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = functools.partial(function, *args, **(kwargs or {}))
        if not function._schema.is_mutable:
            return call()
        assert Graph.capturing is not None
        Graph.capturing.add(Now.stream, call)
        return args[0]


@contextlib.contextmanager
def capture(graph: Graph, stream: Stream, capture_error_mode: str) -> Iterator[None]:
    assert stream.cuda_stream, "the default stream cannot be captured"
    graph.streams, Graph.capturing = [stream], graph
    try:
        with use_stream(stream), Recorder():
            yield
    finally:
        Graph.capturing = None
    if graph.loose:
        raise RuntimeError("CUDA: a forked stream was not joined to the captured one")


def refuse_capturing(what: str) -> None:
    if Graph.capturing is not None:
        raise RuntimeError(f"CUDA: {what} while a stream is captured")


def enqueue(stream: int, call: Callable[[], Any]) -> None:
    if Graph.capturing is not None:
        Graph.capturing.add(Stream.known[stream], call)
    else:
        assert stream in Stream.known
        call()


@contextlib.contextmanager
def use_stream(stream: Stream) -> Iterator[None]:
    before, Now.stream = Now.stream, stream
    yield
    Now.stream = before


@contextlib.contextmanager
def use_pool(pool: Any) -> Iterator[None]:
    Now.pool = pool
    yield
    Now.pool = None


def empty(nbytes: int, **named: Any) -> torch.Tensor:
    if nbytes > Now.limit:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")
    tensor = torch.empty(nbytes, **named)
    if Now.pool is not None:
        Now.pool.sizes.append(nbytes)
        Now.pool.places.add(tensor.data_ptr())
        Now.unregistered |= Now.pool.places
    return tensor


class Pool:
    def __init__(self, allocator: object) -> None:
        self.allocator = allocator
        self.sizes: list[int] = []  # of what is in it
        self.places: set[int] = set()

    def __del__(self) -> None:
        Now.unregistered -= self.places


def cuda(gpus_here: int, *, reach: bool) -> SimpleNamespace:
    """torch.cuda of a machine with so many GPUs."""
    properties = SimpleNamespace(L2_cache_size=4096, uuid="0-1-2")
    return SimpleNamespace(
        Stream=Stream, ExternalStream=lambda handle: Stream.known[handle], Event=Event, CUDAGraph=Graph, graph=capture,
        stream=use_stream, set_stream=lambda stream: setattr(Now, "stream", stream), current_stream=lambda: Now.stream,
        is_current_stream_capturing=lambda: Graph.capturing is not None and Now.stream in Graph.capturing.streams,
        synchronize=lambda: refuse_capturing("cudaDeviceSynchronize"), empty_cache=lambda: None,
        set_device=lambda device: None, device_count=lambda: gpus_here, _sleep=lambda cycles: range(cycles),
        can_device_access_peer=lambda one, other: reach and one != other,
        mem_get_info=lambda index: (1 << 40, 1 << 40), get_device_name=lambda index: "fake",
        get_device_properties=lambda index: properties, nccl=SimpleNamespace(version=lambda: (2, 28, 9)),
        MemPool=Pool, use_mem_pool=use_pool,
    )  # fmt: skip


def before_fork() -> None:
    """Let torch import what modes need, which takes a second or two, once for all ranks."""
    with Idle():
        torch.zeros(4)[:2].copy_(torch.ones(2))
