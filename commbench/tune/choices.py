"""From what was confirmed at single sizes to ranges without gaps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from commbench import algorithms
from commbench.profile import AlgorithmConfig, Choice, Evidence
from commbench.records import Case
from commbench.tune.space import Problem

_BEYOND = 2  # times the largest size that was tuned, the default comes back


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is chosen for one problem."""

    problem: Problem
    chosen: Case
    on_plain: Case | None  # where the choice needs other buffers
    evidence: Evidence


def ranges(
    scope: str, decisions: Sequence[Decision], time_us: Callable[[Case, Problem], float], unit: int
) -> list[Choice]:
    """Return the choices of one curve, sizes ascending.

    `time_us(case, problem)` is what the algorithm of `case` takes at a problem's size.

    Between two tuned sizes with different choices the border is where their times would cross, both taken as straight
    lines of the logarithms; halfway where that is not known. Below the smallest tuned size its choice holds, as
    latency alone decides there. Beyond twice the largest one nothing was proven, and the default comes back.
    `unit` bytes are what sizes are multiples of.
    """
    choices: list[Choice] = []
    begins = 0
    run: list[Decision] = []
    for decision, after in zip_longest(decisions, decisions[1:]):
        run.append(decision)
        if after is not None and _alike(decision, after):
            continue
        last: int | None = None
        if after is not None:
            last = max(_border(decision, after, time_us) // unit * unit - 1, decision.problem.size_bytes)
        elif not _is_default(decision):
            last = _BEYOND * decision.problem.size_bytes
        choices.append(_choice(scope, run, begins, last))
        if last is None:
            return choices
        begins, run = last + 1, []
    return [*choices, _default(scope, decisions[-1].problem, begins)]


def _alike(one: Decision, two: Decision) -> bool:
    return _variant(one) == _variant(two)


def _variant(decision: Decision) -> tuple[object, ...]:
    plain = decision.on_plain
    chosen = decision.chosen
    return chosen.label, chosen.buffers, plain and plain.label


def _is_default(decision: Decision) -> bool:
    default = decision.problem.default
    return (decision.chosen.label, decision.chosen.buffers) == (default.label, default.buffers)


def _border(one: Decision, two: Decision, time_us: Callable[[Case, Problem], float]) -> int:
    """Return the first size from which on the second algorithm is taken."""
    low, high = one.problem.size_bytes, two.problem.size_bytes
    # How much faster the first algorithm is, in logarithms, at both ends.
    ends = [
        math.log(time_us(two.chosen, problem) / time_us(one.chosen, problem))
        if 0 < time_us(two.chosen, problem) < math.inf and 0 < time_us(one.chosen, problem) < math.inf
        else math.nan
        for problem in (one.problem, two.problem)
    ]
    if not (ends[0] > 0 > ends[1]):
        return round(math.sqrt(low * high))
    part = ends[0] / (ends[0] - ends[1])
    return round(math.exp(math.log(low) + part * (math.log(high) - math.log(low))))


def _choice(scope: str, run: Sequence[Decision], first: int, last: int | None) -> Choice:
    largest = run[-1]
    case, plain = largest.chosen, largest.on_plain
    algorithm = algorithms.get(case.collective, case.algorithm)
    return Choice(
        scope=scope,
        collective=case.collective,
        min_bytes=first,
        max_bytes=last,
        algorithm=case.algorithm,
        params=dict(case.params),
        buffers=case.buffers,
        on_plain=None if plain is None else AlgorithmConfig(algorithm=plain.algorithm, params=dict(plain.params)),
        captured=largest.problem.captured,
        arguments=largest.problem.shape,
        scratch_bytes=algorithm.scratch_bytes(case.spec),
        multiprocessors=algorithm.multiprocessors(case.spec),
        evidence=[one.evidence for one in run],
    )


def _default(scope: str, problem: Problem, first: int) -> Choice:
    case = problem.default
    untuned = Decision(problem=problem, chosen=case, on_plain=None, evidence=_NOTHING)
    return replace(_choice(scope, [untuned], first, None), evidence=[], scratch_bytes=0)


_NOTHING = Evidence(
    size_bytes=0, dtype="", default="", default_us=0.0, chosen_us=0.0, ratio=1.0, low=None, high=None,
    interval_of=None, pairs=0, p=None, apparent=None, candidates=0, run="", verdict="",
)  # fmt: skip
