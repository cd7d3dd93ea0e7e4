"""What is wrong with an output: in which block it begins, and whose data lie there instead, of which call."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from commbench.collectives.base import Blocks
from commbench.data import CHUNK_BYTES, WORD_BYTES, block_key, call_word, piece_word, table
from commbench.measure.verify import Checker
from commbench.transports.device import Difference

_NONE = -1
_MANY_RANKS = 128  # from there on blocks for third ranks are not searched, which would take seconds


class Origin(NamedTuple):
    """Whose data: what rank `source` of a group has for rank `target` of it in the call numbered `salt`."""

    salt: int = _NONE
    source: int = _NONE
    target: int = _NONE


class WrongOutput(NamedTuple):
    """What one rank sees of its own output after the call numbered `salt`, in numbers, so that ranks can tell others.

    block and offset are where it first differs: the block's number and the byte in it; block is -1 where a collective
    has no blocks, as a reduction. expected and found: whose data should be there, and whose are.
    """

    elements: int
    salt: int
    block: int = _NONE
    offset: int = _NONE
    unwritten: bool = False
    expected: Origin = Origin()
    found: Origin = Origin()

    def numbers(self) -> list[float]:
        """Return the fields one after the other; `from_numbers` reads them."""
        scalars = (self.elements, self.salt, self.block, self.offset, self.unwritten)
        return [*map(float, (*scalars, *self.expected, *self.found))]

    @staticmethod
    def from_numbers(numbers: list[float]) -> WrongOutput:
        elements, salt, block, offset, unwritten, *others = map(int, numbers)
        return WrongOutput(elements, salt, block, offset, bool(unwritten), Origin(*others[:3]), Origin(*others[3:]))


def examine(checker: Checker, difference: Difference, salt: int) -> WrongOutput:
    """Tell where an output first differs from that of the call `salt`, and whose data lie there, of which earlier call.

    Calls are numbered from 0.
    """
    signed = any(run.magnitudes is not None for run in checker.expected.runs)
    if not isinstance(checker.collective, Blocks) or signed:
        return WrongOutput(difference.elements, salt)
    blocks = list(checker.collective.expected_blocks(checker.spec, checker.rank, seed=checker.seed))
    ends = list(itertools.accumulate(block.nbytes for block in blocks))
    number = bisect.bisect_right(ends, difference.at)
    key, nbytes = blocks[number]
    offset = difference.at - (ends[number] - nbytes)
    piece = offset // CHUNK_BYTES
    first = offset % CHUNK_BYTES // WORD_BYTES
    right = piece_word(key, piece) ^ call_word(salt)
    expected = _origin(checker, right, piece, salt)
    if len(difference.word) < WORD_BYTES:
        return WrongOutput(difference.elements, salt, number, offset, expected=expected)
    mixed = int(np.frombuffer(difference.word, np.uint64)[0]) ^ int(table()[first])
    unwritten = mixed == ~right & (1 << 64) - 1
    return WrongOutput(
        difference.elements, salt, number, offset, unwritten, expected, _origin(checker, mixed, piece, salt)
    )


def _origin(checker: Checker, word: int, piece: int, last: int) -> Origin:
    """Return whose block has `word` in its piece `piece`, in which call up to `last`; no rank's if none has."""
    ranks = range(checker.spec.ranks)
    targets = ranks if len(ranks) <= _MANY_RANKS else sorted({0, checker.rank})
    calls = {call_word(salt): salt for salt in range(last + 1)}
    for source in ranks:
        for target in targets:
            salt = calls.get(word ^ piece_word(block_key(checker.seed, source, target), piece))
            if salt is not None:
                return Origin(salt, source, target)
    return Origin()


def describe(rank: int, wrong: WrongOutput, calls: Sequence[str], members: list[int]) -> str:
    """Say it in words. calls: a name for each call, by its number; members: the global ranks of the group."""
    text = f"rank {rank} has {wrong.elements} wrong element{'s' * (wrong.elements > 1)} after {calls[wrong.salt]}"
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
    return f"{text}; it holds {there} in {calls[wrong.found.salt]}"
