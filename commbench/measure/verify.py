"""Correct before fast: every rank recomputes what every block of its output must be.

The output is poisoned first with the complement of the expected bytes, so that no byte is right unless it was
written; the data of calls differ, so that a stale result is wrong everywhere.
"""

from __future__ import annotations

from typing import Any

from commbench.collectives.base import Collective
from commbench.spec import Spec
from commbench.transports.base import Array, Transport
from commbench.transports.device import Difference


class Checker:
    """Knows what one rank of a group sends and must get. `rank` is its place in the group; `seed` the group's own."""

    def __init__(self, transport: Transport, collective: Collective, spec: Spec, rank: int, seed: int) -> None:
        self.transport, self.collective, self.spec, self.rank, self.seed = transport, collective, spec, rank, seed
        self._generator = transport.device.generator
        self.input = collective.input_pattern(spec, rank, seed=seed)
        self.expected = collective.expected_pattern(spec, rank, seed=seed)

    def fill_input(self, array: Array, salt: int) -> None:
        """Write this rank's input for the call numbered `salt`."""
        self._generator.fill(array, self.input, salt, invert=False)

    def poison(self, array: Array, salt: int) -> None:
        """Make every byte of the output wrong for the call numbered `salt`."""
        self._generator.fill(array, self.expected, salt, invert=True)

    def compare(self, array: Array, salt: int) -> Any:
        """Compare the output with what the call numbered `salt` must give; `read` tells what came of it.

        On a GPU this is enqueued, and the host does not wait.
        """
        return self._generator.compare(array, self.expected, salt)

    def read(self, compared: list[Any]) -> list[Difference]:
        """Return what came of several comparisons, in order."""
        return self._generator.read(compared)

    def count_wrong(self, array: Array, salt: int) -> int:
        """Elements of this rank's output that differ from what the call numbered `salt` must give."""
        (found,) = self.read([self.compare(array, salt)])
        return found.elements
