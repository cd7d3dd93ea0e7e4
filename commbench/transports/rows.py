"""What algorithms do with rows of a buffer on one rank alone: copy some of them, and add them up. On the host: numpy.

Buffers are matrices of bytes, [rows, bytes of a row]; bytes of a row are a multiple of 16. Places are row numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from commbench.data import Bytes, rounded, widened

Places = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]


class Term(NamedTuple):
    """Rows `source` of the matrix `origin` are added to rows `to`, each multiplied by its weight, if there are any."""

    origin: int
    to: Places
    source: Places
    weights: Weights | None


class Rows(Protocol):
    def places(self, places: Places) -> Any:
        """Return row numbers where this works on them: what `copy` takes."""
        ...

    def copy(self, out: Any, to: Any, inp: Any, source: Any) -> None:
        """Rows `source` of `inp` into rows `to` of `out`; None: into all, in order."""
        ...

    def sums(self, count: int, terms: Sequence[Term]) -> Any:
        """Return what `add` takes to make `count` rows of these terms."""
        ...

    def add(self, out: Any, origins: Sequence[Any], sums: Any, dtype: str) -> None:
        """Write the sums of rows of `origins`, of numbers of `dtype`, into `out`: made in fp32, and rounded once."""
        ...


class _Part(NamedTuple):
    """Rows that are added to those of a piece of the output, none twice; to: None for all of them, in order."""

    origin: int
    to: Any
    source: Any
    weights: Any


class _Sums(NamedTuple):
    """Has the parts of each piece of the output; copied: the one part of rows that are no sums."""

    pieces: list[tuple[slice, list[_Part]]]
    copied: _Part | None


class RowsBase:
    """Sums in pieces of `piece_rows` rows, part after part."""

    piece_rows = 64  # which stay in cache until they are rounded

    def known(self, numbers: Any) -> Any:
        """Return row numbers or weights where this works on them."""
        return numbers

    def places(self, places: Places) -> Any:
        return self.known(places)

    def sums(self, count: int, terms: Sequence[Term]) -> _Sums:
        if len(terms) == 1 and terms[0].weights is None and len(terms[0].to) == count == len({*terms[0].to.tolist()}):
            (term,) = terms
            order = np.argsort(term.to)
            return _Sums([], _Part(term.origin, None, self.known(term.source[order]), None))
        pieces = []
        for start in range(0, count, self.piece_rows):
            rows = slice(start, min(start + self.piece_rows, count))
            pieces.append((rows, [self._part(rows, part) for term in terms for part in _apart(term, rows)]))
        return _Sums(pieces, None)

    def _part(self, rows: slice, term: Term) -> _Part:
        whole = len(term.to) == rows.stop - rows.start
        weights = None if term.weights is None else self.known(term.weights)
        return _Part(term.origin, None if whole else self.known(term.to), self.known(term.source), weights)


def _apart(term: Term, rows: slice) -> Iterator[Term]:
    """Yield the part of a term for some rows, numbered from the first of them, as terms that have each row once."""
    (inside,) = np.nonzero((term.to >= rows.start) & (term.to < rows.stop))
    inside = inside[np.argsort(term.to[inside], kind="stable")]
    to = term.to[inside] - rows.start
    again = np.arange(len(to)) - np.searchsorted(to, to)  # how often this row was there before
    for turn in range(int(again.max(initial=-1)) + 1):
        (which,) = np.nonzero(again == turn)
        weights = None if term.weights is None else term.weights[inside[which]]
        yield Term(term.origin, to[which], term.source[inside[which]], weights)


class HostRows(RowsBase):
    def copy(self, out: Bytes, to: Places | None, inp: Bytes, source: Places) -> None:
        if to is None:
            np.take(inp, source, axis=0, out=out, mode="clip")  # any other mode makes a copy first
        else:
            out[to] = inp[source]

    def add(self, out: Bytes, origins: Sequence[Bytes], sums: _Sums, dtype: str) -> None:
        if sums.copied is not None:
            self.copy(out, None, origins[sums.copied.origin], sums.copied.source)
        for rows, parts in sums.pieces:
            total: npt.NDArray[np.float32] | None = None
            for part in parts:
                terms = widened(origins[part.origin][part.source], dtype)
                if part.weights is not None:
                    terms *= part.weights[:, None]
                if total is None:
                    total = np.zeros((rows.stop - rows.start, terms.shape[1]), np.float32)
                if part.to is None:
                    total += terms
                else:
                    total[part.to] += terms
            out[rows] = 0 if total is None else rounded(total, dtype)
