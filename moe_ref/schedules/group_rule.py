"""Into how many groups a rank's experts are cut: EPS-MoE's rule (arXiv 2410.12247), from measured products.

Smaller groups hide more of the exchange, and cost products their efficiency: a group's product has fewer experts, so
fewer tiles for the same multiprocessors, and each is launched for itself. So the time of products is measured for each
number of groups, not computed, and the pass is predicted from it. A number is taken where the whole pass is shorter by
`GAIN` at least. The paper also asks that products by themselves lose no more than a few percent (`slack`); on an H200
that refuses groups that gain, where the exchange takes longer than products do and hides what these lose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from commbench.errors import UsageError

GAIN = 0.03


class GroupTimes(NamedTuple):
    """Measured microseconds for one number of groups: of each group's exchange, each way, and of its products."""

    exchange_us: float
    products_us: float


class GroupChoice(NamedTuple):
    """groups: how many. pass_us: predicted, by number of groups. why: in words."""

    groups: int
    pass_us: Mapping[int, float]
    why: str


def pass_us(groups: int, times: GroupTimes) -> float:
    """Predict a forward pass: exchanges take turns, the ways there first; products each wait for their rows.

    That is the order in which `ExpertGroups` starts them, and in which one communicator makes them.
    """
    link = groups * times.exchange_us  # until all rows are there
    product = 0.0
    for group in range(groups):
        product = max(product, (group + 1) * times.exchange_us) + times.products_us
        link = max(link, product) + times.exchange_us
    return link


def choose(measured: Mapping[int, GroupTimes], *, slack: float = math.inf) -> GroupChoice:
    """Return how many groups to take, of those that were measured.

    slack: by which part all products together may take longer than in one group. Raises `UsageError` where 1 is not
    among them.
    """
    if 1 not in measured:
        raise UsageError(f"times of {sorted(measured)} groups", hint="1 has to be one of them: what others gain over")
    predicted = {groups: pass_us(groups, times) for groups, times in sorted(measured.items())}
    whole = measured[1].products_us
    slow = {groups for groups, times in measured.items() if groups * times.products_us > (1 + slack) * whole}
    best = min(predicted.keys() - slow, key=lambda groups: (predicted[groups], groups))
    if best == 1 or predicted[best] > predicted[1] / (1 + GAIN):
        left = f"; products lose more than {slack:.0%} in {_numbers(slow)} groups" if slow else ""
        return GroupChoice(1, predicted, f"no number of groups gains {GAIN:.0%}{left}")
    gain = predicted[1] / predicted[best]
    return GroupChoice(best, predicted, f"{best} groups hide exchanges behind products: {gain:.2f}x predicted")


def _numbers(groups: set[int]) -> str:
    return ", ".join(map(str, sorted(groups)))
