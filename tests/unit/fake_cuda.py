"""torch.cuda, NCCL and the driver, pretended on CPU tensors in this process: so much of them that `Nccl` runs.

What is enqueued on a stream runs at once, or becomes part of the graph that is captured. Peer memory is files in shared
memory; kernels are those of one_sided.cu, on threads. Strict where CUDA is: what is not pretended raises.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

_WAIT_AT_MOST_S = 30.0


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


class Now:
    stream = Stream()
    pool: Any = None
    limit = 1 << 62  # bytes of one allocation


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
    return tensor


class Pool:
    def __init__(self, allocator: object) -> None:
        self.allocator = allocator
        self.sizes: list[int] = []  # of what is in it


class Backend:
    """Of NCCL's, what knows memory."""

    def __init__(self) -> None:
        self.mem_allocator = object()
        self._registered: list[Pool] = []

    def register_mem_pool(self, pool: Pool, symm: bool = False) -> None:
        assert pool.allocator is self.mem_allocator and pool.sizes and pool not in self._registered
        if symm:  # a window is the same on all ranks
            same(pool.sizes)
        self._registered.append(pool)

    def deregister_mem_pool(self, pool: Pool) -> None:
        self._registered.remove(pool)


def same(value: Any) -> None:
    assert len({repr(other) for other in every(value)}) == 1, f"not the same on all ranks: {every(value)}"


def every(value: Any) -> list[Any]:
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


class Calls:
    """A process group as NCCL's is called. gloo has no groups of messages, and always gives a Work."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._posts: list[Callable[[], Any]] | None = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        assert name in ("alltoall_base", "_allgather_base", "_reduce_scatter_base", "allreduce", "broadcast"), name

        def call(*arguments: Any) -> Any:
            function = functools.partial(getattr(self._group, name), *arguments)
            if arguments[-1].asyncOp and Graph.capturing is None:
                return function()
            enqueue(Now.stream.cuda_stream, lambda: function().wait())
            return SimpleNamespace(wait=lambda: None) if arguments[-1].asyncOp else None

        return call

    def _start_coalescing(self, device: torch.device) -> None:
        assert self._posts is None
        self._posts = []

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> None:
        assert self._posts is not None and tensors[0].numel()
        self._posts.append(functools.partial(self._group.send, tensors, peer, tag))

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> None:
        assert self._posts is not None and tensors[0].numel()
        self._posts.append(functools.partial(self._group.recv, tensors, peer, tag))

    def _end_coalescing(self, device: torch.device) -> Any:
        posts, self._posts = self._posts, None
        assert posts
        works: list[Any] = []
        if Graph.capturing is None:
            works = [post() for post in posts]
        else:
            enqueue(Now.stream.cuda_stream, lambda: [work.wait() for work in [post() for post in posts]])
        return SimpleNamespace(wait=lambda: [work.wait() for work in works])


class PeerFiles:
    """torch's symmetric memory: files in a folder that all ranks know."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank, self._number = folder, rank, itertools.count()
        self._paths: dict[int, tuple[Path, int]] = {}

    def empty_strided_p2p(self, size: Any, stride: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        (nbytes,) = size
        if nbytes > Now.limit:
            raise RuntimeError("CUDA driver error: out of memory")
        path = self._folder / f"{self._rank}-{next(self._number)}"
        path.write_bytes(b"\xff" * nbytes)  # whatever was there before
        tensor = torch.frombuffer(self._mapped(path), dtype=dtype)
        self._paths[tensor.data_ptr()] = path, nbytes
        return tensor

    def rendezvous(self, tensor: torch.Tensor, group_name: str) -> Any:
        path, nbytes = self._paths.pop(tensor.untyped_storage().data_ptr())
        paths = every((path, nbytes))
        assert {other for _, other in paths} == {nbytes}, f"other sizes on other ranks: {paths}"
        maps = [(ctypes.c_char * nbytes).from_buffer(self._mapped(other)) for other, _ in paths]
        pointers = [ctypes.addressof(there) for there in maps]
        pointers[self._rank] = tensor.data_ptr()
        every(None)  # all have mapped it
        path.unlink()
        return SimpleNamespace(buffer_ptrs=pointers, maps=maps)  # which are gone when this is

    def _mapped(self, path: Path) -> mmap.mmap:
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), 0)


def patch_driver(libraries: dict[int, Path]) -> None:
    """Kernels, copies and memory operations. `libraries`: the kernels compiled for so many ranks."""
    from commbench_kernels import compiler, one_sided
    from cuda.bindings import driver

    one_sided.THREADS = 4
    loaded: dict[int, ctypes.CDLL] = {}
    success = driver.CUresult.CUDA_SUCCESS

    def load(name: str, device: int, defines: tuple[tuple[str, int], ...]) -> int:
        ranks = dict(defines)["RANKS"]
        loaded[ranks] = ctypes.CDLL(str(libraries[ranks]))
        return ranks

    def launch_kernel(function: Any, *rest: Any) -> tuple[Any]:
        blocks, y, z, threads, u, v, shared, stream, parameters, extra = rest
        assert (y, z, u, v, shared, extra) == (1, 1, 1, 1, 0, 0)
        ranks, name = function
        at = ctypes.c_void_p.from_address(parameters).value
        call = ctypes.create_string_buffer(ctypes.string_at(at or 0, ranks * 48 + 16))  # copied now, as the driver does

        def run() -> None:
            assert not loaded[ranks].launch(name, call, blocks, min(threads, one_sided.THREADS)), name

        enqueue(stream, run)
        return (success,)

    def copy(target: int, source: int, nbytes: int, stream: int) -> tuple[Any]:
        enqueue(stream, lambda: ctypes.memmove(target, source, nbytes))
        return (success,)

    def batch(stream: int, count: int, operations: list[Any], flags: int) -> tuple[Any]:
        assert count == len(operations)
        enqueue(stream, lambda: [operate(operation) for operation in operations])
        return (success,)

    def operate(operation: Any) -> None:
        kinds = driver.CUstreamBatchMemOpType
        writes = operation.operation == kinds.CU_STREAM_MEM_OP_WRITE_VALUE_32
        assert writes or operation.operation == kinds.CU_STREAM_MEM_OP_WAIT_VALUE_32
        part = operation.writeValue if writes else operation.waitValue
        word = ctypes.c_uint32.from_address(int(part.address))
        deadline = time.monotonic() + _WAIT_AT_MOST_S
        if writes:
            word.value = int(part.value)
        while not writes and word.value != int(part.value):
            assert time.monotonic() < deadline, "nobody writes what is waited for"
            os.sched_yield()

    compiler.load = load
    driver.cuModuleGetFunction = lambda module, name: (success, (module, name))
    driver.cuLaunchKernel, driver.cuMemcpyDtoDAsync, driver.cuStreamBatchMemOp = launch_kernel, copy, batch


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


def install(folder: Path, rank: int, gpus_here: int, libraries: dict[int, Path], *, reach: bool, limit: int) -> None:
    """In a process of its own, for good. `limit`: bytes above which no allocation succeeds; `reach`: peers' memory."""
    from commbench import gpus, measure, transports
    from commbench.transports import cuda_device, cuda_timer, gpu_puts, nccl, peer_memory, windows

    torch.set_num_threads(1)
    Now.limit = limit
    raw_stream = Overlay(torch._C, _cuda_getCurrentRawStream=lambda index: Now.stream.cuda_stream)
    fake = Overlay(
        torch, cuda=cuda(gpus_here, reach=reach), _C=raw_stream, empty=empty,
        device=lambda kind, index: torch.device("cpu", index),
    )  # fmt: skip
    for module in (cuda_device, cuda_timer, gpu_puts, nccl, peer_memory, windows):
        assert module.torch is torch and module.__name__ in sys.modules
        module.torch = fake
    nccl.dist = Overlay(dist, init_process_group=init_process_group)
    peer_memory._SymmetricMemory = PeerFiles(folder, rank)
    after(nccl.NcclComm, lambda comm: setattr(comm, "_calls", Calls(comm._calls)))
    after(windows.Windows, lambda made: setattr(made, "_backend", Backend()))
    transports.check = lambda name: None
    gpus.condition = lambda uuid: {"clock_mhz": 1000 + rank, "slowed_by": ["heat"] if rank else []}
    nccl._PRODUCT, gpu_puts._RATE_BYTES = 64, 1 << 16
    measure.PIPELINED_CALLS = measure.GRAPH_CALLS = 4
    patch_driver(libraries)


def init_process_group(backend: str, *, device_id: torch.device, **named: Any) -> None:
    assert backend == "nccl" and 0 <= device_id.index <= named["rank"]
    dist.init_process_group("gloo", **named)


def after(cls: Any, change: Callable[[Any], None]) -> None:
    """Let `change` have each new object of `cls`."""
    real = cls.__init__

    def made(self: Any, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, **named)
        change(self)

    cls.__init__ = made
