"""Tagged: a number with where it is from, which says how far it can be off."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from commbench.stats import Floats

Source = Literal["measured", "declared", "default"]
# Of each source, the factor that 95 % of true values are within, either way. docs/reference/planner.md
SPREADS: dict[Source, float] = {"measured": 1.05, "declared": 1.2, "default": 1.5}
_TWO_SIDED = 1.96  # standard deviations of a normal distribution that hold 95 %


class Tagged(NamedTuple):
    """A number above 0. spread: its own factor, in place of its source's; 1: exact."""

    value: float
    source: Source
    spread: float | None = None

    @property
    def factor(self) -> float:
        """Return the factor that 95 % of true values are within, either way."""
        return SPREADS[self.source] if self.spread is None else self.spread

    @property
    def deviation(self) -> float:
        """Return the standard deviation of the logarithm."""
        return math.log(self.factor) / _TWO_SIDED

    def drawn(self, normal: Floats) -> Floats:
        """Return draws of it from standard normal ones; a 0 among these is the value itself."""
        import numpy as np

        drawn: Floats = self.value * np.exp(self.deviation * normal)
        return drawn
