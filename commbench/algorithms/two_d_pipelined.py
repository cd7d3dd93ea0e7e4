"""2d_pipelined: `2d_intra_first` in chunks, so that the links inside the nodes and those between them work together.

Every block is cut into consecutive pieces, and chunk c is the c-th piece of each block. While the rails carry chunk c,
the nodes exchange chunk c + 1: two communicators, on each of which at most one exchange is in flight.

Copies: chunk c is packed for the exchange inside the node and permuted for the rails, as in `2d_intra_first`. What a
rail brings, a piece of each of m blocks, lies apart in the output, so it is copied there at last; one chunk alone, all
of each block, arrives in its place, and then this is `2d_intra_first`. All but the first pack and the last copy are
made while messages are in flight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from commbench.algorithms.base import WAIT, AlgorithmBase, Bound, ProgramBound, steps_in_order
from commbench.algorithms.chunks import cut, unsupported_chunks
from commbench.algorithms.two_d_intra_first import inside_and_between, unsupported_layout
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Work

# A chunk's buffers are free again when the third one after it is packed.
_SLOTS = 3


class TwoDPipelined(AlgorithmBase):
    name = "2d_pipelined"
    collective = "all_to_all"
    params = {"chunks": (4, "chunks of every block: two are exchanged at the same time")}
    tries = {"chunks": (2, 4, 8)}
    concurrent = True

    def unsupported(self, spec: Spec) -> str:
        return unsupported_layout(spec.layout) or unsupported_chunks(spec.block_bytes, spec.params["chunks"])

    def steps(self, spec: Spec) -> list[Step]:
        sends: dict[str, tuple[Send, ...]] = {}
        for chunk, piece in enumerate(cut(spec.block_bytes, spec.params["chunks"])):
            intra, inter = inside_and_between(spec.layout, piece.stop - piece.start)
            sends |= {f"intra-{chunk}": intra, f"inter-{chunk}": inter}
        return steps_in_order(_order(spec.params["chunks"]), sends)

    def scratch_bytes(self, spec: Spec) -> int:
        return sum(_scratch(spec))

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Bound(comm, spec)


def _order(chunks: int) -> list[str]:
    order = ["pack-0", "intra-0"]
    for chunk in range(chunks):
        more, before = chunk + 1 < chunks, chunk > 0
        order += [f"pack-{chunk + 1}"] if more else []
        order += [WAIT]  # for intra
        order += [f"intra-{chunk + 1}"] if more else []
        order += [f"permute-{chunk}"]
        order += [WAIT] if before else []  # for inter of the chunk before
        order += [f"inter-{chunk}"]
        order += [f"unpack-{chunk - 1}"] if before else []
    return [*order, WAIT, f"unpack-{chunks - 1}"] if chunks > 1 else order


def _scratch(spec: Spec) -> tuple[int, int]:
    """Bytes of the buffers that chunks are sent from, and that they arrive in: the output, where there is one chunk."""
    chunks = spec.params["chunks"]
    largest = max(piece.stop - piece.start for piece in cut(spec.block_bytes, chunks)) * spec.ranks
    return largest * min(chunks, _SLOTS), largest * min(chunks, _SLOTS) if chunks > 1 else 0


class _Bound(ProgramBound):
    def __init__(self, comm: Comm, spec: Spec) -> None:
        chunks = spec.params["chunks"]
        super().__init__(_order(chunks))
        layout = spec.layout
        self._shape = layout.nodes, layout.ranks_per_node
        self._pieces = cut(spec.block_bytes, chunks)
        self._node = comm.subgroup(layout.node_groups())
        self._rail = comm.subgroup(layout.rails())
        self._going, self._coming = (comm.empty(nbytes) for nbytes in _scratch(spec))

    def actions(self, out: Array, inp: Array) -> Mapping[str, Callable[[], Work | None]]:
        n, m = self._shape
        blocks_in, blocks_out = inp.reshape(n, m, -1), out.reshape(n, m, -1)
        slot_bytes = max(piece.stop - piece.start for piece in self._pieces) * n * m
        single = len(self._pieces) == 1
        found: dict[str, Callable[[], Work | None]] = {}
        for chunk, piece in enumerate(self._pieces):
            start = chunk % _SLOTS * slot_bytes
            where = slice(start, start + (piece.stop - piece.start) * n * m)
            going, coming = self._going[where], out if single else self._coming[where]
            # (node, local) -> (local, node) for the node; (source local, node) -> (node, source local) for the rail.
            found[f"pack-{chunk}"] = _copy(going.reshape(m, n, -1), blocks_in[:, :, piece].swapaxes(0, 1))
            found[f"permute-{chunk}"] = _copy(going.reshape(n, m, -1), coming.reshape(m, n, -1).swapaxes(0, 1))
            found[f"unpack-{chunk}"] = _copy(blocks_out[:, :, piece], coming.reshape(n, m, -1))
            for step, comm in ((f"intra-{chunk}", self._node), (f"inter-{chunk}", self._rail)):
                found[step] = comm.ready("all_to_all", coming, going, step=step)
        return found

    def close(self) -> None:
        del self._going, self._coming


def _copy(to: Array, source: Array) -> Callable[[], None]:
    return functools.partial(to.__setitem__, ..., source)
