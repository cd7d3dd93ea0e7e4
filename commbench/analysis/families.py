"""Verdicts of one table or one comparison are a family: where nothing differs, any of them may be false in 5 % at most.

Each p is adjusted by Westfall and Young's step-down procedure ("Resampling-Based Multiple Testing", 1993): Holm's, with
the joint distribution of all statistics by resampling in place of a bound. Of two arms that were measured side by side
the signs of a launch's differences are turned, in all cases alike; of two runs launches are dealt out anew. So what
the cases of a launch have in common counts, no distribution of times is assumed, and six launches can say something of
a family of any size; a rank test of each case by itself could not, as its least p is 1/32 before any correction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from commbench.stats import Floats

_DRAWS = 4096  # turns or deals: all there are, or so many at random
_CELLS = 2_000_000  # of a matrix of draws x cases in memory
_PART = 0.25  # this quantile of all variances is added to each one: few launches have a small one by chance
_SAME = 1 - 1e-9  # what rounding makes of equal statistics
_LEAST = 1e-9  # of a standard error: logarithms of times are not known better

# From draws to the difference of each case and the variance of that difference, draws x cases both.
_Moments = Callable[[Floats], tuple[Floats, Floats]]
Names = Sequence[Hashable]  # of the launches (process groups) of a case


class _Block(NamedTuple):
    """Cases of the same launches: which, the draws that all of them share, and which columns of these are theirs."""

    members: list[int]
    draws: Floats
    columns: list[int]
    moments: _Moments


def paired(logs: Sequence[Floats], launches: Sequence[Names] | None = None) -> list[float]:
    """Return adjusted two-sided p that the logarithms of ratios are around 0: a case each, 2 launches or more of each.

    `launches` names the process group of each value: values of the same one have their signs turned together. None:
    values at the same place are of the same one.
    """
    names = [tuple(range(values.size)) for values in logs] if launches is None else [tuple(of) for of in launches]
    column = {name: place for place, name in enumerate(dict.fromkeys(itertools.chain.from_iterable(names)))}
    signs = _signs(len(column))
    blocks = []
    for of, members in _by(names).items():
        moments = _of_signs(np.stack([logs[index] for index in members], axis=1))
        blocks.append(_Block(members, signs, [column[name] for name in of], moments))
    return _step_down(blocks, len(logs))


def unpaired(
    before: Sequence[Floats], after: Sequence[Floats], launches: Sequence[tuple[Names, Names]] | None = None
) -> list[float]:
    """Return adjusted two-sided p that the logarithms of times of two runs are alike: a case each.

    `launches` names the process groups of each case in both runs, as in `paired`.
    """
    sizes = [(one.size, two.size) for one, two in zip(before, after, strict=True)]
    names = sizes if launches is None else [(tuple(one), tuple(two)) for one, two in launches]
    found = _by(names)
    blocks = []
    for place, members in enumerate(found.values()):
        first, second = sizes[members[0]]
        moments = _of_deals(np.stack([np.concatenate([before[i], after[i]]) for i in members], axis=1), first)
        blocks.append(
            _Block(members, _deals(first, second, place, len(found) == 1), list(range(first + second)), moments)
        )
    return _step_down(blocks, len(before))


def _by(names: Sequence[Hashable]) -> dict[Any, list[int]]:
    """Return the indices of equal names."""
    members: dict[Any, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(name, []).append(index)
    return members


def _signs(launches: int) -> Floats:
    """Return a sign for each launch, draws x launches; the first draw leaves all as they are."""
    if 2**launches <= _DRAWS:
        return np.array(list(itertools.product((1.0, -1.0), repeat=launches)))
    signs: Floats = np.random.default_rng(launches).choice((1.0, -1.0), size=(_DRAWS, launches))
    signs[0] = 1.0
    return signs


def _deals(first: int, second: int, block: int, exact: bool) -> Floats:
    """Return 1 for each launch that is dealt to the first run, draws x launches of both; the first is as it was."""
    launches = first + second
    if exact and math.comb(launches, first) <= _DRAWS:
        deals = np.zeros((math.comb(launches, first), launches))
        for row, chosen in enumerate(itertools.combinations(range(launches), first)):
            deals[row, chosen] = 1.0
        return deals
    rng = np.random.default_rng((first, second, block))
    deals = np.zeros((_DRAWS, launches))
    deals[:, :first] = 1.0
    return np.concatenate([deals[:1], rng.permuted(deals[1:], axis=1)])


def _of_signs(cases: Floats) -> _Moments:
    launches, squares = len(cases), (cases**2).sum(axis=0)

    def moments(signs: Floats) -> tuple[Floats, Floats]:
        means = signs @ cases / launches
        return means, np.maximum(squares - launches * means**2, 0.0) / (launches - 1) / launches

    return moments


def _of_deals(cases: Floats, first: int) -> _Moments:
    cases = cases - cases.mean(axis=0)
    squares = cases**2

    def moments(deals: Floats) -> tuple[Floats, Floats]:
        means, variances = [], []
        for deal, launches in ((deals, first), (1.0 - deals, len(cases) - first)):
            mean = deal @ cases / launches
            means.append(mean)
            variances.append(np.maximum(deal @ squares - launches * mean**2, 0.0) / (launches - 1) / launches)
        return means[0] - means[1], variances[0] + variances[1]

    return moments


def _step_down(blocks: Sequence[_Block], count: int) -> list[float]:
    """Return the adjusted p of `count` cases; all blocks have as many draws."""
    if not count:
        return []
    draws = len(blocks[0].draws)

    def statistics(rows: slice) -> Floats:
        differences, variances = np.empty((2, len(range(draws)[rows]), count))
        for block in blocks:
            members = block.members
            differences[:, members], variances[:, members] = block.moments(block.draws[rows][:, block.columns])
        spread = np.sqrt(variances + np.quantile(variances, _PART, axis=1, keepdims=True))
        found: Floats = np.abs(differences) / (spread + _LEAST)
        return found

    observed = statistics(slice(0, 1))[0]
    order = np.argsort(-observed)
    reached = np.zeros(count)
    step = max(1, _CELLS // count)
    for begin in range(0, draws, step):
        drawn = statistics(slice(begin, begin + step))[:, order]
        # The largest of a case and of all that come after it: what came before is decided.
        largest = np.maximum.accumulate(drawn[:, ::-1], axis=1)[:, ::-1]
        reached += (largest >= observed[order] * _SAME).sum(axis=0)
    adjusted = np.empty(count)
    adjusted[order] = np.maximum.accumulate(reached / draws)
    return [float(p) for p in adjusted]
