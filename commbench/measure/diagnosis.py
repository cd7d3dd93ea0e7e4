"""What is wrong with an output: in which block it begins, and whose data lie there instead, of which call."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from commbench.data import CHUNK_BYTES, block_key, piece_word, table
from commbench.measure.verify import Checker
from commbench.transports.base import Array

CALLS = {1: "the first call", 2: "the second call", 3: "the timed calls", 4: "the call after timing"}  # by salt
_WORD = 8  # bytes
_NONE = -1
_MANY_RANKS = 128  # from there on blocks for third ranks are not searched, which would take seconds


class Origin(NamedTuple):
    """Whose data: what rank `source` of a group has for rank `target` of it in the call numbered `salt`."""

    salt: int = _NONE
    source: int = _NONE
    target: int = _NONE


class WrongOutput(NamedTuple):
    """What one rank sees of its own output, in numbers, so that ranks can tell each other.

    block and offset are where it first differs: the block's number and the byte in it; block is -1 where a collective
    has no blocks, as a reduction. expected and found: whose data should be there, and whose are.
    """

    elements: int
    block: int = _NONE
    offset: int = _NONE
    unwritten: bool = False
    expected: Origin = Origin()
    found: Origin = Origin()

    def numbers(self) -> list[float]:
        """Return the fields one after the other; `from_numbers` reads them."""
        return [*map(float, (self.elements, self.block, self.offset, self.unwritten, *self.expected, *self.found))]

    @staticmethod
    def from_numbers(numbers: list[float]) -> WrongOutput:
        elements, block, offset, unwritten, *others = map(int, numbers)
        return WrongOutput(elements, block, offset, bool(unwritten), Origin(*others[:3]), Origin(*others[3:]))


def examine(checker: Checker, array: Array, salt: int, elements: int) -> WrongOutput:
    """Find where an output of which `elements` are wrong first differs, and whose data lie there."""
    blocks = checker.collective.expected_blocks(checker.spec, checker.rank, seed=checker.seed, salt=salt)
    if blocks is None or not elements:
        return WrongOutput(elements)
    start = 0
    for number, (key, nbytes) in enumerate(blocks):
        for piece in range(-(-nbytes // CHUNK_BYTES)):
            at = piece * CHUNK_BYTES
            size = min(CHUNK_BYTES, nbytes - at)
            right = (table()[: -(-size // _WORD)] ^ np.uint64(piece_word(key, piece))).view(np.uint8)[:size]
            seen = checker.transport.download(array, start + at, size)
            if (differs := np.flatnonzero(seen != right)).size:
                first = int(differs[0])
                word = first // _WORD
                whole = seen[word * _WORD : (word + 1) * _WORD]
                expected = _origin(checker, piece_word(key, piece), piece)
                if whole.size < _WORD:
                    return WrongOutput(elements, number, at + first, expected=expected)
                mixed = int(np.frombuffer(whole.tobytes(), np.uint64)[0]) ^ int(table()[word])
                unwritten = mixed == ~piece_word(key, piece) & (1 << 64) - 1
                found = _origin(checker, mixed, piece)
                return WrongOutput(elements, number, at + first, unwritten, expected, found)
        start += nbytes
    return WrongOutput(elements)


def _origin(checker: Checker, word: int, piece: int) -> Origin:
    """Return whose block has `word` in its piece `piece`; no rank's if none has."""
    ranks = range(checker.spec.ranks)
    targets = ranks if len(ranks) <= _MANY_RANKS else sorted({0, checker.rank})
    for salt in CALLS:
        for source in ranks:
            for target in targets:
                if piece_word(block_key(checker.seed, salt, source, target), piece) == word:
                    return Origin(salt, source, target)
    return Origin()


def describe(rank: int, wrong: WrongOutput, salt: int, members: list[int]) -> str:
    """Say it in words. members: the global ranks of the group, by their number in it."""
    text = f"rank {rank} has {wrong.elements} wrong element{'s' * (wrong.elements > 1)} after {CALLS[salt]}"
    if wrong.block == _NONE:
        return text
    text += f", the first of them in byte {wrong.offset} of block {wrong.block}"
    if wrong.expected.source != _NONE:
        text += f", which is rank {members[wrong.expected.source]}'s"
    if wrong.unwritten:
        return f"{text}; nothing was written there"
    if wrong.found.source == _NONE:
        return f"{text}; what is there is no rank's data"
    there = f"what rank {members[wrong.found.source]} had for rank {members[wrong.found.target]}"
    if wrong.found.target == 0 == wrong.expected.target:  # or for all
        there = f"rank {members[wrong.found.source]}'s data"
    return f"{text}; it holds {there} in {CALLS[wrong.found.salt]}"
