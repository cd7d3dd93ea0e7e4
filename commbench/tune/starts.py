"""Settings of the start of ranks (environment, binding): which of two starts is better over all sizes together?

Each start is judged by one arm at each size, the best that the search has found under it, fixed before the launches
that confirm it. To let each launch have the best of several arms would make any setting look faster: the least of
several noisy times is below each of them. A start has to beat the default one twice: the arms that the search has found
under the default, so that an algorithm that is faster under both is no gain of the setting; and its own algorithms
under the default, so that what the search has missed there is none either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from commbench.records import Setup
from commbench.stats import Floats
from commbench.tune import ProcessGroup
from commbench.tune.claims import Claim, claim, observe
from commbench.variables import CONTROL

Times = Mapping[ProcessGroup, float]  # median time of each launch, microseconds


def control_start(setup: Setup) -> Setup:
    """Return the same start once more, in launches of its own: with a variable that nobody reads."""
    return replace(setup, env={**setup.env, CONTROL: "1"})


def compare_starts(sizes: Sequence[tuple[Times, Times]]) -> Claim:
    """Return the claim that the second start is faster over all sizes: of each size the times of both starts' arms."""
    return claim(observe_starts(sizes))


def observe_starts(sizes: Sequence[tuple[Times, Times]], calls: Sequence[float | None] = ()) -> Floats:
    """Return the logarithms of the first start's times / the second's: of each size the times of both starts' arms.

    One observation is a round: of either start the mean over sizes of the logarithms of times, all of one process
    group. A size at which the first has no times does not count; where only the second has none, nothing is claimed.

    `calls`: how often a step of a program makes each; where that is known, an observation is the time of a step's.
    """
    known = [(pair, often) for pair, often in zip(sizes, calls or [None] * len(sizes), strict=True) if pair[0]]
    often = [often for _, often in known]
    return observe(*(_over_sizes([pair[arm] for pair, _ in known], often) for arm in (0, 1)))


def _over_sizes(sizes: Sequence[Times], calls: Sequence[float | None]) -> dict[int, float]:
    """Return by round what one process group took over all sizes; nothing where none has them all."""
    groups = sorted(set.intersection(*({*times} for times in sizes))) if sizes else []
    return {group.round: over_sizes([times[group] for times in sizes], calls) for group in groups}


def over_sizes(times_us: Sequence[float], calls: Sequence[float | None]) -> float:
    """Return the time of all calls of a step, or where their number is not known the geometric mean of the times."""
    known = [often for often in calls if often is not None]
    if len(known) == len(times_us) and any(known):
        return sum(often * time_us for often, time_us in zip(known, times_us, strict=True) if often)
    return math.exp(float(np.mean([math.log(time_us) for time_us in times_us])))


def weaker(one: Claim, two: Claim) -> Claim:
    """Return the claim that holds only where both do."""
    least = min(one, two, key=lambda claim: -math.inf if claim.low is None else claim.low)
    p = None if one.p is None or two.p is None else max(one.p, two.p)
    return replace(least, p=p, pairs=min(one.pairs, two.pairs))


def describe_start(setup: Setup) -> str:
    """Return the settings of a start in words: `binding=pci, NCCL_ALGO=Ring`."""
    words = [setup.binding_text, *(f"{name}={value}" for name, value in setup.env.items())]
    return ", ".join(word for word in words if word) or "the defaults"
