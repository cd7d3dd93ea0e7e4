"""What pairs of launches say: the ratio, the control of the same arm against itself, and what could have been found."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from commbench import stats
from commbench.stats import LEVEL, Floats, Ratio, Verdict

BASELINE, CANDIDATE = "baseline", "candidate"
ARMS = (BASELINE, CANDIDATE)
MOST_ROUNDS = 60  # where nobody says how many: after each of them the answer may be looked at
# Of an interval that is looked at after every round up to MOST_ROUNDS. It then misses the ratio at any of them in 3.7 %
# of cases (40,000 simulated: `make bench ARGS=ab`), whatever stops it: Wilcoxon's signed ranks have the same
# distribution over all rounds together, whatever that of the noise is, as long as that is symmetric.
LOOKED_AT = 0.005
_CONTROL = 0.01  # how often the control may fail by chance
_FOUND = 0.84  # the normal distribution's 80 % point: a difference that is found in 4 of 5 comparisons


class OfArm(Protocol):
    """One launch of one arm. `cost` is what is compared: a time, or anything else of which less is better."""

    @property
    def arm(self) -> str: ...

    @property
    def round(self) -> int: ...

    @property
    def cost(self) -> float: ...


L = TypeVar("L", bound=OfArm)


class Resolution(NamedTuple):
    """found: the smallest relative difference that would be found in 4 of 5 comparisons, None where nobody knows yet.

    more: rounds that it takes beyond those to find `wanted`; 0 where it would be found.
    """

    found: float | None
    wanted: float
    more: int | None

    def __str__(self) -> str:
        """`it resolves 3.1 % at this noise; 14 more rounds for 1 %`."""
        if self.found is None or self.more is None:
            return ""
        text = f"it resolves {100 * self.found:.2g} % at this noise"
        if self.more:
            text += f"; {self.more} more round{'s' * (self.more != 1)} for {100 * self.wanted:g} %"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """ratio: the baseline's cost over the candidate's, round by round: above 1 the candidate is better.

    control: the same of launches of one arm that followed each other, turned as pairs of arms are: 1 but for chance.
    level: how often the interval misses the ratio. noise: by how much a pair's ratio differs from that of another.
    """

    rounds: int
    ratio: Ratio
    level: float
    noise: float | None
    control: Ratio | None

    @property
    def controlled(self) -> bool:
        """Whether launches of one arm are alike: where they are not, no verdict means anything."""
        return stats.verdict(*_ends(self.control), p=0.0) in (Verdict.NO_DIFFERENCE, Verdict.NOT_ESTIMABLE)

    @property
    def verdict(self) -> Verdict:
        if not self.controlled:
            return Verdict.NOT_ESTIMABLE
        return stats.verdict(self.ratio.low, self.ratio.high)

    def resolution(self, wanted: float) -> Resolution:
        """Return which difference would have been found, and how many rounds a `wanted` one takes."""
        low, high = self.ratio.low, self.ratio.high
        if low is None or high is None:
            return Resolution(None, wanted, None)
        half = (math.log(high) - math.log(low)) / 2
        found = math.expm1(half * (1 + _FOUND / _quantile(self.level)))
        ahead = self.rounds * (math.log1p(found) / math.log1p(wanted)) ** 2 - self.rounds
        return Resolution(found, wanted, max(0, math.ceil(ahead - 1e-9)))

    def nothing_above(self, part: float) -> bool:
        """Return whether the interval holds 1 and no difference of more than `part`."""
        low, high = self.ratio.low, self.ratio.high
        return low is not None and high is not None and 1 / (1 + part) <= low <= 1 <= high <= 1 + part


def _ends(ratio: Ratio | None) -> tuple[float | None, float | None]:
    return (None, None) if ratio is None else (ratio.low, ratio.high)


def _quantile(level: float) -> float:
    """Return the normal distribution's two-sided quantile: 1.96 for 5 %."""
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erfc(middle / math.sqrt(2)) > level else (low, middle)
    return low


def order(number: int) -> tuple[str, ...]:
    """Return the arms of a round as they are launched: by turns, so that what drifts cancels."""
    return ARMS if number % 2 == 0 else ARMS[::-1]


def whole(launches: Sequence[L]) -> list[tuple[L, L]]:
    """Return baseline and candidate of each round that has both; a launch that was made again replaces the first."""
    by_arm = {arm: {one.round: one for one in launches if one.arm == arm and one.round >= 0} for arm in ARMS}
    rounds = sorted(by_arm[BASELINE].keys() & by_arm[CANDIDATE].keys())
    return [(by_arm[BASELINE][number], by_arm[CANDIDATE][number]) for number in rounds]


def compare(launches: Sequence[OfArm], *, looked_at: bool) -> Paired | None:
    """Compare the launches of both arms, None without a whole round.

    looked_at: whether somebody looks after every round, and stops when it suits.
    """
    rounds = whole(launches)
    if not rounds:
        return None
    logs = np.log([one.cost / two.cost for one, two in rounds])
    # Before the first look that can say anything, nobody has looked: the end of a budget is the only one.
    level = LOOKED_AT if looked_at and stats.paired_ratio(logs, LOOKED_AT).interval is not None else LEVEL
    turned = _control(rounds)
    return Paired(
        rounds=len(rounds),
        ratio=stats.paired_ratio(logs, level),
        level=level,
        noise=float(np.std(logs, ddof=1)) if len(rounds) > 1 else None,
        control=stats.paired_ratio(turned, _CONTROL) if turned.size else None,
    )


def _control(rounds: Sequence[tuple[OfArm, OfArm]]) -> Floats:
    """Return the logarithms of ratios of one arm's launches that followed each other, at the ends of rounds.

    Rounds are AB, BA, AB, ..: B of the first and B of the second are as near to each other as A and B of a round. Each
    second is turned round, as rounds are: what drifts cancels here where it cancels there.
    """
    logs = []
    for one, two in itertools.pairwise(rounds):
        if two[0].round != one[0].round + 1:  # a round between them was lost
            continue
        arm = ARMS.index(order(one[0].round)[-1])
        logs.append(math.log(one[arm].cost / two[arm].cost) * (-1) ** one[0].round)
    return np.array(logs)
