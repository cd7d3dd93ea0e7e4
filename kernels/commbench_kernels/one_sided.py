"""One-sided all-to-all(v) between the GPUs of one host: every rank writes into the memory of the others.

Two ways for a kernel to do it, and one without kernels:

store     each rank waits until the others have entered the call, stores its blocks into their outputs, and waits until
          they say that theirs are there. As many SMs serve each peer, the rank itself among them. Roofline: the link,
          if as many SMs store as it takes, and two handshakes of one link latency each.
packets   small blocks: each eight bytes travel with the number of the call into slots at the receiver, who unpacks
          them. No handshake, so one link latency, for twice the bytes.
copies    the copy engines move what goes to others, the stream's memory operations (or one small kernel) do the
          handshakes: no SM moves that. The own block can be left to a few SMs: a copy engine that has it to do at
          the same time is 2 to 4 % slower with the others (two H200).

`reference` is what all of them compute, in plain torch.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from commbench_kernels import compiler, scratch

if TYPE_CHECKING:
    import torch

SOURCE = "one_sided.cu"
THREADS = 512
_UNROLL = 4  # elements that one thread of `store` holds at a time, as in the source
_MANY_BYTES = 4 << 20  # for which more than a quarter of the SMs pays
_LITTLE_BYTES = 128 << 10  # for one block to send


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerBlock:
    """All that one rank exchanges with one peer (itself among them). Addresses are in the caller's address space."""

    source: int  # in the own input: what goes to the peer
    target: int  # in the peer's output: where it belongs
    arrival: int  # in the own output: where what comes from the peer belongs
    scratch: int  # of the peer
    sent: int  # bytes
    received: int


def reference(inputs: Sequence[torch.Tensor], counts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Compute all outputs of an all-to-all of `inputs`, one of each rank; `counts[i][j]` elements go from i to j."""
    import torch

    parts = [torch.split(inp, list(row)) for inp, row in zip(inputs, counts, strict=True)]
    return [torch.cat([row[j] for row in parts]) for j in range(len(inputs))]


def least_us(sent: int, link_gbps: float, latency_us: float, *, packets: bool) -> float:
    """Return the roofline: microseconds for a rank to send `sent` bytes to others, over a link of `link_gbps` GB/s."""
    moved = 2 * sent if packets else sent
    return moved / link_gbps / 1e3 + (latency_us if packets else 2 * latency_us)


def store_shape(ranks: int, largest: int, ctas: int = 0) -> tuple[int, int]:
    """Choose blocks, and threads in each, to store messages of up to `largest` bytes; `ctas`: blocks asked for.

    A multiple of `ranks`, one for each tile, and almost all SMs where that pays (measured on two H200: 16 blocks get
    95 % of what 128 get from 64 MiB up). Half the threads where a block has little to do, as it starts sooner.
    """
    sent = largest * (ranks - 1)
    tiles = ranks * -(-largest // (THREADS // 2 * _UNROLL * 16))
    wanted = ctas or min(tiles, 32 if sent < _MANY_BYTES else scratch.BLOCKS)
    most = scratch.BLOCKS // ranks * ranks
    blocks = max(ranks, min(most, -(-wanted // ranks) * ranks))
    return blocks, THREADS // 2 if sent <= blocks * _LITTLE_BYTES else THREADS


def packet_blocks(largest: int) -> int:
    """Choose blocks of threads for packets of messages of up to `largest` bytes: one for each thread, if possible."""
    return max(1, min(scratch.BLOCKS, -(-largest // (THREADS * 8))))


@functools.cache
def _call_type(ranks: int) -> type[ctypes.Structure]:
    u64 = ctypes.c_uint64

    class Peer(ctypes.Structure):
        _fields_ = [(name, u64) for name in ("source", "target", "arrival", "scratch", "sent", "received")]

    class Call(ctypes.Structure):
        _fields_ = [("peers", Peer * ranks), ("slot_bytes", u64), ("rank", ctypes.c_uint32)]

    return Call


def _argument(rank: int, blocks: Sequence[PeerBlock], slot_bytes: int) -> ctypes.Structure:
    call: Any = _call_type(len(blocks))()
    for peer, block in zip(call.peers, blocks, strict=True):
        for name in ("source", "target", "arrival", "scratch", "sent", "received"):
            setattr(peer, name, getattr(block, name))
    call.slot_bytes = slot_bytes
    call.rank = rank
    return call  # type: ignore[no-any-return]


def _alignment(blocks: Sequence[PeerBlock]) -> int:
    """Return the largest power of two, up to 16, of which all addresses of data are multiples."""
    merged = 16
    for block in blocks:
        merged |= block.source | block.target | block.arrival
    return merged & -merged


def store(
    device: int, rank: int, blocks: Sequence[PeerBlock], *, ctas: int, threads: int = THREADS
) -> compiler.KernelLaunch:
    """Make a call by stores. `blocks`: one for each rank, in order. `ctas`: alike on all, a multiple of the ranks."""
    kernel = compiler.kernel(SOURCE, f"store_{_width(blocks)}", device, RANKS=len(blocks))
    return kernel.bind(_argument(rank, blocks, 0), blocks=ctas, threads=threads)


def own(device: int, rank: int, blocks: Sequence[PeerBlock], *, ctas: int) -> compiler.KernelLaunch:
    """Make the own block's part of a call, without any handshake."""
    kernel = compiler.kernel(SOURCE, f"own_{_width(blocks)}", device, RANKS=len(blocks))
    return kernel.bind(_argument(rank, blocks, 0), blocks=ctas, threads=THREADS)


def _width(blocks: Sequence[PeerBlock]) -> int:
    """Return the bytes that a thread may move at a time."""
    return next(width for width in (16, 4, 1) if _alignment(blocks) >= width)


def packets(
    device: int, rank: int, blocks: Sequence[PeerBlock], *, ctas: int, slot_bytes: int
) -> compiler.KernelLaunch:
    """Make a call by packets, whose slots follow the flags in the scratch."""
    width = 8 if _alignment(blocks) >= 8 else 1
    kernel = compiler.kernel(SOURCE, f"packets_{width}", device, RANKS=len(blocks))
    return kernel.bind(_argument(rank, blocks, slot_bytes), blocks=ctas, threads=THREADS)


def handshake(device: int, rank: int, scratches: Sequence[int]) -> compiler.KernelLaunch:
    """Make all ranks meet: work that follows on the stream begins when every rank's stream has come this far."""
    nothing = [PeerBlock(source=0, target=0, arrival=0, scratch=at, sent=0, received=0) for at in scratches]
    kernel = compiler.kernel(SOURCE, "handshake", device, RANKS=len(scratches))
    threads = -(-len(scratches) // 32) * 32
    return kernel.bind(_argument(rank, nothing, 0), blocks=1, threads=threads)


def memory_handshake(rank: int, scratches: Sequence[int], which: int) -> Callable[[int], None]:
    """Do what `handshake` does by memory operations of the stream alone: no SM is needed. `which`: 0 or 1, in turn.

    Each rank writes 1 at the others, waits for theirs, and takes it back. A peer can write again only after the next
    handshake, of the other kind, which needs this rank, so no 1 is lost; and what a graph replays is always the same.
    """
    from cuda.bindings import driver

    def operation(kind: str, at: int, value: int) -> Any:
        made = driver.CUstreamBatchMemOpParams()
        made.operation = getattr(driver.CUstreamBatchMemOpType, f"CU_STREAM_MEM_OP_{kind}_VALUE_32")
        part = made.writeValue if kind == "WRITE" else made.waitValue
        part.address, part.value = at, value
        part.flags = 0 if kind == "WRITE" else int(driver.CUstreamWaitValue_flags.CU_STREAM_WAIT_VALUE_EQ)
        return made

    ranks = len(scratches)
    # The words of kernels' counters and flags are not touched: these lie in the last block's.
    place = scratch.memory_flags(ranks, which)
    others = [peer for peer in range(ranks) if peer != rank]
    operations = [operation("WRITE", scratches[peer] + place + 4 * rank, 1) for peer in others]
    operations += [operation("WAIT", scratches[rank] + place + 4 * peer, 1) for peer in others]
    operations += [operation("WRITE", scratches[rank] + place + 4 * peer, 0) for peer in others]
    batch, count = driver.cuStreamBatchMemOp, len(operations)

    def meet(stream: int) -> None:
        (status,) = batch(stream, count, operations, 0)
        if status:
            compiler.check((status,))

    return meet
