"""When a confirmation looks at its claims, and what part of the error each look may spend.

To look again and again at 5 % makes claims hold that are none. So the looks share the 5 % (a group-sequential test, its
error spent by the union bound): whatever ends the launches, the chance that any of the looks is wrong is at most the
sum of the shares. Early looks get little, and hold only for gains that are large for the noise; the last one gets what
is left. Which look is the last is decided by the clock, before it is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

_STEPS = ((1, 0.05), (2, 0.1), (4, 0.25))  # times the fewest launches, and the share of the error


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at the claims."""

    launches: int  # that are made by then
    share: float  # of the error
    last: bool


class Looks:
    """The looks of one confirmation."""

    def __init__(self, fewest: int, most: int) -> None:
        """Plan looks from `fewest` launches to `most`."""
        self._fewest, self._most = fewest, most
        self._steps = [(times * fewest, share) for times, share in _STEPS if times * fewest < most]
        self._left = 1.0
        self.made = 0

    def next(self, fits: int) -> Look:
        """Return the next look, where `fits` more launches of what is still open fit into the time.

        It is the last one if the one after it would not fit. The first has the fewest launches at the least.
        """
        reach = min(max(self.made + fits, self._fewest), self._most)
        coming = [step for step in self._steps if step[0] > self.made]
        following = coming[1][0] if len(coming) > 1 else self._most
        last = not coming or reach < following
        launches, share = (reach, self._left) if last else coming[0]
        self._left -= share
        self.made = launches
        return Look(launches=launches, share=share, last=last)
