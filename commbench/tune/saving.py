"""What a profile saves of a step of the program whose trace was tuned: predicted from the launches that confirmed it.

The search has not seen those launches, so what it picked for its luck gains nothing there. In each of them all
exchanges of a step are added up, each as often as the program makes it and by the part of it that it waits for, once
with the defaults and once with what was chosen.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from commbench import algorithms, collectives, stats
from commbench.profile import Choice
from commbench.record.recipe import SentCase
from commbench.records import Case, Status
from commbench.run_folder import RunFolder
from commbench.tune.space import Problem, Region, identity
from commbench.tune.tuner import Tuned

_Launch = tuple[str, int]  # run folder, launch
_CONFIRM = "confirm"  # in the names of run folders whose launches the search has not seen


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSaving:
    """Microseconds of a step. low, high: 95 % interval; None where launches are too few."""

    saved_us: float
    low_us: float | None
    high_us: float | None
    exchanges_us: float  # by default: all exchanges of a step that were tuned
    launches: int
    uneven: float = 0.0  # exchanges of a step, of those, by a choice for which ranks must exchange their counts first


def weigh(regions: Sequence[Region], sent: Sequence[SentCase]) -> list[Region]:
    """Return the regions with how often a step waits for each problem."""
    return [
        replace(
            region,
            problems=tuple(
                replace(one, calls=sum(case.calls * case.exposed for case in sent if _is(one.default, case)))
                for one in region.problems
            ),
        )
        for region in regions
    ]


def _is(case: Case, sent: SentCase) -> bool:
    """Return whether a case is what was sent, after rounding."""
    if (case.collective, case.groups) != (sent.collective, sent.groups):
        return False
    if sent.matrix:
        return str(case.arguments.get("matrix")) == sent.matrix
    layout = case.setup.layout.within(case.groups)
    size, _ = collectives.get(case.collective).settle(sent.size_bytes, layout, case.arguments)
    return size == case.size_bytes


def predict(regions: Sequence[Region], tuned: Sequence[Tuned], folders: Sequence[RunFolder]) -> StepSaving | None:
    """Return what the choices save of a step; None where nothing of it was measured. `regions`: as `weigh` has them."""
    times = _times(folders)
    pairs = []
    uneven = 0.0
    for region, one in zip(regions, tuned, strict=True):
        for problem in region.problems:
            case = _chosen(region, problem, one)
            default = times.get(identity(problem.default), {})
            if default and problem.calls:
                pairs.append((problem.calls, default, times.get(identity(case), default)))
                uneven += problem.calls * _needs_counts(case)
    if not pairs:
        return None
    usual_us = sum(calls * float(np.median(list(default.values()))) for calls, default, _ in pairs)
    ratios = _ratios(pairs)
    if not ratios.size:
        return StepSaving(saved_us=0.0, low_us=None, high_us=None, exchanges_us=usual_us, launches=0)
    ratio = stats.paired_ratio(ratios)
    low, high = (None if end is None else usual_us * (1 - 1 / end) for end in (ratio.low, ratio.high))
    return StepSaving(
        saved_us=usual_us * (1 - 1 / ratio.value), low_us=low, high_us=high, exchanges_us=usual_us,
        launches=ratios.size, uneven=uneven,
    )  # fmt: skip


def _needs_counts(case: Case) -> bool:
    """Return whether ranks that know their own counts only have to exchange them before the call."""
    if case.collective != "all_to_allv" or case.algorithm == "direct":
        return False
    return algorithms.get(case.collective, case.algorithm).counts_inside is None


def _ratios(pairs: Sequence[tuple[float, Mapping[_Launch, float], Mapping[_Launch, float]]]) -> stats.Floats:
    """Return, launch by launch, the logarithm of the time of all exchanges by default over that as chosen.

    Regions are confirmed one after the other, each in launches of its own: the first launch of each goes with the first
    of the others.
    """
    ordered = []
    for calls, default, chosen in pairs:
        shared = sorted(default.keys() & chosen.keys())
        ordered.append([(calls * default[launch], calls * chosen[launch]) for launch in shared])
    launches = min(map(len, ordered))
    sums = [[sum(one[launch][arm] for one in ordered) for arm in (0, 1)] for launch in range(launches)]
    return np.array([math.log(usual / best) for usual, best in sums if usual > 0 and best > 0])


def _times(folders: Sequence[RunFolder]) -> dict[str, dict[_Launch, float]]:
    """Return what confirmations have measured: launch -> median, microseconds, by the identity of the case."""
    found: dict[str, dict[_Launch, float]] = defaultdict(dict)
    for folder in folders:
        if _CONFIRM not in folder.run_id:
            continue
        names = {item.case.case_id: identity(item.case) for item in folder.plan()}
        for one in folder.measurements():
            if one.status is Status.OK and one.time_us:
                found[names[one.case_id]][folder.run_id, one.launch] = one.time_us
    return found


def _chosen(region: Region, problem: Problem, tuned: Tuned) -> Case:
    """Return what the profile takes for a problem; the default where that is not among what was measured."""
    choice = next((one for one in tuned.choices if _holds(one, problem)), None)
    scope = tuned.scope
    setups = {
        setup.key
        for setup in region.setups
        if (setup.env, setup.binding, setup.cpu_masks) == (scope.env, scope.binding, scope.cpu_masks)
    }
    for case in problem.candidates:
        if choice is not None and case.setup.key in setups and _same(case, choice):
            return case
    return problem.default


def _holds(choice: Choice, problem: Problem) -> bool:
    largest = math.inf if choice.max_bytes is None else choice.max_bytes
    what = (choice.collective, choice.arguments, choice.captured)
    return what == (problem.collective, problem.shape, problem.captured) and (
        choice.min_bytes <= problem.size_bytes <= largest
    )


def _same(case: Case, choice: Choice) -> bool:
    return (case.algorithm, case.params, case.buffers) == (choice.algorithm, choice.params, choice.buffers)


def sentence(saving: StepSaving | None, step_us: float | None, waited_us: float | None) -> str:
    """Return the prediction in words. waited_us: what the recorded step waits for these exchanges, the most to save."""
    if saving is None:
        return "nothing of a step was measured"
    of = "of the program's exchanges" if step_us is None else f"of a step of {_ms(step_us)}"
    if saving.saved_us <= 0 or (saving.low_us is not None and saving.low_us <= 0 < saving.saved_us):
        return f"nothing is saved {of}: no choice is better than the default"
    most = math.inf if waited_us is None else waited_us
    saved, low, high = (
        None if us is None else min(us, most) for us in (saving.saved_us, saving.low_us, saving.high_us)
    )
    interval = "" if low is None or high is None else f" [{_plain(low)} - {_plain(high)}]"
    text = f"saves {_plain(saved or 0.0)} ms{interval} {of}, predicted from {saving.launches} launches"
    text += ", and all that the program waited for them when it was recorded" if saving.saved_us >= most else ""
    if saving.uneven:
        many = f"{saving.uneven:.2g} uneven exchanges a step"
        text += f"; less an exchange of counts before each of {many}, where `commbench exec` makes them"
    return text


def _ms(us: float) -> str:
    return f"{_plain(us)} ms"


def _plain(us: float) -> str:
    return f"{us / 1e3:.3g}" if us < 1e6 else f"{us / 1e3:.0f}"
