"""How a buffer is cut into chunks, and where blocks of unequal size lie in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from commbench.collectives.splits import Matrix

UNIT_BYTES = 16  # of a cut, so that any dtype and vector width fits

RankPair = tuple[int, int]  # the rank that it comes from, the rank that it goes to


def cut(nbytes: int, chunks: int, unit: int = UNIT_BYTES) -> list[slice]:
    """`chunks` consecutive pieces of `nbytes` bytes, whole units each; they differ by one unit at the most."""
    units = nbytes // unit
    edges = [units * chunk // chunks * unit for chunk in range(chunks + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(edges)]


def slices(sizes: Sequence[int]) -> list[slice]:
    """Where each block lies, one after the other."""
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def unsupported_chunks(nbytes: int, chunks: int, unit: int = UNIT_BYTES) -> str:
    """Return in words why a block of `nbytes` cannot be cut into `chunks` pieces; "" if it can."""
    if chunks < 1:
        return f"chunks={chunks}: there must be at least one"
    if nbytes % unit:
        return f"a block of {nbytes} B is not a whole number of units of {unit} B"
    if chunks > nbytes // unit:
        return f"chunks={chunks}: a block of {nbytes} B has {nbytes // unit} units of {unit} B to share out"
    return ""


class Move(NamedTuple):
    """A local copy: where to, and where from."""

    to: slice
    source: slice


class Places:
    """Where each of `blocks` lies in a buffer that holds them in this order, none apart from the next.

    `matrix` has their sizes: bytes from rank i to rank j in row i, column j.
    """

    def __init__(self, matrix: Matrix, blocks: Iterable[RankPair]) -> None:
        self._at: dict[RankPair, slice] = {}
        self.nbytes = 0
        for block in blocks:
            end = self.nbytes + int(matrix[block])
            self._at[block] = slice(self.nbytes, end)
            self.nbytes = end

    def run(self, blocks: Iterable[RankPair]) -> slice:
        """Where `blocks`, neighbours in this order, lie together."""
        at = [self._at[block] for block in blocks]
        return slice(at[0].start, at[-1].stop)

    def moves(self, source: Places, blocks: Iterable[RankPair]) -> list[Move]:
        """The copies that bring `blocks` here from `source`: none for empty ones, one for neighbours in both."""
        found: list[Move] = []
        for block in blocks:
            to, come = self._at[block], source._at[block]
            if to.start == to.stop:
                continue
            if found and (found[-1].to.stop, found[-1].source.stop) == (to.start, come.start):
                last = found.pop()
                to, come = slice(last.to.start, to.stop), slice(last.source.start, come.stop)
            found.append(Move(to, come))
        return found
