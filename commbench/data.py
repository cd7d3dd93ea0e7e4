"""Test data that every rank can recompute for every other rank, so that a check needs no communication."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

CHUNK_BYTES = 1 << 20  # small enough to stay in cache while it is mixed

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


def words(key: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Words `first .. first + count` of the stream of `key` (splitmix64: word i is a hash of key + i * gamma)."""
    z = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    z *= np.uint64(_GAMMA)
    z += np.uint64(key)
    t = z >> np.uint64(30)
    z ^= t
    z *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(z, np.uint64(27), out=t)
    z ^= t
    z *= np.uint64(0x94D049BB133111EB)
    np.right_shift(z, np.uint64(31), out=t)
    z ^= t
    return z


def block_chunks(key: int, nbytes: int) -> Iterator[Bytes]:
    """The `nbytes` bytes of the block of `key`, in pieces of at most `CHUNK_BYTES`."""
    for start in range(0, nbytes, CHUNK_BYTES):
        piece = min(CHUNK_BYTES, nbytes - start)
        yield words(key, start // 8, -(-piece // 8)).view(np.uint8)[:piece]
