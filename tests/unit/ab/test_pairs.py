"""Pairs of launches: the ratio, its control, what could have been found, and that chance is not called a difference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from commbench.ab import pairs
from commbench.ab.pairs import BASELINE, CANDIDATE, LOOKED_AT, MOST_ROUNDS
from commbench.stats import LEVEL, Verdict


@dataclass(frozen=True)
class Launch:
    arm: str
    round: int
    cost: float


def launches(logs: np.ndarray, gain: float = 1.0, drift: float = 0.0) -> list[Launch]:
    """Those of rounds, in their order; logs: the noise of each launch, [rounds, 2]. drift: from launch to launch."""
    found = []
    for number, noise in enumerate(logs):
        for place, arm in enumerate(pairs.order(number)):
            own = 1 / gain if arm == CANDIDATE else 1.0
            found.append(Launch(arm, number, own * math.exp(noise[place] + drift * (2 * number + place))))
    return found


def noise(rounds: int, part: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, part, (rounds, 2))


def test_a_gain_is_found_and_drift_cancels() -> None:
    for drift in (0.0, 0.05):
        found = pairs.compare(launches(noise(10, 0.02), 1.15, drift), looked_at=False)
        assert found is not None and found.verdict is Verdict.FASTER and found.controlled
        assert found.ratio.low is not None and found.ratio.high is not None
        assert found.ratio.low < 1.15 < found.ratio.high < 1.25 and found.level == LEVEL
    slower = pairs.compare(launches(noise(10, 0.02), 1 / 1.15), looked_at=False)
    assert slower is not None and slower.verdict is Verdict.SLOWER


def test_few_rounds_have_no_verdict() -> None:
    assert pairs.compare([], looked_at=False) is None
    few = pairs.compare(launches(noise(5, 0.01), 2.0), looked_at=False)
    assert few is not None and few.verdict is Verdict.NOT_ESTIMABLE and str(few.resolution(0.01)) == ""


def test_whoever_looks_after_every_round_sees_a_wider_interval() -> None:
    """But for the rounds at which no look could say anything."""
    data = launches(noise(10, 0.05), 1.02)
    one, often = pairs.compare(data, looked_at=False), pairs.compare(data, looked_at=True)
    assert one is not None and often is not None and often.level == LOOKED_AT
    assert often.ratio.low < one.ratio.low < one.ratio.high < often.ratio.high  # type: ignore[operator]
    early = pairs.compare(data[:16], looked_at=True)
    assert early is not None and early.rounds == 8 and early.level == LEVEL


def test_looks_after_every_round_find_nothing_in_19_of_20_where_there_is_nothing() -> None:
    """The whole way to 60 rounds, heavy tails: at any of the looks in 3.7 % (40,000 simulated)."""
    rng = np.random.default_rng(2)
    false = 0
    for _ in range(300):
        logs = rng.standard_t(3, MOST_ROUNDS)
        false += any(_excludes_zero(logs[:rounds]) for rounds in range(6, MOST_ROUNDS + 1))
    assert false <= 21  # of 300 at 5 %: more in 6 of 100; at 3.7 % in 3 of 1000


def _excludes_zero(logs: np.ndarray) -> bool:
    """As `paired_ratio` at LOOKED_AT, by the statistic itself, which is fast."""
    ranks = np.argsort(np.argsort(np.abs(logs))) + 1
    low = min(ranks[logs > 0].sum(), ranks[logs < 0].sum())
    return bool(low < pairs.stats._signed_rank_depth(len(logs), LOOKED_AT))


def test_the_short_way_of_the_test_above_is_that_of_the_interval() -> None:
    rng = np.random.default_rng(1)
    for shift in (0.0, 1.0, -2.0):
        for rounds in (8, 9, 20):
            logs = rng.normal(shift, 1, rounds)
            ratio = pairs.stats.paired_ratio(logs, LOOKED_AT)
            out = ratio.low is not None and ratio.high is not None and not ratio.low <= 1 <= ratio.high
            assert out == _excludes_zero(logs)


def test_a_control_that_fails_takes_the_verdict() -> None:
    """What has the period of the turns, as a neighbour who works in every second pair of launches."""
    data = launches(noise(12, 0.002), 1.1)
    good = pairs.compare(data, looked_at=False)
    assert good is not None and good.controlled and good.verdict is Verdict.FASTER
    disturbed = [Launch(one.arm, one.round, one.cost * (1.05 if place % 4 < 2 else 1.0))
                 for place, one in enumerate(data)]  # fmt: skip
    found = pairs.compare(disturbed, looked_at=False)
    assert found is not None and not found.controlled and found.verdict is Verdict.NOT_ESTIMABLE


@pytest.mark.parametrize("part", [0.02, 0.08])
def test_what_it_says_that_it_resolves_is_found_in_4_of_5(part: float) -> None:
    told = pairs.compare(launches(noise(20, part, seed=5)), looked_at=False)
    assert told is not None
    resolution = told.resolution(0.01)
    assert resolution.found is not None and resolution.more
    found = [
        pairs.compare(launches(noise(20, part, seed), 1 + resolution.found), looked_at=False) for seed in range(40)
    ]
    hits = sum(one is not None and one.verdict is Verdict.FASTER for one in found)
    assert 24 <= hits <= 40
    text = str(resolution)
    assert f"{resolution.more} more rounds for 1 %" in text and "at this noise" in text


def test_no_difference_above_a_part() -> None:
    near = pairs.compare(launches(noise(20, 0.001)), looked_at=True)
    assert near is not None and near.nothing_above(0.01) and not near.nothing_above(0.0001)
    assert near.resolution(0.01).more == 0
    gain = pairs.compare(launches(noise(20, 0.001), 1.005), looked_at=True)
    assert gain is not None and not gain.nothing_above(0.01), "it is one, however small"


def test_a_launch_that_is_made_again_replaces_the_first() -> None:
    data = launches(noise(3, 0.0))
    again = [Launch(BASELINE, 2, 5.0), Launch(CANDIDATE, 2, 5.0)]
    found = pairs.whole([*data[:-1], *again])
    assert len(found) == 3 and found[-1] == tuple(again)
    assert len(pairs.whole(data[:-1])) == 2
