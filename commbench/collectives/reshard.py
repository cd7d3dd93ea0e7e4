"""reshard: a tensor that lies on one mesh of ranks arrives, cut otherwise, on another (Alpa, arXiv 2211.05322).

So weights go from trainers to those who infer, and a checkpoint to another layout. The tensor is a matrix: `ep` of a
mesh cuts rows, `tp` columns, `dp` copies (`meshes`). The meshes may share ranks. `size_bytes` is the whole tensor.

A rank's buffer has the parts of the tensor that it holds, or wants, one after the other, in the order of the tensor:
parts as both meshes cut it, so that each is sent as it lies. Ranks that are on neither mesh have no buffers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from commbench.collectives import meshes
from commbench.collectives.base import Argument, Blocks, round_down
from commbench.collectives.meshes import COLUMNS, GRAMMAR, ROWS, Piece, RankMesh
from commbench.data import Block, block_key
from commbench.errors import UsageError
from commbench.layout import LINK_CLASSES, Layout
from commbench.links import Need, shared_needs
from commbench.spec import Arguments, Spec


class Reshard(Blocks):
    """Backward goes from `dst` to `src`; where ranks of `dst` have copies, their gradients have to be summed first."""

    name = "reshard"
    adjoint = "reshard"
    arguments = {
        "src": Argument(None, "where the tensor is: tp4-ep2 (rows cut by ep, columns by tp, copies by dp), on the "
                        "first ranks or from rank K: tp4@K; without it tp on the first half of the ranks"),
        "dst": Argument(None, "where it goes, on the last ranks, or from rank K: tp2-dp2@K; without it a copy on each "
                        "of the other ranks"),
    }  # fmt: skip

    def settle(self, size_bytes: int, layout: Layout, arguments: Arguments) -> tuple[int, Arguments]:
        half = max(1, layout.ranks // 2)
        given = {"src": f"tp{half}", "dst": f"dp{max(1, layout.ranks - half)}", **arguments}
        src, dst = str(given["src"]), str(given["dst"])
        try:
            mesh = meshes.parse(src), meshes.parse(dst)
        except UsageError as error:
            raise ValueError(f"{error}: {GRAMMAR}") from error
        if "@" not in dst:
            dst = f"{dst}@{max(0, layout.ranks - len(mesh[1].ranks))}"
        for name, text in (("src", src), ("dst", dst)):
            last = meshes.parse(text).ranks[-1]
            if last >= layout.ranks:
                raise ValueError(f"{name}={text} needs rank {last}, and the ranks are 0 .. {layout.ranks - 1}")
        return round_down(size_bytes, math.prod(_grid(*mesh))), {"src": src, "dst": dst}

    def part_bytes(self, spec: Spec) -> int:
        return cell_bytes(spec)

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return sum(piece.elements for piece in pieces_of(spec) if rank in piece.holders) * cell_bytes(spec)

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return sum(piece.elements for piece in pieces_of(spec) if rank in piece.receivers) * cell_bytes(spec)

    def input_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        yield from (block for block, piece in self._blocks(spec, seed) if rank in piece.holders)

    def expected_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        yield from (block for block, piece in self._blocks(spec, seed) if rank in piece.receivers)

    def _blocks(self, spec: Spec, seed: int) -> Iterator[tuple[Block, Piece]]:
        """Yield what each part holds: the same for all who hold it, as copies do, and of no other part."""
        for number, piece in enumerate(pieces_of(spec)):
            yield Block(block_key(seed, number, 0), piece.elements * cell_bytes(spec)), piece

    def needs(self, spec: Spec) -> list[Need]:
        """Return what ranks and nodes lack, and what has to leave the only ones that have it."""
        return needs_of([(piece, piece.elements * cell_bytes(spec)) for piece in pieces_of(spec)], spec.layout)

    def busbw_factor(self, spec: Spec) -> float | None:
        return None


def pieces_of(spec: Spec) -> list[Piece]:
    """Return the parts of a call's tensor, in cells. Shared: do not write to it."""
    src, dst = (meshes.parse(str(spec.arguments[name])) for name in ("src", "dst"))
    return meshes.pieces(_grid(src, dst), src, dst)


def cell_bytes(spec: Spec) -> int:
    """Return the bytes of the smallest part that any two meshes of these degrees can have in common."""
    return spec.size_bytes // math.prod(_grid(*(meshes.parse(str(spec.arguments[name])) for name in ("src", "dst"))))


def _grid(src: RankMesh, dst: RankMesh) -> tuple[int, int]:
    """Return rows and columns that both meshes cut evenly."""
    rows, columns = (math.lcm(src.parts(dimension), dst.parts(dimension)) for dimension in (ROWS, COLUMNS))
    return rows, columns


def needs_of(pieces: Sequence[tuple[Piece, int]], layout: Layout) -> list[Need]:
    """Return what parts, each with its bytes, need of links: each byte once into a node that lacks it, or out of it."""
    into: Counter[int] = Counter()  # by rank
    out_of: Counter[int] = Counter()
    over: Counter[tuple[str, int]] = Counter()  # the network, by direction and node
    for piece, nbytes in pieces:
        lacking = piece.lacking
        into.update(dict.fromkeys(lacking, nbytes))
        if lacking and len(piece.holders) == 1:
            out_of[piece.holders[0]] += nbytes
        held = {*map(layout.node, piece.holders)}
        wanting = {*map(layout.node, lacking)} - held
        over.update(dict.fromkeys((("in", node) for node in wanting), nbytes))
        if wanting and len(held) == 1:
            over["out", held.pop()] += nbytes
    of_node: Counter[int] = Counter()
    for rank, nbytes in into.items():
        of_node[layout.node(rank)] += nbytes
    largest = [float(max(found.values(), default=0)) for found in (into, of_node, over)]
    needs = shared_needs(layout, *largest)
    links = tuple(link for link in LINK_CLASSES if (layout.nodes if link == "inter" else layout.ranks_per_node) > 1)
    return [*needs, Need(float(max(out_of.values(), default=0)), links)] if links else []
