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


def observe_starts(sizes: Sequence[tuple[Times, Times]]) -> Floats:
    """Return the logarithms of the first start's times / the second's: of each size the times of both starts' arms.

    One observation is a round: of either start the mean over sizes of the logarithms of times, all of one process
    group. A size at which the first has no times does not count; where only the second has none, nothing is claimed.
    """
    known = [(first, second) for first, second in sizes if first]
    return observe(*(_over_sizes([pair[arm] for pair in known]) for arm in (0, 1)))


def _over_sizes(sizes: Sequence[Times]) -> dict[int, float]:
    """Return by round the geometric mean of what one process group took at all sizes; nothing where none has them."""
    groups = sorted(set.intersection(*({*times} for times in sizes))) if sizes else []
    return {group.round: math.exp(float(np.mean([math.log(times[group]) for times in sizes]))) for group in groups}


def weaker(one: Claim, two: Claim) -> Claim:
    """Return the claim that holds only where both do."""
    least = min(one, two, key=lambda claim: -math.inf if claim.low is None else claim.low)
    p = None if one.p is None or two.p is None else max(one.p, two.p)
    return replace(least, p=p, pairs=min(one.pairs, two.pairs))


def describe_start(setup: Setup) -> str:
    """Return the settings of a start in words: `binding=pci, NCCL_ALGO=Ring`."""
    words = [setup.binding_text, *(f"{name}={value}" for name, value in setup.env.items())]
    return ", ".join(word for word in words if word) or "the defaults"
