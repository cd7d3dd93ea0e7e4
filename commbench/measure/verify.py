"""Correct before fast: every rank recomputes what every block of its output must be.

The output is poisoned first with the complement of the expected bytes, so that no byte is right unless it was
written; the data of consecutive calls differ, so that a stale result is wrong everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from commbench.collectives.base import Collective
from commbench.data import Block, Bytes
from commbench.spec import Spec
from commbench.transports.base import Array, Transport


@dataclass(frozen=True, slots=True)
class Checker:
    """Knows what one rank of a group sends and must get. `rank` is its place in the group; `seed` the group's own."""

    transport: Transport
    collective: Collective
    spec: Spec
    rank: int
    seed: int

    def fill_input(self, array: Array, salt: int) -> None:
        """Write this rank's input for the call numbered `salt`."""
        blocks = self.collective.input_blocks(self.spec, self.rank, seed=self.seed, salt=salt)
        if self._generate(array, blocks, invert=False):
            return
        self._write(array, self.collective.input_chunks(self.spec, self.rank, seed=self.seed, salt=salt))

    def poison(self, array: Array, salt: int) -> None:
        """Make every byte of the output wrong for the call numbered `salt`."""
        if self._generate(array, self._expected_blocks(salt), invert=True):
            return
        expected = self.collective.expected_chunks(self.spec, self.rank, seed=self.seed, salt=salt)
        self._write(array, (np.bitwise_not(chunk) for chunk in expected))

    def count_wrong(self, array: Array, salt: int) -> int:
        """Elements of this rank's output that differ from what the call numbered `salt` must give."""
        wrong = 0
        offset = 0
        itemsize = self.spec.itemsize
        blocks, generator = self._expected_blocks(salt), self.transport.device.generator
        if blocks is not None and generator is not None:
            for key, nbytes in blocks:
                wrong += generator.count_wrong(array, offset, key, nbytes, itemsize)
                offset += nbytes
            return wrong
        carry = np.empty(0, dtype=bool)  # bytes of an element that two chunks share
        for chunk in self.collective.expected_chunks(self.spec, self.rank, seed=self.seed, salt=salt):
            differs = self.transport.download(array, offset, chunk.size) != chunk
            offset += chunk.size
            if not carry.size and chunk.size % itemsize == 0 and not differs.any():
                continue
            differs = np.concatenate([carry, differs]) if carry.size else differs
            whole = differs.size // itemsize * itemsize
            wrong += int(differs[:whole].reshape(-1, itemsize).any(axis=1).sum())
            carry = differs[whole:]
        return wrong

    def _expected_blocks(self, salt: int) -> Iterator[Block] | None:
        return self.collective.expected_blocks(self.spec, self.rank, seed=self.seed, salt=salt)

    def _generate(self, array: Array, blocks: Iterable[Block] | None, *, invert: bool) -> bool:
        """Let the device write `blocks`, if it can."""
        generator = self.transport.device.generator
        if blocks is None or generator is None:
            return False
        offset = 0
        for key, nbytes in blocks:
            generator.fill(array, offset, key, nbytes, invert=invert)
            offset += nbytes
        return True

    def _write(self, array: Array, chunks: Iterator[Bytes]) -> None:
        offset = 0
        for chunk in chunks:
            self.transport.upload(array, offset, chunk)
            offset += chunk.size
