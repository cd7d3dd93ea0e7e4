"""How the ratio of throughputs of an A/B of a training is predicted before its rounds, with its interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from commbench.profile import Choice
from commbench.profile.table import Curve
from commbench.train.ab import Launched
from commbench.train.ab_expected import ExpectedRatio

_TWO_SIDED = 1.96  # standard deviations of a normal distribution that hold 95 %


class ExchangeTime(NamedTuple):
    """Microseconds that exchanges of one kind are expected to take in a step.

    deviations: what the logarithm of `us` moves by when a cause of errors moves by one standard deviation. A cause is
    anything hashable; times that share it are wrong together, and causes are independent of each other.
    """

    us: float
    deviations: Mapping[Hashable, float]


def predicted(
    calibration: Launched, before: Sequence[ExchangeTime], after: Sequence[ExchangeTime]
) -> ExpectedRatio | None:
    """Return the ratio of throughputs, from one launch of the baseline and what the exchanges of both are expected to
    take; None where no time is expected of the baseline's.

    The launch's step waits for expert layers' exchanges for a part f of its time (`Launched.waited_part`), and these
    are expected to take r = after / before of their time:

        ratio = 1 / (1 - f (1 - r))

    Its interval is by the delta method, on logarithms: ratio x exp(+-1.96 s), with

        s^2 = (ratio (1 - r) s_f)^2 + (ratio f r s_r)^2

    s_f: standard deviation of f, by the spread of the launch's steps. s_r: that of ln r (`ratio_deviation`). What
    launches differ by is not in it, as there is one launch.
    """
    before_us = sum(one.us for one in before)
    if not before_us:
        return None
    part, r = calibration.waited_part, sum(one.us for one in after) / before_us
    ratio = 1 / (1 - part * (1 - r))
    if calibration.waited_half_width is None:
        return ExpectedRatio(value=ratio)
    of_part = part * calibration.waited_half_width / _TWO_SIDED
    deviation = ratio * math.hypot((1 - r) * of_part, part * r * ratio_deviation(before, after))
    if not math.isfinite(deviation):
        return ExpectedRatio(value=ratio)
    width = math.exp(_TWO_SIDED * deviation)
    return ExpectedRatio(value=ratio, low=ratio / width, high=ratio * width)


def ratio_deviation(before: Sequence[ExchangeTime], after: Sequence[ExchangeTime]) -> float:
    """Return the standard deviation of the logarithm of after / before, to first order.

    The square root of the sum over causes of (a - b)^2: a is what the cause moves the logarithm of the sum `after` by,
    the mean of its times' deviations weighted by their microseconds, and b the same of `before`. A cause that moves
    both arms alike cancels. nan where a deviation is.
    """
    moved: dict[Hashable, float] = defaultdict(float)
    for sign, times in ((1, after), (-1, before)):
        total_us = sum(one.us for one in times)
        for one in times:
            for cause, deviation in one.deviations.items():
                moved[cause] += sign * one.us / (total_us or 1.0) * deviation
    return math.hypot(*moved.values())


def default_us(curve: Curve, size: float) -> float | None:
    """Return the default's time at this size, between tuned sizes on a line of logarithms; None where none is known."""
    found = _between(size, {one.size_bytes: one.default_us for choice in curve.choices for one in choice.evidence})
    return None if found is None else math.exp(found)


def gain(curve: Curve, size: float) -> float:
    """Return the gain of the choice at this size over the default: where confirmed, between those sizes as above."""
    its = [one for one in curve.at(int(size)).evidence if one.confirmed]
    return math.exp(_between(size, {one.size_bytes: one.default_us / one.chosen_us for one in its}) or 0.0)


def gain_deviation(choice: Choice, size: float) -> float:
    """Return the standard deviation of the logarithm of `gain`, by the intervals of the choice's evidence.

    0 where the default is taken, nan where a confirmed gain has no interval.
    """
    its = [one for one in choice.evidence if one.confirmed]
    if any(not one.low or one.high is None for one in its):
        return math.nan
    ends: list[Iterable[float | None]] = [[one.low for one in its], [one.high for one in its]]
    low, high = (_between(size, dict(zip([one.size_bytes for one in its], end, strict=True))) or 0.0 for end in ends)
    return (high - low) / (2 * _TWO_SIDED)


def _between(size: float, points: Mapping[int, Any]) -> float | None:
    """The logarithm of a value, from values by size."""
    if not points:
        return None
    sizes = sorted(points)
    return float(np.interp(math.log(max(size, 1.0)), np.log(sizes), np.log([points[size] for size in sizes])))
