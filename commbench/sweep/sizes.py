"""Which sizes are measured: from one to another by a factor, or a list."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from commbench.errors import UsageError
from commbench.sweep.keys import SIZE_KEYS
from commbench.units import parse_size

_MOST = 10_000
_RANGE = ("sizes.min", "sizes.max", "sizes.factor")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes. `given`: the list in place of the range, ascending; empty: there is none."""

    min: int
    max: int
    factor: float = 2.0
    given: tuple[int, ...] = ()

    @property
    def bytes(self) -> list[int]:
        """Return bytes, ascending, before rounding to what a collective can split."""
        if self.given:
            return [*self.given]
        sizes = []
        size = float(self.min)
        while size <= self.max:
            sizes.append(int(size))
            size *= self.factor
        return sizes

    def as_keys(self) -> dict[str, Any]:
        keys: dict[str, Any] = {"min": self.min, "max": self.max, "factor": self.factor}
        return {**keys, "list": [*self.given]} if self.given else keys


def read_sizes(flat: Mapping[str, Any], typed: Sequence[str]) -> Sizes:
    """Return the sizes that keys mean. typed: keys that the user has set. Raises `UsageError`."""
    factor = SIZE_KEYS["sizes.factor"].read("sizes.factor", flat["sizes.factor"])
    given = flat.get("sizes.list")
    ranged = [key for key in _RANGE if key in typed]
    if given is not None and ranged and "sizes.list" in typed:
        raise UsageError(f"sizes.list and {ranged[0]} are both set", hint="a list, or a range: leave one of them out")
    if given is not None and not ranged:  # a range that the user types replaces a recipe's list
        items = list(given) if isinstance(given, list | tuple) else [given]
        if not items or None in items:
            raise UsageError("sizes.list is empty", hint="sizes.list=1K,1M,256M")
        sizes = sorted({parse_size(item) for item in items})
        _check_smallest("sizes.list", sizes[0])
        return Sizes(sizes[0], sizes[-1], given=tuple(sizes))
    smallest, largest = parse_size(flat["sizes.min"]), parse_size(flat["sizes.max"])
    _check_smallest("sizes.min", smallest)
    if smallest > largest:
        raise UsageError(
            f"sizes.min {flat['sizes.min']} is above sizes.max {flat['sizes.max']}", hint="swap -b and -e, or raise -e"
        )
    if factor <= 1 and smallest != largest:
        raise UsageError(f"sizes.factor is {flat['sizes.factor']}", hint="a factor above 1, e.g. 2 or 4")
    if smallest == largest:
        return Sizes(smallest, largest, 2.0)
    count = 1 + math.log(largest / smallest) / math.log(factor)
    if count > _MOST:
        raise UsageError(
            f"sizes.factor {flat['sizes.factor']} makes {count:.0f} sizes", hint=f"a factor that makes {_MOST} at most"
        )
    return Sizes(smallest, largest, factor)


def _check_smallest(key: str, size: int) -> None:
    if size < 1:
        raise UsageError(f"{key} has {size}", hint="the smallest size is 1 byte")
