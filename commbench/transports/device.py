"""Where buffers are: the memory of the host, or that of a GPU."""

from __future__ import annotations

from typing import Any, Protocol

from commbench.machine import memory
from commbench.units import format_size


class Generator(Protocol):
    """Makes and checks test data where they are, so that they need not cross the bus. The data are those of `data`."""

    def fill(self, array: Any, offset: int, key: int, nbytes: int, *, invert: bool) -> None:
        """Write the block of `key`, or its complement, into `array` from byte `offset`."""
        ...

    def count_wrong(self, array: Any, offset: int, key: int, nbytes: int, itemsize: int) -> int:
        """Elements of `array`, from byte `offset`, that differ from those of the block of `key`."""
        ...


class Device(Protocol):
    generator: Generator | None  # None: data come from the host

    def missing_memory(self, nbytes: int, ranks: int) -> str:
        """Return in words why each of the `ranks` ranks of this host cannot have `nbytes`; "" if they can."""
        ...

    def cache_bytes(self) -> int:
        """Return the size of the last cache before the memory."""
        ...

    def identity(self) -> dict[str, Any]:
        """Which device it is; empty where that is the host."""
        ...

    def condition(self) -> dict[str, Any]:
        """Clock and whatever slows the device down now, as `gpus.condition` has it; empty where nothing is known."""
        ...


class Host:
    """The host's memory, which all of its ranks share."""

    generator = None

    def missing_memory(self, nbytes: int, ranks: int) -> str:
        available = memory.available_bytes()
        if nbytes * ranks <= available:
            return ""
        return f"{ranks} ranks x {format_size(nbytes)} on this host, {format_size(available)} available"

    def cache_bytes(self) -> int:
        return memory.last_level_cache_bytes()

    def identity(self) -> dict[str, Any]:
        return {}

    def condition(self) -> dict[str, Any]:
        return {}
