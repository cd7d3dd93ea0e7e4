"""How a tensor lies on a mesh of ranks, and which parts of it two such meshes have in common.

A mesh is written as its dimensions, the slowest first: `ep2-tp4` are 2 x 4 ranks, of which `ep` cuts the rows of the
tensor, `tp` its columns, and `dp` copies it. Placements of a DTensor say the same: of each dimension of the mesh which
dimension of the tensor it cuts, or none; one that is cut twice is cut again in the order of the mesh's dimensions.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from commbench.errors import UsageError

ROWS, COLUMNS = 0, -1  # of a matrix: the first and the last dimension of any tensor
_CUTS: dict[str, int | None] = {"ep": ROWS, "tp": COLUMNS, "dp": None}
_WORD = re.compile(r"(ep|tp|dp)([1-9]\d{0,5})")
GRAMMAR = "dimensions of a mesh, the slowest first: ep (rows), tp (columns), dp (copies), as in tp4-ep2 or dp2-tp2@4"

Interval = tuple[int, int]  # from, to
Box = tuple[Interval, ...]  # of a tensor, in each of its dimensions


class RankMesh(NamedTuple):
    """Ranks in the order of the mesh, its shape, and of each of its dimensions which one of the tensor it cuts."""

    ranks: tuple[int, ...]
    shape: tuple[int, ...]
    cuts: tuple[int | None, ...]

    def boxes(self, lengths: Sequence[int]) -> dict[int, Box]:
        """Return which part of a tensor with these lengths each rank has, as DTensor cuts it: the last may be less."""
        found: dict[int, Box] = {}
        for rank, place in zip(self.ranks, itertools.product(*map(range, self.shape)), strict=True):
            box = [(0, length) for length in lengths]
            for index, parts, cut in zip(place, self.shape, self.cuts, strict=True):
                if cut is not None:
                    begin, end = box[cut]  # the last one is -1, too
                    each = -(-(end - begin) // parts)
                    box[cut] = min(begin + index * each, end), min(begin + (index + 1) * each, end)
            found[rank] = tuple(box)
        return found

    def parts(self, dimension: int) -> int:
        """Return into how many parts it cuts a dimension of the tensor."""
        return math.prod(n for n, cut in zip(self.shape, self.cuts, strict=True) if cut == dimension)


def parse(text: str, *, first: int = 0) -> RankMesh:
    """Return the mesh of `ep2-tp4`, which begins at rank `first`, or of `ep2-tp4@8`, at rank 8. Raises `UsageError`."""
    words, at, start = text.partition("@")
    found = [_WORD.fullmatch(word) for word in words.split("-")]
    names = [match[1] for match in found if match]
    if not all(found) or len({*names}) < len(names) or (at and not (start.isdecimal() and len(start) < 7)):
        raise UsageError(f"{text!r} is no mesh", hint=GRAMMAR)
    shape = tuple(int(match[2]) for match in found if match)
    begin = int(start) if at else first
    return RankMesh(tuple(range(begin, begin + math.prod(shape))), shape, tuple(_CUTS[name] for name in names))


class Piece(NamedTuple):
    """A part of a tensor that some ranks hold and some want, each of them as a whole."""

    box: Box
    holders: tuple[int, ...]
    receivers: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(end - begin for begin, end in self.box)

    @property
    def lacking(self) -> tuple[int, ...]:
        """Return the ranks that want it and do not hold it."""
        return tuple(rank for rank in self.receivers if rank not in self.holders)


def pieces(lengths: Sequence[int], src: RankMesh, dst: RankMesh) -> list[Piece]:
    """Return the largest parts of a tensor that no rank of either mesh has in part, in the order of the tensor."""
    return _pieces(tuple(lengths), src, dst)


@functools.lru_cache(maxsize=256)
def _pieces(lengths: tuple[int, ...], src: RankMesh, dst: RankMesh) -> list[Piece]:
    return common(shared(src, lengths), shared(dst, lengths))


Shared = Sequence[tuple[Box, tuple[int, ...]]]  # boxes, and the ranks that have each


def common(src: Shared, dst: Shared) -> list[Piece]:
    """Return what boxes of the one and of the other have in common, in the order of the tensor."""
    found = []
    for (box, holders), (other, receivers) in itertools.product(src, dst):
        both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, other, strict=True))
        if all(begin < end for begin, end in both):
            found.append(Piece(both, holders, receivers))
    return sorted(found)


def shared(mesh: RankMesh, lengths: Sequence[int]) -> list[tuple[Box, tuple[int, ...]]]:
    """Return each part that the mesh makes, with the ranks that have it."""
    ranks: dict[Box, list[int]] = {}
    for rank, box in mesh.boxes(lengths).items():
        ranks.setdefault(box, []).append(rank)
    return [(box, tuple(has)) for box, has in ranks.items()]
