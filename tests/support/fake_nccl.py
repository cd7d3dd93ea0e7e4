"""NCCL, peer memory and the driver, pretended on CPU tensors in this process: with fake_cuda, so much that `Nccl` runs.

Messages go over gloo; peer memory is files in shared memory; kernels are those of one_sided.cu, on threads.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import os
import struct
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from tests.support.fake_cuda import Graph, Now, Overlay, Pool, cuda, empty, enqueue, refuse_capturing

_WAIT_AT_MOST_S = 30.0
GUARD = b"\xa5" * 8192  # after each allocation


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
        Now.unregistered -= pool.places

    def deregister_mem_pool(self, pool: Pool) -> None:
        assert not any(calls.held for calls in Calls.made), "NCCL still holds what a graph worked on"
        self._registered.remove(pool)


def same(value: Any) -> None:
    assert len({repr(other) for other in every(value)}) == 1, f"not the same on all ranks: {every(value)}"


def every(value: Any) -> list[Any]:
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def where(item: Any) -> list[int]:
    """Where the memory of the tensors in `item` begins."""
    items = item if isinstance(item, list) else [item]
    return [tensor.untyped_storage().data_ptr() for tensor in items if isinstance(tensor, torch.Tensor)]


class Calls:
    """A process group as NCCL's is called. gloo has no groups of messages, and always gives a Work."""

    made: ClassVar[list[Calls]] = []

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._posts: list[Callable[[], Any]] | None = None
        self.held: list[Graph] = []  # that the communicator does not know to be gone
        self._eager = 0
        Calls.made.append(self)

    def _called(self) -> None:
        if Graph.capturing is not None:
            self.held.append(Graph.capturing)
            return
        self._eager += 1
        if self._eager % 11 == 0:  # as NCCL 2.28 does
            self.held = [graph for graph in self.held if not graph.gone]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        assert name in ("alltoall_base", "_allgather_base", "_reduce_scatter_base", "allreduce", "broadcast"), name

        def call(*arguments: Any) -> Any:
            assert not {at for item in arguments for at in where(item)} & Now.unregistered, "not published"
            function = functools.partial(getattr(self._group, name), *arguments)
            self._called()
            if arguments[-1].asyncOp and Graph.capturing is None:
                return function()
            enqueue(Now.stream.cuda_stream, lambda: function().wait())
            return SimpleNamespace(wait=lambda: None) if arguments[-1].asyncOp else None

        return call

    def _start_coalescing(self, device: torch.device) -> None:
        assert self._posts is None
        self._posts = []

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> None:
        assert self._posts is not None and tensors[0].numel() and not {*where(tensors)} & Now.unregistered
        self._posts.append(functools.partial(self._group.send, tensors, peer, tag))

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> None:
        assert self._posts is not None and tensors[0].numel() and not {*where(tensors)} & Now.unregistered
        self._posts.append(functools.partial(self._group.recv, tensors, peer, tag))

    def _end_coalescing(self, device: torch.device) -> Any:
        posts, self._posts = self._posts, None
        assert posts
        self._called()
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
        self._live: list[Any] = []

    def empty_strided_p2p(self, size: Any, stride: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        (nbytes,) = size
        if nbytes > Now.limit:
            raise RuntimeError("CUDA driver error: out of memory")
        path = self._folder / f"{self._rank}-{next(self._number)}"
        # Whatever was there before, and other things on each rank.
        path.write_bytes(bytes([0x11 * (self._rank + 1)]) * nbytes + GUARD)
        tensor = torch.frombuffer(self._mapped(path), dtype=dtype, count=nbytes)
        self._paths[tensor.data_ptr()] = path, nbytes
        return tensor

    def rendezvous(self, tensor: torch.Tensor, group_name: str) -> Any:
        path, nbytes = self._paths.pop(tensor.untyped_storage().data_ptr())
        paths = every((path, nbytes))
        assert {other for _, other in paths} == {nbytes}, f"other sizes on other ranks: {paths}"
        maps = [(ctypes.c_char * (nbytes + len(GUARD))).from_buffer(self._mapped(other)) for other, _ in paths]
        pointers = [ctypes.addressof(there) for there in maps]
        pointers[self._rank] = tensor.data_ptr()
        self._live = [*filter(lambda ref: ref() is not None, self._live), *map(weakref.ref, maps)]
        every(None)  # all have mapped it
        path.unlink()
        return SimpleNamespace(buffer_ptrs=pointers, maps=maps)  # which are gone when this is

    def check(self) -> None:
        """Nobody has written past the end of anything."""
        for ref in self._live:
            if (there := ref()) is not None:
                assert bytes(memoryview(there)[-len(GUARD) :]) == GUARD, "written past the end"

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
        width = int(name.rpartition(b"_")[2]) if b"_" in name else 1
        for peer in range(ranks):
            *places, _, sent, received = struct.unpack_from("<6Q", ctypes.string_at(at or 0, ranks * 48), peer * 48)
            used = [place for place, moved in zip(places, (sent, sent, received), strict=True) if moved]
            assert not any(place % width for place in used), "misaligned"
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


def install(folder: Path, rank: int, gpus_here: int, libraries: dict[int, Path], *, reach: bool, limit: int) -> None:
    """In a process of its own, for good. `limit`: bytes above which no allocation succeeds; `reach`: peers' memory."""
    from commbench import transports
    from commbench.machine import gpus
    from commbench.measure import loop
    from commbench.transports import existing_nccl_group, nccl
    from commbench.transports.cuda import device as cuda_device
    from commbench.transports.cuda import one_sided as gpu_puts
    from commbench.transports.cuda import registered_memory, symmetric_memory, timer

    torch.set_num_threads(1)
    Now.limit = limit
    raw_stream = Overlay(torch._C, _cuda_getCurrentRawStream=lambda index: Now.stream.cuda_stream)
    fake = Overlay(
        torch, cuda=cuda(gpus_here, reach=reach), _C=raw_stream, empty=empty,
        device=lambda kind, index: torch.device("cpu", index),
    )  # fmt: skip
    for module in (cuda_device, timer, gpu_puts, existing_nccl_group, nccl, symmetric_memory, registered_memory):
        assert module.torch is torch and module.__name__ in sys.modules
        module.torch = fake
    nccl.dist = Overlay(dist, init_process_group=init_process_group)
    symmetric_memory._SymmetricMemory = files = PeerFiles(folder, rank)
    fake.cuda.synchronize = lambda: (refuse_capturing("cudaDeviceSynchronize"), files.check())
    after(nccl.NcclComm, lambda comm: setattr(comm, "_calls", Calls(comm._calls)))
    after(registered_memory.Windows, lambda made: setattr(made, "_backend", Backend()))
    transports.check = lambda name: None
    gpus.condition = lambda uuid: {"clock_mhz": 1000 + rank, "slowed_by": ["heat"] if rank else []}
    nccl._PRODUCT, gpu_puts._RATE_BYTES = 64, 1 << 16
    timer._CALIBRATION_S = 0
    loop.PIPELINED_CALLS = loop.GRAPH_CALLS = 4
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
