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


def call_word(salt: int) -> int:
    """The random word of the call numbered `salt`, with which that of each piece is combined."""
    return _mix(_GAMMA * (salt + 1) & _MASK)


def words(key: int, count: int) -> Words:
    """The first `count` words of the stream of `key` (splitmix64: word i is a hash of key + i * gamma)."""
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(_GAMMA)
    z += np.uint64(key)
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


class Run(NamedTuple):
    """Equal pieces of a buffer, as rows of a matrix of bytes.

    There are `rows` of them; each lies `step` bytes after the one before. The first is at `start + column`, and each
    has `width` bytes. words: of each, its random word.
    """

    start: int
    rows: int
    step: int
    column: int
    width: int
    words: Words

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
        self.itemsize, self.pool = itemsize, pool
        self.runs = list(_runs(blocks))
        self.nbytes = sum(run.rows * run.width for run in self.runs)
        self.on_device: Any = None  # what a GPU keeps of it

    def made(self, run: Run, first: int, last: int, salt: int) -> Bytes:
        """Return the right rows `first` to `last` of `run` in the call numbered `salt`."""
        rows = np.empty((last - first, -(-run.width // WORD_BYTES) * WORD_BYTES), np.uint8)[:, : run.width]
        self.make(rows, run, first, salt)
        return rows

    def make(self, rows: Bytes, run: Run, first: int, salt: int, *, invert: bool = False) -> None:
        """Write the right rows of `run` from `first`, or their complements, into as many `rows` of bytes."""
        tags = run.words[first : first + len(rows)] ^ np.uint64(call_word(salt))
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
_NUMPY = {"fp32": np.float32, "fp16": np.float16, "int32": np.int32, "uint8": np.uint8}  # bf16 it does not know


def encode(values: npt.NDArray[np.int64], dtype: str) -> Bytes:
    """The bytes of whole numbers in a dtype that has them exactly."""
    if dtype == "bf16":  # the upper half of fp32; nothing is lost up to 256
        return np.ascontiguousarray(values.astype(np.float32).view(np.uint16)[1::2]).view(np.uint8)
    return values.astype(_NUMPY[dtype]).view(np.uint8)


def add(out: Bytes, inp: Bytes, dtype: str) -> None:
    """Add to the elements of `out` those of `inp`, each of which rounds once. The last axis has no gaps."""
    if dtype != "bf16":
        total = out.view(_NUMPY[dtype])
        np.add(total, inp.view(_NUMPY[dtype]), out=total)
        return
    halves = out.view(np.uint16)
    exact = np.asarray(_from_bf16(halves) + _from_bf16(inp.view(np.uint16)))
    bits = exact.view(np.uint32)
    # To the nearest, a tie to the even one; what is not a number must not round to infinity.
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    halves[...] = np.where(np.isnan(exact), 0x7FC0, rounded)


def _from_bf16(halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def decode(data: Bytes, dtype: str) -> npt.NDArray[np.int64]:
    """The whole numbers of which `data` are the bytes."""
    if dtype == "bf16":
        return _from_bf16(data.view(np.uint16)).astype(np.int64)
    return data.view(_NUMPY[dtype]).astype(np.int64)
