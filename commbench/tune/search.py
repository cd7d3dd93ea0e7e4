"""Successive halving: many candidates measured a little, the better half a little more, and so on.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016. What is
known of links predicts the worst candidates first, and those are not measured at all. Time goes to launches before it
goes to samples, as launches differ more; a problem whose candidates would all stay is not measured in that rung.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from commbench import stats
from commbench.records import Case, Policy, Status
from commbench.tune import CaseTimes, Measurer, ProcessGroup
from commbench.tune.space import Problem, candidate_key, identity

_LAUNCHES = ((1, 3), (2, 6), (3, 12))  # of each rung, the fewest and, where there is time, the most
_KEPT = (0.5, 0.34)  # of the candidates of a problem, after the first rung and after the second
_FEWEST = 3
_MOST = 12
_NEAR = 1.1  # times the best: kept too
_PRUNED = 2.5  # times what the best is predicted to take, at the least: not measured
_LEAST_CAP_S = 0.03
_SHARES = (0.4, 0.3, 0.3)  # of the time for the search
_SPARE = 0.9  # of the time that is left: later launches may take longer than those before


@dataclass(slots=True)
class Ledger:
    """What is known of every case so far."""

    medians: dict[str, list[float]] = field(default_factory=dict)  # identity -> of each launch, see `_steadied`
    failed: dict[str, tuple[Status, str]] = field(default_factory=dict)  # identity -> how, and why
    banned: dict[str, tuple[Status, str]] = field(default_factory=dict)  # candidate_key -> for all sizes

    def add(self, cases: Collection[Case], measured: Mapping[str, CaseTimes]) -> None:
        """Take over what a stage measured of `cases`."""
        steadied = _steadied(measured)
        for case in cases:
            one = measured.get(case.case_id)
            if one is None:
                continue
            if one.status is Status.OK:
                self.medians.setdefault(identity(case), []).extend(steadied[case.case_id])
                continue
            self.failed.setdefault(identity(case), (one.status, one.reason))
            # What is wrong once is not trusted at another size, and what hangs would cost its timeout again.
            if one.status in (Status.WRONG_RESULT, Status.DECLARATION_MISMATCH, Status.TIMEOUT):
                self.banned.setdefault(candidate_key(case), (one.status, one.reason))

    def usable(self, case: Case) -> bool:
        return identity(case) not in self.failed and candidate_key(case) not in self.banned

    def time_us(self, case: Case) -> float:
        """Return the time over all launches so far; infinite where nothing is known or it failed."""
        medians = self.medians.get(identity(case))
        if not medians or not self.usable(case):
            return math.inf
        return stats.paired_ratio(np.log(medians)).value if min(medians) > 0 else 0.0


def _steadied(measured: Mapping[str, CaseTimes]) -> dict[str, list[float]]:
    """Return the times of a stage's launches by case id, less what slowed all cases of a launch.

    That is the median over its cases of how far each is from its own median over launches. So what a set-up costs in
    all its launches stays.
    """
    apart: dict[ProcessGroup, list[float]] = {}
    known = {case_id: one.time_us for case_id, one in measured.items() if one.time_us and min(one.time_us.values()) > 0}
    for times in known.values():
        middle = math.log(float(np.median(list(times.values()))))
        for group, time_us in times.items():
            apart.setdefault(group, []).append(math.log(time_us) - middle)
    slowed = {group: math.exp(float(np.median(logs))) for group, logs in apart.items()}
    return {
        case_id: [time_us / slowed.get(group, 1.0) for group, time_us in one.time_us.items()]
        for case_id, one in measured.items()
    }


Predict = Callable[[Case], tuple[float, float] | None]  # the interval of the time, microseconds


def pruned(problem: Problem, predict: Predict) -> dict[str, str]:
    """Return the identities that are not worth a measurement, with the reason; never the default."""
    known = {identity(case): bounds for case in problem.candidates if (bounds := predict(case))}
    if not known:
        return {}
    best = min(high for _, high in known.values())
    return {
        name: f"predicted to take {low:.0f} us at the least, the best {best:.0f} us at the most"
        for name, (low, _) in known.items()
        if low > _PRUNED * best and name != identity(problem.default)
    }


def search(
    problems: Sequence[Problem],
    measurer: Measurer,
    ledger: Ledger,
    policy: Policy,
    *,
    budget_s: float,
    predict: Predict | None = None,
    refuse: Callable[[Case, str, str], None],
) -> dict[str, list[Case]]:
    """Return for each problem, by key, the candidates that were left, the fastest first. `budget_s` is for all rungs.

    `refuse(case, why, reason)` is called for every candidate that is not measured, or not any more.
    """
    alive = {problem.key: list(problem.candidates) for problem in problems}
    if predict is not None:
        for problem in problems:
            hopeless = pruned(problem, predict)
            for case in alive[problem.key]:
                if reason := hopeless.get(identity(case)):
                    refuse(case, "pruned", reason)
            alive[problem.key] = [case for case in alive[problem.key] if identity(case) not in hopeless]
    left_s = budget_s
    for rung, limits in enumerate(_LAUNCHES):
        share_s = left_s * _SHARES[rung] / sum(_SHARES[rung:])
        open_problems = [problem for problem in problems if len(alive[problem.key]) > _kept(alive[problem.key], rung)]
        cases = [case for problem in open_problems for case in alive[problem.key]]
        if not cases:
            continue
        began_s = measurer.spent_s
        launches = launches_in(measurer, cases, share_s, policy.cap_s, limits)
        cap_s = cap(measurer, cases, launches, share_s, policy.cap_s)
        made = [with_policy(case, policy, launches=launches, cap_s=cap_s) for case in cases]
        ledger.add(made, measurer.measure(f"search-{rung + 1}", made))
        left_s -= measurer.spent_s - began_s
        for problem in open_problems:
            alive[problem.key] = _survivors(problem, alive[problem.key], ledger, rung)
    return {
        problem.key: sorted((case for case in alive[problem.key] if ledger.usable(case)), key=ledger.time_us)
        for problem in problems
    }


def launches_in(
    measurer: Measurer, cases: Sequence[Case], seconds: float, cap_s: float, limits: tuple[int, int]
) -> int:
    """Return how many launches of all `cases` fit into `seconds`, measurements of `cap_s` each; `limits`: least, most.

    Launches differ more than samples do, and get what time there is.
    """
    starts_s = len({case.setup.key for case in cases}) * measurer.start_s
    each_s = starts_s + len(cases) * (cap_s + measurer.overhead_s)
    fewest, most = limits
    return int(min(max(_SPARE * seconds / max(each_s, 1e-6), fewest), most))


def cap(measurer: Measurer, cases: Sequence[Case], launches: int, seconds: float, most_s: float) -> float:
    """Return seconds that each measurement may take so that all `cases` in `launches` launches fit into `seconds`."""
    starts = launches * len({case.setup.key for case in cases}) * measurer.start_s
    each = (seconds - starts) / (launches * len(cases)) - measurer.overhead_s
    return min(max(each, _LEAST_CAP_S), most_s)


def with_policy(case: Case, policy: Policy, *, launches: int, cap_s: float) -> Case:
    return replace(case, policy=replace(policy, launches=launches, cap_s=round(cap_s, 4)))


def _kept(cases: Sequence[Case], rung: int) -> int:
    """Return how many of a problem's candidates stay after a rung at the least. The last one leaves the best."""
    return min(max(_FEWEST, round(len(cases) * _KEPT[rung])), _MOST) if rung < len(_KEPT) else 1


def _survivors(problem: Problem, cases: Sequence[Case], ledger: Ledger, rung: int) -> list[Case]:
    """Return the candidates of the next rung. The default always stays: others are compared with it."""
    ranked = sorted((case for case in cases if ledger.usable(case)), key=ledger.time_us)
    if rung >= len(_KEPT) or not ranked:
        return ranked
    kept = _kept(ranked, rung)
    best = ledger.time_us(ranked[0])
    near = [case for case in ranked[kept:_MOST] if ledger.time_us(case) <= _NEAR * best]
    left = ranked[:kept] + near
    default = identity(problem.default)
    return left + [case for case in ranked if identity(case) == default and case not in left]
