"""One region from its candidates to its scope and choices: probe, search, confirm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from commbench.profile import Choice, Evidence, Refused, Scope
from commbench.records import Case, Outer, Policy, Status
from commbench.stats import PAIRS_FOR_CLAIM, Verdict
from commbench.tune import MINIMUM_GAIN, Found, Measurer
from commbench.tune.choices import Decision, ranges
from commbench.tune.confirm import Claim, compare, holm
from commbench.tune.search import Ledger, Predict, cap, search, with_policy
from commbench.tune.space import Problem, Region, identity, label, way

_PROBE, _SEARCH = 0.08, 0.42  # parts of the budget; the rest confirms
_SPARE = 0.9  # of the time that is left: later launches may take longer than those before
MOST_PAIRS = 30  # more tell a gain of 3 % from none no better


@dataclass(slots=True)
class Control:
    """The default against itself: what no gain looks like here."""

    claims: list[Claim] = field(default_factory=list)
    passed: int = 0  # that the same rules would have taken for a gain

    @property
    def apparent(self) -> float | None:
        """The largest ratio that was seen without any gain."""
        known = [claim.ratio for claim in self.claims if math.isfinite(claim.ratio)]
        return max(known) if known else None


@dataclass(slots=True, kw_only=True)
class Tuned:
    scope: Scope
    choices: list[Choice]
    refused: list[Refused]
    control: Control


@dataclass(slots=True)
class _Arms:
    """What is measured of a problem in the confirmation."""

    problem: Problem
    control: Case
    challengers: dict[str, Case] = field(default_factory=dict)  # claim -> case
    decided: dict[str, str] = field(default_factory=dict)  # claim -> verdict


_BEST, _PLAIN = "best", "plain"


class Tuner:
    def __init__(
        self,
        region: Region,
        measurer: Measurer,
        *,
        budget_s: float,
        scope: Callable[[Outer], Scope],
        note: Callable[[str], None],
        minimum_gain: float = MINIMUM_GAIN,
        pairs: tuple[int, int] = (PAIRS_FOR_CLAIM, MOST_PAIRS),
        unit: int = 16,
        fit: Callable[[], Predict | None] | None = None,
        probes: Sequence[Case] = (),
    ) -> None:
        """`scope(outer)` describes where the choices will hold; `pairs` are the fewest and the most of a confirmation.

        `fit` gives predictions after the probe, if it can; `probes` are measured in it for that.
        """
        self._region = region
        self._measurer = measurer
        self._budget_s = budget_s
        self._scope = scope
        self._note = note
        self._minimum = minimum_gain
        self._pairs = pairs
        self._unit = unit
        self._fit = fit
        self._probes = probes
        self._ledger = Ledger()
        self._refused: dict[tuple[str, str, str], tuple[str, list[int]]] = {}
        self._policy: Policy = region.problems[0].default.policy
        self._ends_s = measurer.spent_s + budget_s

    def run(self) -> Tuned:
        problems = self._region.problems
        for problem in problems:
            for item in problem.skipped:
                self._refuse(item.case, "skipped", item.skip)
        predict = self._probe()
        budget_s = max(0.0, self._ends_s - self._measurer.spent_s - self._budget_s * (1 - _PROBE - _SEARCH))
        ranked = search(
            problems, self._measurer, self._ledger, self._policy,
            budget_s=budget_s, predict=predict, refuse=self._refuse,
        )  # fmt: skip
        outer = self._best_outer(ranked)
        arms = [self._arms(problem, ranked[problem.key], outer) for problem in problems]
        found, run = self._confirm(arms, outer)
        return self._decide(arms, found, outer, run)

    # Probe

    def _probe(self) -> Predict | None:
        """The default at every size: what a launch costs here, and what a model can be made of."""
        defaults = [problem.default for problem in self._region.problems]
        cap_s = min(
            cap(self._measurer, [*defaults, *self._probes], 1, self._budget_s * _PROBE, self._policy.cap_s), 0.1
        )
        cases = [with_policy(case, self._policy, launches=1, cap_s=cap_s) for case in (*defaults, *self._probes)]
        self._ledger.add(cases, self._measurer.measure("probe", cases))
        return self._fit() if self._fit else None

    # Search

    def _best_outer(self, ranked: Mapping[str, Sequence[Case]]) -> Outer:
        """That with the best ways: the geometric mean over problems of their times."""
        scores: dict[str, list[float]] = {outer.key: [] for outer in self._region.outers}
        for problem in self._region.problems:
            for outer in self._region.outers:
                # Where the last rungs have none of its ways, what earlier rungs measured counts.
                times, every = (
                    [self._ledger.time_us(case) for case in cases if case.outer.key == outer.key]
                    for cases in (ranked[problem.key], problem.candidates)
                )
                best = min(times or every, default=math.inf)
                scores[outer.key].append(math.log(best) if math.isfinite(best) and best > 0 else math.inf)
        means = {key: float(np.mean(values)) if values else math.inf for key, values in scores.items()}
        best_key = min(means, key=lambda key: (means[key], key != self._region.default.key))
        if not math.isfinite(means[best_key]):
            return self._region.default
        return next(outer for outer in self._region.outers if outer.key == best_key)

    def _arms(self, problem: Problem, ranked: Sequence[Case], outer: Outer) -> _Arms:
        default = problem.default
        arms = _Arms(problem=problem, control=replace(default, seed=(default.seed + 1) % 2**63))
        usable = [case for case in ranked if identity(case) != identity(default)]
        inside = [case for case in usable if case.outer.key == outer.key]
        best = min(inside, key=self._ledger.time_us, default=None)
        if best is not None and self._ledger.time_us(best) < self._ledger.time_us(default):
            arms.challengers[_BEST] = best
        if best is not None and best.buffers != "plain":
            plain = [case for case in inside if case.buffers == "plain"]
            second = min(plain, key=self._ledger.time_us, default=None)
            if second is not None and self._ledger.time_us(second) < self._ledger.time_us(default):
                arms.challengers[_PLAIN] = second
        return arms

    # Confirmation

    def _confirm(self, arms: Sequence[_Arms], outer: Outer) -> tuple[dict[str, Found], str]:
        """All arms of all problems, in launches of their own; by identity."""
        wanted = {identity(case): case for one in arms for case in self._measured(one, outer)}
        left_s = max(0.0, self._ends_s - self._measurer.spent_s)
        if not any(one.challengers for one in arms):
            self._note("nothing was faster than the default in the search; the control alone is left")
            left_s = 0.0
        pairs, cap_s = self._size_of_confirmation(list(wanted.values()), left_s)
        made = {name: with_policy(case, self._policy, launches=pairs, cap_s=cap_s) for name, case in wanted.items()}
        found = self._measurer.measure("confirm", list(made.values()))
        self._ledger.add(made.values(), found)
        return {name: found[case.case_id] for name, case in made.items() if case.case_id in found}, self._measurer.run

    def _size_of_confirmation(self, cases: Sequence[Case], seconds: float) -> tuple[int, float]:
        """Pairs, and seconds for each measurement: launches differ more than samples do, and get what time there is.

        Decided by the clock before anything of it is measured: to go on until a claim holds would make it hold.
        """
        fewest, most = self._pairs
        starts_s = len({case.outer.key for case in cases}) * self._measurer.start_s
        each_s = starts_s + len(cases) * (self._policy.cap_s + self._measurer.overhead_s)
        pairs = int(min(max(_SPARE * seconds / max(each_s, 1e-6), fewest), most))
        return pairs, cap(self._measurer, cases, pairs, seconds, self._policy.cap_s)

    def _measured(self, arms: _Arms, outer: Outer) -> list[Case]:
        default = arms.problem.default
        started = [] if outer.key == self._region.default.key else [replace(default, outer=outer)]
        return [default, arms.control, *arms.challengers.values(), *started]

    def _decide(self, arms: Sequence[_Arms], found: Mapping[str, Found], outer: Outer, run: str) -> Tuned:
        def times(case: Case) -> Mapping[int, float]:
            one = found.get(identity(case))
            return one.time_us if one is not None and one.status is Status.OK else {}

        claims: dict[tuple[int, str], Claim] = {}
        control = Control()
        for index, one in enumerate(arms):
            default = one.problem.default
            for name, case in one.challengers.items():
                claims[index, name] = compare(times(default), times(case))
            control.claims.append(compare(times(default), times(one.control)))
        adjusted = dict(zip(claims, holm([claim.p for claim in claims.values()]), strict=True))
        control.passed = sum(
            claim.judge(self._minimum, p) == Verdict.CONFIRMED
            for claim, p in zip(control.claims, holm([claim.p for claim in control.claims]), strict=True)
        )
        moved = outer.key != self._region.default.key and self._start_pays(arms, times, outer)
        decisions = []
        for index, one in enumerate(arms):
            decisions.append(
                self._decision(
                    one, index, claims, adjusted, times, control.claims[index], run, outer if moved else None
                )
            )
        chosen = outer if moved else self._region.default
        scope = self._scope(chosen)
        choices = []
        for curve in dict.fromkeys(one.problem.curve for one in arms):
            same = [decision for decision in decisions if decision.problem.curve == curve]
            choices += ranges(scope.id, same, self._time_of, self._unit)
        self._account(decisions)
        return Tuned(scope=scope, choices=choices, refused=self._told(scope.id), control=control)

    def _start_pays(self, arms: Sequence[_Arms], times: Callable[[Case], Mapping[int, float]], outer: Outer) -> bool:
        """Whether starting ranks otherwise is better over all sizes together: the best ways there and by default."""
        before: dict[int, list[float]] = {}
        after: dict[int, list[float]] = {}
        for one in arms:
            there = [times(case) for case in (replace(one.problem.default, outer=outer), *one.challengers.values())]
            here = times(one.problem.default)
            for launch, value in here.items():
                best = [arm[launch] for arm in there if launch in arm]
                if best:
                    before.setdefault(launch, []).append(math.log(value))
                    after.setdefault(launch, []).append(math.log(min(best)))
        first, second = ({k: math.exp(float(np.mean(v))) for k, v in arm.items()} for arm in (before, after))
        claim = compare(first, second)
        verdict = claim.judge(self._minimum, claim.p)
        self._note(f"started with {_started(outer)}: {claim.ratio:.3f}x over all sizes, {verdict}")
        return verdict == Verdict.CONFIRMED

    def _decision(
        self,
        arms: _Arms,
        index: int,
        claims: Mapping[tuple[int, str], Claim],
        adjusted: Mapping[tuple[int, str], float | None],
        times: Callable[[Case], Mapping[int, float]],
        control: Claim,
        run: str,
        moved: Outer | None,
    ) -> Decision:
        default = arms.problem.default

        def verdict(name: str) -> str:
            case = arms.challengers.get(name)
            if case is None:
                return "nothing was faster in the search"
            if case.outer.key != default.outer.key and moved is None:
                return "not confirmed: the start of ranks that it needs does not pay over all sizes"
            if not self._ledger.usable(case):
                status, reason = self._ledger.failed.get(identity(case)) or self._ledger.banned[way(case)]
                return f"not confirmed: {status}: {reason}"
            return claims[index, name].judge(self._minimum, adjusted[index, name])

        arms.decided = {name: verdict(name) for name in (_BEST, _PLAIN)}
        name = _BEST if arms.decided[_BEST] == Verdict.CONFIRMED else ""
        if not name and arms.decided[_PLAIN] == Verdict.CONFIRMED:
            name = _PLAIN
        chosen = arms.challengers[name] if name else default
        plain = None
        if chosen.buffers != "plain":
            plain = arms.challengers[_PLAIN] if arms.decided[_PLAIN] == Verdict.CONFIRMED else default
        claim = claims.get((index, name or _BEST))
        ours, theirs = times(default), times(chosen)
        if not name and _BEST in arms.challengers:  # what was tried, beside why it was not taken
            theirs = times(arms.challengers[_BEST]) or theirs
        evidence = Evidence(
            size_bytes=arms.problem.size_bytes,
            dtype=default.dtype,
            default=label(default, self._region.default),
            default_us=_median(ours),
            chosen_us=_median(ours if not name else theirs),
            ratio=claim.ratio if claim and name and math.isfinite(claim.ratio) else 1.0,
            low=claim.low if claim and name else None,
            high=claim.high if claim and name else None,
            interval_of="launches" if claim and name else None,
            pairs=claim.pairs if claim else 0,
            p=adjusted.get((index, name or _BEST)),
            apparent=control.ratio if math.isfinite(control.ratio) else None,
            candidates=len(arms.problem.candidates),
            run=run,
            verdict=Verdict.CONFIRMED if name else self._why_default(arms, claim),
        )
        return Decision(problem=arms.problem, chosen=chosen, on_plain=plain, evidence=evidence)

    def _why_default(self, arms: _Arms, claim: Claim | None) -> str:
        case = arms.challengers.get(_BEST)
        if case is None:
            return f"default kept: {arms.decided[_BEST]}"
        seen = f", measured {claim.ratio:.3f}x" if claim and math.isfinite(claim.ratio) else ""
        return f"default kept: {label(case, self._region.default)}{seen}, {arms.decided[_BEST]}"

    def _time_of(self, case: Case, problem: Problem) -> float:
        """What the way of `case` takes at the size of `problem`, microseconds; infinite where it was not measured."""
        for other in problem.candidates:
            if way(other) == way(case):
                return self._ledger.time_us(other)
        return math.inf

    # What was not taken

    def _refuse(self, case: Case, why: str, reason: str) -> None:
        key = case.collective, label(case, self._region.default), why
        _, sizes = self._refused.setdefault(key, (reason, []))
        if case.size_bytes not in sizes:
            sizes.append(case.size_bytes)

    def _account(self, decisions: Sequence[Decision]) -> None:
        """Every candidate is chosen, or refused with a reason."""
        pruned = {(collective, name) for collective, name, why in self._refused if why == "pruned"}
        for decision in decisions:
            problem = decision.problem
            kept = {identity(decision.chosen), identity(problem.default)}
            best = self._ledger.time_us(decision.chosen)
            for case in problem.candidates:
                if identity(case) in kept or (decision.on_plain and identity(case) == identity(decision.on_plain)):
                    continue
                failure = self._ledger.failed.get(identity(case)) or self._ledger.banned.get(way(case))
                if failure is not None:
                    self._refuse(case, str(failure[0]), failure[1])
                elif math.isfinite(self._ledger.time_us(case)):
                    ratio = self._ledger.time_us(case) / best
                    if ratio > 1:
                        self._refuse(
                            case, "slower", f"{ratio:.2f} times the time of {decision.chosen.label} in the search"
                        )
                    else:
                        reason = "faster than the default in the search, and not the one that was confirmed or tried"
                        mine = case.label in decision.evidence.verdict
                        self._refuse(case, "not confirmed", decision.evidence.verdict if mine else reason)
                elif (case.collective, label(case, self._region.default)) not in pruned:
                    self._refuse(case, "not measured", "the search ended before it")

    def _told(self, scope: str) -> list[Refused]:
        return [
            Refused(scope=scope, collective=collective, label=name, sizes=sorted(sizes), why=why, reason=reason)
            for (collective, name, why), (reason, sizes) in self._refused.items()
        ]


def _median(times: Mapping[int, float]) -> float:
    return float(np.median(list(times.values()))) if times else 0.0


def _started(outer: Outer) -> str:
    words = [outer.binding_text, *(f"{name}={value}" for name, value in outer.env.items())]
    return ", ".join(word for word in words if word) or "the defaults"
