"""Test data that every rank can recompute for every other rank, so that a check needs no communication.

A block is cut into pieces of `CHUNK_BYTES`. A piece follows from a word of 64 bits that is its own (of the block's
sender, receiver and place) and differs from call to call: the data of two calls, blocks or places differ everywhere.
What only moves is a table of random words, each combined with that word; what is computed with is a part of a pool of
numbers, which begins where that word says.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

CHUNK_BYTES = 1 << 15  # little enough that making and checking data leave caches as they are, as far as can be
POOL_STARTS = 1 << 16  # places of a pool, in elements, at which a piece may begin; a power of two
WORD_BYTES = 8


class Block(NamedTuple):
    """`nbytes` bytes that follow from `key` and the number of the call."""

    key: int
    nbytes: int


_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """One round of splitmix64's finaliser on a Python integer."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def block_key(seed: int, src: int, dst: int) -> int:
    """64-bit key of the blocks that `src` sends to `dst`."""
    key = seed & _MASK
    for part in (src, dst):
        key = _mix((key + _GAMMA * (part + 1)) & _MASK)
    return key


def block_keys(seed: int, src: npt.NDArray[np.int64], dst: npt.NDArray[np.int64]) -> Words:
    """Return `block_key` of each pair of numbers."""
    keys = np.full(len(src), seed & _MASK, np.uint64)
    for part in (src, dst):
        keys = _mixed(keys + np.uint64(_GAMMA) * (part.astype(np.uint64) + np.uint64(1)))
    return keys


def piece_words(keys: Words, piece: int) -> Words:
    """Return `piece_word` of each key."""
    return _mixed(keys + np.uint64(_GAMMA * (piece + 1) & _MASK))


def call_word(salt: int) -> int:
    """The random word of the call numbered `salt`, with which that of each piece is combined."""
    return _mix(_GAMMA * (salt + 1) & _MASK)


def words(key: int, count: int) -> Words:
    """The first `count` words of the stream of `key` (splitmix64: word i is a hash of key + i * gamma)."""
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(_GAMMA)
    z += np.uint64(key)
    return _mixed(z)


def _mixed(z: Words) -> Words:
    """`_mix` of each, in place."""
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


@functools.cache
def table() -> Words:
    """The words of which, each combined with that of a piece and of a call, every block that only moves is made."""
    return words(0, CHUNK_BYTES // WORD_BYTES)


def piece_word(key: int, piece: int) -> int:
    """The random word of piece `piece` of the block of `key`."""
    return _mix((key + _GAMMA * (piece + 1)) & _MASK)


class Apart(NamedTuple):
    """Which columns each part of a sum has to itself, and how large numbers are in each block of a row.

    Part k of a row has numbers in column c where c % parts == owners[row, k], and zeros elsewhere; they are multiplied
    by one of 1, 2, 4, 8, which changes from row to row (`turns`) and from each `block` of columns to the next.
    """

    parts: int
    owners: npt.NDArray[np.int64]
    block: int
    turns: npt.NDArray[np.int64]

    def factors(self, columns: Any, rows: slice, part: int) -> Any:
        """Return what rows of a part are multiplied by: arrays, or tensors as the columns are."""
        sizes = 1 << (self.turns[rows, None] + columns // self.block) % 4
        return sizes * (columns % self.parts == self.owners[rows, part, None])


class Sums(NamedTuple):
    """Rows that are sums: part k of a row is a part of a pool, from `shifts[row, k]` numbers after where its word says.

    numbers: the pool, as fp32. weights: what each part is multiplied by. A part whose shift is below 0 is not there.
    apart: where no number is a sum of two. All sums are exact in `dtype`, in whatever order they are added up.
    """

    numbers: npt.NDArray[np.float32]
    shifts: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    dtype: str
    apart: Apart | None = None

    def rows(self, starts: npt.NDArray[np.int64], first: int, width: int) -> Bytes:
        """Return rows of `width` bytes from number `first` on, whose parts begin at `starts`, before the shifts."""
        count = width // (4 if self.dtype == "fp32" else 2)
        total = np.zeros((len(starts), count), np.float32)
        parts = np.lib.stride_tricks.sliding_window_view(self.numbers, count)
        rows = slice(first, first + len(starts))
        for part, (shifts, weights) in enumerate(zip(self.shifts[rows].T, self.weights[rows].T, strict=True)):
            (there,) = np.nonzero(shifts >= 0)
            found = weights[there, None] * parts[starts[there] + shifts[there]]
            if self.apart is not None:
                found *= self.apart.factors(np.arange(count), rows, part)[there]
            total[there] += found
        return encode_exact(total, self.dtype).reshape(len(starts), width)


# The signs of the numbers in a word, by bytes of a number.
SIGNS = {2: np.uint64(0x8000800080008000), 4: np.uint64(0x8000000080000000)}


class Run(NamedTuple):
    """Equal pieces of a buffer, as rows of a matrix of bytes.

    There are `rows` of them; each lies `step` bytes after the one before. The first is at `start + column`, and each
    has `width` bytes. words: of each, its random word. fixed: rows that are the same in all calls, and have no words.
    sums: what is added up to rows of numbers. magnitudes: what all rows of numbers have, with signs that follow from
    their word. A quantiser treats both signs alike, so what it makes of them is known once for all rows.
    """

    start: int
    rows: int
    step: int
    column: int
    width: int
    words: Words
    fixed: Bytes | None = None
    sums: Sums | None = None
    magnitudes: Words | None = None

    def of(self, array: Any, first: int, last: int) -> Any:
        """Return the rows `first` to `last` of a flat buffer of bytes, as a matrix that shares its memory."""
        whole = array[self.start + first * self.step : self.start + last * self.step]
        return whole.reshape(last - first, self.step)[:, self.column : self.column + self.width]

    def at(self, row: int, byte: int) -> int:
        """Return where in the buffer a byte of a row is."""
        return self.start + row * self.step + self.column + byte


class Pattern:
    """What a buffer holds in any call: `blocks` one after the other, of elements of `itemsize` bytes.

    pool: for data to compute with, the numbers of which a piece is a part; None for data that only move.
    """

    def __init__(self, blocks: Iterable[Block], itemsize: int, pool: Bytes | None = None) -> None:
        self._hold(list(_runs(blocks)), itemsize, pool)

    @classmethod
    def of_runs(cls, runs: list[Run], itemsize: int) -> Pattern:
        """Return the pattern of a buffer that has these runs, and nothing else."""
        pattern = cls.__new__(cls)
        pattern._hold(runs, itemsize, None)
        return pattern

    def _hold(self, runs: list[Run], itemsize: int, pool: Bytes | None) -> None:
        self.itemsize, self.pool, self.runs = itemsize, pool, runs
        self.nbytes = sum(run.rows * run.width for run in self.runs)
        self.on_device: Any = None  # what a GPU keeps of it

    def made(self, run: Run, first: int, last: int, salt: int) -> Bytes:
        """Return the right rows `first` to `last` of `run` in the call numbered `salt`."""
        rows = np.empty((last - first, -(-run.width // WORD_BYTES) * WORD_BYTES), np.uint8)[:, : run.width]
        self.make(rows, run, first, salt)
        return rows

    def make(self, rows: Bytes, run: Run, first: int, salt: int, *, invert: bool = False) -> None:
        """Write the right rows of `run` from `first`, or their complements, into as many `rows` of bytes."""
        if run.fixed is not None:
            right = run.fixed[first : first + len(rows)]
            rows[...] = ~right if invert else right
            return
        tags = run.words[first : first + len(rows)] ^ np.uint64(call_word(salt))
        if run.sums is not None:
            right = run.sums.rows((tags & np.uint64(POOL_STARTS - 1)).astype(np.int64), first, run.width)
            rows[...] = ~right if invert else right
            return
        if run.magnitudes is not None:
            count = -(-run.width // WORD_BYTES)
            # A product has in each of its high bits all bits of the odd number that are lower.
            made = (table()[:count] * (tags | np.uint64(1))[:, None] & SIGNS[self.itemsize]) ^ run.magnitudes[:count]
            right = made.view(np.uint8)[:, : run.width]
            rows[...] = ~right if invert else right
            return
        if self.pool is None:
            tags = ~tags if invert else tags
            words = table()[: -(-run.width // WORD_BYTES)]
            if run.width % WORD_BYTES:
                rows[...] = (words ^ tags[:, None]).view(np.uint8)[:, : run.width]
            else:
                np.bitwise_xor(words, tags[:, None], out=rows.view(np.uint64))
            return
        starts = ((tags & np.uint64(POOL_STARTS - 1)) * np.uint64(self.itemsize)).tolist()
        for row, start in zip(rows, starts, strict=True):
            right = self.pool[start : start + run.width]
            if invert:
                np.invert(right, out=row)
            else:
                row[...] = right

    def whole(self, salt: int) -> Bytes:
        """Return all bytes of the buffer in the call numbered `salt`."""
        array = np.empty(self.nbytes, np.uint8)
        for run in self.runs:
            self.make(run.of(array, 0, run.rows), run, 0, salt)
        return array


def _runs(blocks: Iterable[Block]) -> Iterator[Run]:
    start = 0
    for nbytes, group in itertools.groupby(blocks, key=lambda block: block.nbytes):
        keys = [block.key for block in group]
        whole, rest = divmod(nbytes, CHUNK_BYTES)
        if whole and not rest:
            yield Run(start, len(keys) * whole, CHUNK_BYTES, 0, CHUNK_BYTES, _words_of(keys, range(whole)))
        elif whole:
            for number, key in enumerate(keys):
                place = start + number * nbytes
                yield Run(place, whole, CHUNK_BYTES, 0, CHUNK_BYTES, _words_of([key], range(whole)))
        if rest:
            column = whole * CHUNK_BYTES
            yield Run(start, len(keys), nbytes, column, rest, _words_of(keys, range(whole, whole + 1)))
        start += nbytes * len(keys)


def _words_of(keys: list[int], pieces: range) -> Words:
    return np.array([piece_word(key, piece) for key in keys for piece in pieces], dtype=np.uint64)


# What a reduction does with two whole numbers.
OPS: dict[str, Callable[..., npt.NDArray[np.int64]]] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
}
SIGNIFICANT = {"bf16": 8, "fp16": 11, "fp32": 24}  # bits of a number of a floating dtype
_NUMPY = {"fp32": np.float32, "fp16": np.float16, "int32": np.int32, "uint8": np.uint8}  # bf16 it does not know


def encode(values: npt.NDArray[np.int64], dtype: str) -> Bytes:
    """The bytes of whole numbers in a dtype that has them exactly."""
    if dtype == "bf16":  # the upper half of fp32; nothing is lost up to 256
        return np.ascontiguousarray(values.astype(np.float32).view(np.uint16)[1::2]).view(np.uint8)
    return values.astype(_NUMPY[dtype]).view(np.uint8)


def encode_exact(values: npt.NDArray[np.float32], dtype: str) -> Bytes:
    """Return the bytes of fp32 numbers that a floating dtype has exactly."""
    if dtype == "bf16":
        return np.ascontiguousarray(values.reshape(-1).view(np.uint16)[1::2]).view(np.uint8)
    return values.reshape(-1).astype(_NUMPY[dtype]).view(np.uint8)


def add(out: Bytes, inp: Bytes, dtype: str) -> None:
    """Add to the elements of `out` those of `inp`, each of which rounds once. The last axis has no gaps."""
    if dtype != "bf16":
        total = out.view(_NUMPY[dtype])
        np.add(total, inp.view(_NUMPY[dtype]), out=total)
        return
    halves = out.view(np.uint16)
    halves[...] = rounded(np.asarray(_from_bf16(halves) + _from_bf16(inp.view(np.uint16))), dtype).view(np.uint16)


def widened(data: Bytes, dtype: str) -> npt.NDArray[np.float32]:
    """Return the numbers of a floating dtype of which `data` are the bytes."""
    return _from_bf16(data.view(np.uint16)) if dtype == "bf16" else data.view(_NUMPY[dtype]).astype(np.float32)


def rounded(values: npt.NDArray[np.float32], dtype: str) -> Bytes:
    """Return the bytes of fp32 numbers, each rounded to the nearest of a floating dtype, a tie to the even one."""
    if dtype != "bf16":
        return values.astype(_NUMPY[dtype]).view(np.uint8)
    bits = values.view(np.uint32)
    halves = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    # What is not a number must not round to infinity.
    return np.where(np.isnan(values), 0x7FC0, halves).astype(np.uint16).view(np.uint8)


def _from_bf16(halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def decode(data: Bytes, dtype: str) -> npt.NDArray[np.int64]:
    """The whole numbers of which `data` are the bytes."""
    if dtype == "bf16":
        return _from_bf16(data.view(np.uint16)).astype(np.int64)
    return data.view(_NUMPY[dtype]).astype(np.int64)
