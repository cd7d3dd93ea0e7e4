"""Verdicts that are given together: nothing by chance, and what is there is found."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from commbench import stats
from commbench.analysis import families
from commbench.sweep.keys import LISTED
from tests.support.planted_verdicts import VERDICTS, comparison, noisy, table


def false_tables(seeds: range, launches: int) -> int:
    tables = (table(seed, launches=launches, noise=0.05)[0] for seed in seeds)
    return sum(any(one.verdict in VERDICTS for one in found.values()) for found in tables)


def test_tables_in_which_nothing_differs_have_no_verdict() -> None:
    """By each interval alone, 14 of 30 had one."""
    assert false_tables(range(30), 12) <= 4


def test_ten_percent_in_one_of_24_cases_are_found() -> None:
    """5 % of noise, and as many launches as a sweep has where nothing sets them."""
    launches = LISTED["launches"].default
    found = [table(seed, launches=launches, noise=0.05, gain=0.1)[1].verdict for seed in range(20)]
    assert found.count(stats.Verdict.FASTER) >= 16


def test_two_runs_in_which_nothing_differs_have_no_regression() -> None:
    runs = [comparison(seed, launches=6, noise=0.05) for seed in range(60)]
    assert sum(any(one.verdict in VERDICTS for one in found) for found in runs) <= 6  # 10 by each interval alone
    assert sum(any(one.regressed(0.05) for one in found) for found in runs) <= 4


def test_a_regression_is_one_for_certain() -> None:
    """What took 6 % longer is slower; that it is by more than 5 % nobody knows."""
    slower = [comparison(seed, launches=12, noise=0.01, loss=0.3)[0] for seed in range(5)]
    assert all(one.regressed(0.05) for one in slower if one.verdict == "slower")
    (item,) = comparison(3, launches=12, noise=0.05, loss=0.0)[:1]
    from dataclasses import replace

    close = replace(item, ratio=1 / 1.06, low=1 / 1.09, high=1 / 1.03, p=0.001)
    assert close.verdict == "slower" and not close.regressed(0.05) and close.regressed(0.02)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launches", [6, 12])
def test_of_400_tables_without_a_difference_5_percent_have_a_verdict(launches: int) -> None:
    assert false_tables(range(400), launches) <= 20 + 9  # two standard deviations


def test_one_case_is_the_exact_test() -> None:
    same = np.array([0.1, 0.11, 0.12, 0.13, 0.14, 0.15])
    assert families.paired([same]) == [2 / 64]
    assert families.paired([np.append(same, [0.2] * 4)]) == [2 / 1024]
    assert families.unpaired([same], [same + 1]) == [2 / 924]
    assert families.paired([np.array([-1.0, 1, -1, 1, -1, 1])]) == [1.0]
    assert families.paired([]) == families.unpaired([], []) == []


def test_a_case_more_takes_nothing_from_one_that_is_certain() -> None:
    """Holm's step down: what is decided is left out of what is compared with the next."""
    rng = np.random.default_rng(1)
    certain = 0.7 + rng.normal(0, 0.01, 6)
    others = [rng.normal(0, 0.05, 6) for _ in range(30)]
    p = families.paired([*others, certain])
    assert p[-1] == 2 / 64 and min(p[:-1]) > 0.05
    assert families.paired([certain, 2 * certain]) == [2 / 64, 2 / 64]


def test_p_never_falls_below_that_of_a_case_alone_and_keeps_their_order() -> None:
    logs = list(noisy(7, 10, 12, 0.05).T + np.linspace(0, 0.15, 12)[:, None])
    together, alone = families.paired(logs), [families.paired([one])[0] for one in logs]
    assert all(one >= two - 0.02 for one, two in zip(together, alone, strict=True))
    assert all(together[a] <= together[b] for a, b in itertools.pairwise(np.argsort(together)))


def test_cases_of_unlike_launches_are_one_family() -> None:
    rng = np.random.default_rng(3)
    logs = [rng.normal(0.3, 0.05, 8), rng.normal(0, 0.05, 12), rng.normal(0, 0.05, 6)]
    p = families.paired(logs)
    assert p[0] < 0.05 < min(p[1:])
    assert families.paired(logs) == p, "the same every time"
    before, after = [one + 1 for one in logs], [rng.normal(1.3, 0.05, 9), *(one + 1 for one in logs[1:])]
    assert families.unpaired(before, after)[1:] == [1.0, 1.0]


def test_values_of_one_process_group_are_turned_together_wherever_they_are() -> None:
    """After a crash, the same place of two cases can be of two process groups."""
    one, two = np.random.default_rng(5).normal(0.05, 0.05, (2, 8))
    names = list("abcdefgh")
    assert families.paired([one, two], [names, names]) == families.paired([one, two])
    assert families.paired([one, two[::-1]], [names, names[::-1]]) == families.paired([one, two])
    assert families.paired([one, two[::-1]]) != families.paired([one, two])
    apart = [f"{name}-2" for name in names]
    assert families.paired([one, one], [names, names]) == families.paired([one]) * 2
    assert min(families.paired([one, one], [names, apart])) > families.paired([one])[0], "not the same launches"
    runs = [one, one], [two, two]
    assert families.unpaired(*runs, [(names, names)] * 2) == families.unpaired([one], [two]) * 2
    assert min(families.unpaired(*runs, [(names, names), (apart, names)])) > families.unpaired([one], [two])[0]


def test_no_noise_at_all() -> None:
    assert families.paired([np.zeros(6), np.full(6, 0.5)]) == [1.0, 2 / 64]


def test_ten_thousand_cases_take_seconds_and_little_memory() -> None:
    logs = list(np.random.default_rng(0).normal(0, 0.05, (10_000, 6)))
    began = time.process_time()
    families.paired(logs)
    assert time.process_time() - began < 10
