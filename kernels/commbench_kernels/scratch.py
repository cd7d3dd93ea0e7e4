"""What one-sided kernels need beside input and output: flags, counters and slots, in memory that all ranks reach.

`one_sided.cu` has the same layout.
"""

from __future__ import annotations

BLOCKS = 128  # of threads, at most, in one call
PACKET_BYTES = 16
_DATA_BYTES = 8  # of a packet
_WORD = 4


def flag_bytes(ranks: int) -> int:
    """Return the bytes of each block's counter and of two flags a block and rank; zeros before the first call."""
    return _WORD * (BLOCKS + 2 * BLOCKS * _width(ranks))


def memory_flags(ranks: int, which: int) -> int:
    """Return where flags of handshakes by memory operations are: those of one block, which no kernel uses then."""
    return _WORD * (BLOCKS + which * BLOCKS * _width(ranks))


def _width(ranks: int) -> int:
    """Count words of one block's flags."""
    return -(-ranks // 4) * 4


def slot_bytes(block_bytes: int, blocks: int, threads: int) -> int:
    """Return the bytes of packets that one block of threads sends one rank; `block_bytes`: of the largest message."""
    words = -(-block_bytes // _DATA_BYTES)
    return max(1, -(-words // (blocks * threads))) * threads * PACKET_BYTES


def packet_bytes(ranks: int, slot: int, blocks: int) -> int:
    """Return the bytes of all slots: two for each block of each rank."""
    return blocks * 2 * ranks * slot
