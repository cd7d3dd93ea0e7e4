"""What is compared: the time of a step, a number that the program prints, or how long the whole program takes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from commbench.ab.turns import ArmFailed
from commbench.errors import UsageError

STEP, WALL = "step", "wall"  # in place of a pattern
_WORDS = {STEP: "step time", WALL: "wall time"}
_LEAST_STEPS = 5  # of a launch, to compare its steps where nobody says what to compare
_WARM_PART, _WARM_LEAST = 5, 2  # of the values of a launch: a fifth, and two at the least, warm up
_MOST_BYTES = 1 << 30  # of a launch's output that is looked through, from its end


class Value(NamedTuple):
    """A launch's value: the median of that of `steps`, without the first ones, which warm up."""

    value: float
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """pattern: what is looked for in the output, or STEP, or WALL; "": what the first launch has, STEP or else WALL.

    warmup: values that do not count, None: a fifth. higher: whether more of it is better.
    """

    pattern: str = ""
    warmup: int | None = None
    higher: bool = False

    def __post_init__(self) -> None:
        if self.timed:
            if self.higher:
                raise UsageError("better=higher, and what is compared is a time", hint="--metric 'tokens/s: ([0-9.]+)'")
            return
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise UsageError(f"--metric {self.pattern!r}: {error}", hint=_HINT) from error
        if groups != 1:
            raise UsageError(f"--metric {self.pattern!r} has {groups} groups, and one is the number", hint=_HINT)

    @property
    def timed(self) -> bool:
        return self.pattern in ("", STEP, WALL)

    @property
    def records(self) -> bool:
        """Return whether launches have to be recorded."""
        return self.pattern in ("", STEP)

    @property
    def text(self) -> str:
        """Return what is compared, in words."""
        return _WORDS.get(self.pattern or WALL, f"what matches {self.pattern!r}")

    @property
    def unit(self) -> str:
        return "s" if self.timed else ""

    def settled(self, steps: Sequence[float]) -> Metric:
        """Return what is compared once the first launch has made `steps`."""
        return self if self.pattern else replace(self, pattern=STEP if len(steps) >= _LEAST_STEPS else WALL)

    def cost(self, value: float) -> float:
        """Return a number of which less is better."""
        return 1 / value if self.higher else value

    def of(self, seconds: float, log: Path, steps: Sequence[float] = ()) -> Value:
        """Return the value of a launch, from its time, its output, the seconds of its steps.

        Raises `ArmFailed` where it has none.
        """
        if self.pattern in ("", WALL):
            return Value(seconds, 1)
        if self.pattern == STEP:
            if not steps:
                raise ArmFailed("no step was seen: no optimizer of torch has stepped in a process that exchanges")
            return steady(steps, self.warmup)
        values = _numbers(self.pattern, log)
        if not values:
            raise ArmFailed(f"its output has nothing that matches {self.pattern!r}")
        found = steady(values, self.warmup)
        if not (math.isfinite(found.value) and found.value > 0):
            raise ArmFailed(f"{self.pattern!r} gives {found.value:g}, and a ratio needs a number above 0")
        return found


_HINT = r"a regular expression with one group around the number: --metric 'step took ([0-9.]+) ms'"


def steady(values: Sequence[float], warmup: int | None) -> Value:
    """Return the median of what follows the warm-up; where nothing would, of the last value."""
    skipped = max(_WARM_LEAST, len(values) // _WARM_PART) if warmup is None else warmup
    later = values[min(skipped, len(values) - 1) :]
    return Value(float(np.median(later)), len(later))


def _numbers(pattern: str, log: Path) -> list[float]:
    """Return what the group holds wherever the pattern matches, line by line. Raises `ArmFailed` for no number."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _MOST_BYTES))
        found = [match[1] for line in file for match in re.finditer(pattern, line.decode("utf-8", "replace"))]
    try:
        return [float(text.replace(",", "")) for text in found if text is not None]
    except ValueError as error:
        raise ArmFailed(f"{pattern!r} gives what is not a number: {error}") from error
