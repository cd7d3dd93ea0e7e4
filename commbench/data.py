"""Test data that every rank can recompute for every other rank, so that a check needs no communication."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

CHUNK_BYTES = 1 << 20  # small enough to stay in cache while it is mixed


class Block(NamedTuple):
    """`nbytes` bytes that follow from `key`."""

    key: int
    nbytes: int


_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """One round of splitmix64's finaliser on a Python integer."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def block_key(seed: int, salt: int, src: int, dst: int) -> int:
    """64-bit key of the block that `src` sends to `dst` in the call numbered `salt`."""
    key = seed & _MASK
    for part in (salt, src, dst):
        key = _mix((key + _GAMMA * (part + 1)) & _MASK)
    return key


def words(key: int, count: int) -> npt.NDArray[np.uint64]:
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
def table() -> npt.NDArray[np.uint64]:
    """The words of which, each combined with one of `piece_words`, every block is made."""
    return words(0, CHUNK_BYTES // 8)


def piece_word(key: int, piece: int) -> int:
    """The random word of piece `piece` of the block of `key`."""
    return _mix((key + _GAMMA * (piece + 1)) & _MASK)


def piece_words(key: int, nbytes: int) -> list[int]:
    """One random word for each piece of the block of `key`."""
    return [piece_word(key, piece) for piece in range(-(-nbytes // CHUNK_BYTES))]


def block_chunks(key: int, nbytes: int) -> Iterator[Bytes]:
    """The `nbytes` bytes of the block of `key`, in pieces of at most `CHUNK_BYTES`.

    One table of random words, combined with one random word per (block, piece): a piece in a wrong place differs in
    every word, a shifted one in almost all, for the price of one pass where hashing each word takes eight.
    """
    for number, word in enumerate(piece_words(key, nbytes)):
        piece = min(CHUNK_BYTES, nbytes - number * CHUNK_BYTES)
        yield (table()[: -(-piece // 8)] ^ np.uint64(word)).view(np.uint8)[:piece]


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
