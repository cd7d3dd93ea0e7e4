"""One-sided exchanges between GPUs: the kernels of commbench_kernels and the copy engines, on a rank's buffers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from commbench_kernels import compiler, one_sided, scratch
from commbench_kernels.one_sided import PeerBlock

from commbench.transports.base import Array, PutPlan, Ready, Timer, Work
from commbench.transports.cuda.symmetric_memory import PeerMemory

_RATE_BYTES = 512 << 20  # of each copy with which the ceiling is measured
_RATE_COPIES = 5

Enqueue = Callable[[int], None]  # of something on the stream with this handle


class StreamBarrier:
    """All ranks' streams meet: what follows begins when every rank has come this far."""

    def __init__(self, memory: PeerMemory, index: int, rank: int, ranks: int) -> None:
        self.scratch = memory.zeros(scratch.flag_bytes(ranks))
        self._index = index
        self._launch = one_sided.handshake(index, rank, memory.addresses(self.scratch))

    def __call__(self) -> None:
        self._launch(_stream(self._index))


class PeerCalls:
    """Calls of one algorithm on one communicator whose ranks write at each other, with scratch of their own."""

    def __init__(
        self,
        memory: PeerMemory,
        index: int,
        members: Sequence[int],
        scratch_bytes: int,
        side_stream: torch.cuda.Stream | None,
    ) -> None:
        """Collective. `members`: the ranks of the world in this communicator.

        Calls run on the stream `side_stream`, or on the current one.
        """
        self._memory, self._index, self._members = memory, index, members
        self._scratch = memory.zeros(scratch_bytes)
        self._scratches = self._of(memory.addresses(self._scratch))
        self._side_stream = side_stream
        self._last: int | None = None  # the stream of the last call

    def close(self) -> None:
        torch.cuda.synchronize()
        self._memory.release(self._scratch)  # all that others write here has arrived with the last call
        del self._scratch

    def _of(self, world: Sequence[int]) -> list[int]:
        return [world[member] for member in self._members]

    def _start(self, launch: Enqueue, buffers: tuple[torch.Tensor, torch.Tensor]) -> Work | None:
        if self._side_stream is not None:
            current = torch.cuda.current_stream()
            self._side_stream.wait_stream(current)
            with torch.cuda.stream(self._side_stream):
                launch(self._side_stream.cuda_stream)
            return _Joined(self._side_stream)
        stream = _stream(self._index)
        if stream != self._last:
            self._follow(stream)
        launch(stream)
        return None

    def _follow(self, stream: int) -> None:
        """Calls share flags, so those on another stream come after the last one."""
        if self._last is not None and not torch.cuda.is_current_stream_capturing():
            last = torch.cuda.ExternalStream(self._last)
            torch.cuda.current_stream().wait_stream(last)
        self._last = stream


class GpuPuts(PeerCalls):
    """One-sided puts of one algorithm on one communicator."""

    def __init__(
        self,
        memory: PeerMemory,
        index: int,
        members: Sequence[int],
        rank: int,
        plan: PutPlan,
        *,
        side_stream: torch.cuda.Stream | None,
        copy_stream: torch.cuda.Stream,
    ) -> None:
        """Collective. Copies inside the GPU run on `copy_stream`."""
        super().__init__(memory, index, members, plan.scratch_bytes, side_stream)
        self._rank, self._engine, self._routes = rank, plan.engine, plan.routes
        self._ctas, self._threads = plan.ctas, plan.threads
        if plan.engine == "packets":
            self._slot = scratch.slot_bytes(plan.largest, plan.ctas, one_sided.THREADS)
        self._copy_stream = copy_stream
        if plan.engine == "copies" and plan.params["memops"]:
            self._meet = [one_sided.memory_handshake(rank, self._scratches, which) for which in (0, 1)]
        elif plan.engine == "copies":
            self._meet = [one_sided.handshake(index, rank, self._scratches)] * 2

    def ready(self, out: Array, inp: Array) -> Ready:
        assert isinstance(out, torch.Tensor) and isinstance(inp, torch.Tensor)
        outs = self._of(self._memory.addresses(out))
        blocks = [
            PeerBlock(
                source=inp.data_ptr() + route.source.start,
                target=outs[peer] + route.target.start,
                arrival=out.data_ptr() + route.arrival.start,
                scratch=self._scratches[peer],
                sent=route.source.stop - route.source.start,
                received=route.arrival.stop - route.arrival.start,
            )
            for peer, route in enumerate(self._routes)
        ]
        if self._engine == "packets":
            launch: Enqueue = one_sided.packets(self._index, self._rank, blocks, ctas=self._ctas, slot_bytes=self._slot)
        elif self._engine == "store":
            launch = one_sided.store(self._index, self._rank, blocks, ctas=self._ctas, threads=self._threads)
        else:
            launch = self._copies(blocks)
        # The buffers must outlive the call.
        return functools.partial(self._start, launch, (out, inp))

    def _copies(self, blocks: Sequence[PeerBlock]) -> Enqueue:
        """Let the copy engines put the blocks. The own block is copied meanwhile, on `copy_stream`, by one of them
        or by SMs.
        """
        ranks, rank = len(blocks), self._rank
        enter, leave = self._meet
        order = [blocks[(rank + k) % ranks] for k in range(1, ranks)]
        messages = [(block.target, block.source, block.sent) for block in order if block.sent]
        own = blocks[rank]
        copy_stream = self._copy_stream
        copy_own: Enqueue = functools.partial(_copy, own.target, own.source, own.sent)
        if self._ctas:
            copy_own = one_sided.own(self._index, rank, blocks, ctas=self._ctas)

        def launch(stream: int) -> None:
            if own.sent:
                copy_stream.wait_stream(torch.cuda.current_stream())
                copy_own(copy_stream.cuda_stream)
            enter(stream)
            for target, source, nbytes in messages:
                _copy(target, source, nbytes, stream)
            leave(stream)
            if own.sent:
                torch.cuda.current_stream().wait_stream(copy_stream)

        return launch


class _Joined:
    """A call on a stream of its own."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._done = stream.record_event()

    def wait(self) -> None:
        torch.cuda.current_stream().wait_event(self._done)


def copy_rate_gbps(memory: PeerMemory, barrier: StreamBarrier, timer: Timer, index: int, rank: int, size: int) -> float:
    """Collective: what the copy engine of each GPU writes into the next one's memory, all at the same time.

    The ceiling beside which results stand. 0 where there is no memory to measure it with.
    """
    try:
        target = memory.zeros(_RATE_BYTES)
    except MemoryError:
        return 0.0
    source = torch.empty(_RATE_BYTES, dtype=torch.uint8, device=torch.device("cuda", index))
    source.random_(0, 255)
    to = memory.addresses(target)[(rank + 1) % size]
    best = 0.0
    for _ in range(3):
        timer.barrier()
        begin = timer.mark()
        for _ in range(_RATE_COPIES):
            _copy(to, source.data_ptr(), _RATE_BYTES, _stream(index))
        end = timer.mark()
        timer.synchronize()
        best = max(best, _RATE_COPIES * _RATE_BYTES / timer.between_us(begin, end) / 1e3)
    timer.barrier()  # the neighbour may still copy into what is dropped here
    timer.synchronize()
    memory.forget([barrier.scratch])
    return best


def _copy(target: int, source: int, nbytes: int, stream: int) -> None:
    from cuda.bindings import driver

    (status,) = driver.cuMemcpyDtoDAsync(target, source, nbytes, stream)
    if status:
        compiler.check((status,))


def _stream(index: int) -> int:
    """The current stream's handle, at a tenth of the price of `torch.cuda.current_stream`."""
    handle: Any = torch._C._cuda_getCurrentRawStream(index)
    return int(handle)
