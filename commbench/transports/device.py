"""Where buffers are: the memory of the host, or that of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from commbench.data import CHUNK_BYTES, WORD_BYTES, Pattern, Run
from commbench.machine import memory
from commbench.units import format_size


class Difference(NamedTuple):
    """How a buffer differs from what it must hold: in so many elements, of which the first begins at byte `at`.

    word: the eight bytes there, or fewer at the end of a piece, that follow from one word of the data.
    """

    elements: int = 0
    at: int = -1
    word: bytes = b""


class Generator(Protocol):
    """Makes and checks test data where they are, so that they need not cross the bus."""

    def fill(self, array: Any, pattern: Pattern, salt: int, *, invert: bool) -> None:
        """Write what `pattern` is in the call numbered `salt`, or its complement, into `array`."""
        ...

    def compare(self, array: Any, pattern: Pattern, salt: int) -> Any:
        """Compare `array` with what `pattern` is in the call numbered `salt`, without waiting for a device."""
        ...

    def read(self, compared: list[Any]) -> list[Difference]:
        """Return the outcome of each comparison. Waits for the device."""
        ...


class Device(Protocol):
    generator: Generator

    def missing_memory(self, nbytes: int, ranks: int) -> str:
        """Return in words why each of the `ranks` ranks of this host cannot have `nbytes`; "" if they can."""
        ...

    def cache_bytes(self) -> int:
        """Return the size of the last cache before the memory."""
        ...

    def cache_share(self, ranks: int) -> int:
        """Return how much of it each of the `ranks` ranks of this host has."""
        ...

    def identity(self) -> dict[str, Any]:
        """Which device it is; empty where that is the host."""
        ...

    def condition(self) -> dict[str, Any]:
        """Clock and whatever slows the device down now, as `gpus.condition` has it; empty where nothing is known."""
        ...


_AT_ONCE_BYTES = 4 * CHUNK_BYTES


class HostGenerator:
    """Test data in the host's memory: numpy arrays, and tensors that share their memory with one."""

    def fill(self, array: Any, pattern: Pattern, salt: int, *, invert: bool) -> None:
        whole = np.asarray(array)
        for run, first, last in _in_cache(pattern):
            pattern.make(run.of(whole, first, last), run, first, salt, invert=invert)

    def compare(self, array: Any, pattern: Pattern, salt: int) -> Difference:
        whole, itemsize = np.asarray(array), pattern.itemsize
        found = Difference()
        for run, first, last in _in_cache(pattern):
            seen, right = run.of(whole, first, last), pattern.made(run, first, last, salt)
            widest = np.uint8 if run.width % WORD_BYTES else np.uint64
            if np.array_equal(seen.view(widest), right.view(widest)):
                continue
            differs = (seen != right).reshape(-1, itemsize).any(axis=1)
            elements = found.elements + int(np.count_nonzero(differs))
            if not found.elements:
                row, byte = divmod(int(differs.argmax()) * itemsize, run.width)
                word = byte // WORD_BYTES * WORD_BYTES
                found = Difference(elements, run.at(first + row, byte), seen[row, word : word + WORD_BYTES].tobytes())
            found = found._replace(elements=elements)
        return found

    def read(self, compared: list[Difference]) -> list[Difference]:
        return compared


def _in_cache(pattern: Pattern) -> Iterator[tuple[Run, int, int]]:
    """Parts of a pattern, each small enough to stay in cache between its making and its use."""
    for run in pattern.runs:
        rows = max(1, _AT_ONCE_BYTES // run.width)
        for first in range(0, run.rows, rows):
            yield run, first, min(run.rows, first + rows)


class Host:
    """The host's memory, which all of its ranks share."""

    generator = HostGenerator()

    def missing_memory(self, nbytes: int, ranks: int) -> str:
        available = memory.available_bytes()
        if nbytes * ranks <= available:
            return ""
        return f"{ranks} ranks x {format_size(nbytes)} on this host, {format_size(available)} available"

    def cache_bytes(self) -> int:
        return memory.last_level_cache_bytes()

    def cache_share(self, ranks: int) -> int:
        return self.cache_bytes() // ranks

    def identity(self) -> dict[str, Any]:
        return {}

    def condition(self) -> dict[str, Any]:
        return {}
