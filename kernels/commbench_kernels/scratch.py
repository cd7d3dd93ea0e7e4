"""What one-sided kernels need beside input and output: flags, counters and slots, in memory that all ranks reach.

`flags.cuh`, and what includes it, have the same layout.
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


def rows_come() -> int:
    """Return where a dispatch leaves how many rows have come: the first flag, as it has no handshake."""
    return _WORD * BLOCKS


def dispatch_bytes(ranks: int, blocks: int, tokens: int, top_k: int, bins: int, *, copied: bool) -> int:
    """Return the bytes that a dispatch needs: flags, packets of counts, and where copies of rows belong, if any do."""
    copies = ranks * tokens * top_k * _WORD if copied else 0
    return flag_bytes(ranks) + blocks * ranks * -(-bins // 2) * PACKET_BYTES + copies


def slot_dispatch_bytes(ranks: int, blocks: int, tokens: int, top_k: int, row_bytes: int) -> int:
    """Return the bytes that a dispatch into slots needs: flags, and twice the choices for each block, and rows."""
    choices = -(-2 * blocks * ranks * tokens * top_k * _DATA_BYTES // 16) * 16
    return flag_bytes(ranks) + choices + 2 * ranks * tokens * row_bytes


def combine_bytes(ranks: int, tokens: int, row_bytes: int, sets: int) -> int:
    """Return the bytes that a combine needs: flags, and `sets` of slots for a row of each rank and token."""
    return flag_bytes(ranks) + sets * ranks * tokens * row_bytes
