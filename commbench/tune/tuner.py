"""One region from its candidates to its scope and choices: probe, search, confirm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from commbench.profile import Choice, Evidence, Refused, Scope
from commbench.records import Case, Outer, Policy, Status
from commbench.stats import PAIRS_FOR_CLAIM, Verdict
from commbench.tune import MINIMUM_GAIN, CaseTimes, Measurer
from commbench.tune.choices import Decision, ranges
from commbench.tune.confirm import Claim, compare, holm
from commbench.tune.refusals import Refusals
from commbench.tune.search import Ledger, Predict, cap, search, with_policy
from commbench.tune.space import Problem, Region, candidate_key, identity, label

_PROBE, _SEARCH = 0.08, 0.42  # parts of the budget; the rest confirms
_SPARE = 0.9  # of the time that is left: later launches may take longer than those before
MOST_PAIRS = 30  # more do not separate a gain of 3 % from none better
_MOST_PROBE_S = 0.1  # seconds for each measurement of the probe
_UNIT_BYTES = 16  # borders between choices are multiples of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """What it takes to give the default up."""

    minimum_gain: float = MINIMUM_GAIN  # that the lower end of the interval must show
    pairs: tuple[int, int] = (PAIRS_FOR_CLAIM, MOST_PAIRS)  # of launches, the fewest and the most


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """What may rule candidates out before they are measured."""

    probes: Sequence[Case]  # measured beside the defaults, for the fit
    fit: Callable[[], Predict | None]  # called after the probe; None: the fit is not good enough


@dataclass(slots=True)
class Control:
    """The default against itself: what no gain looks like here."""

    claims: list[Claim] = field(default_factory=list)
    passed: int = 0  # that the same rules would have taken for a gain

    @property
    def apparent(self) -> float | None:
        """Return the largest ratio that was seen without any gain."""
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
    """What is measured of a problem in the confirmation, and what is claimed from it. By claim: `_BEST`, `_PLAIN`."""

    problem: Problem
    control: Case
    challengers: dict[str, Case] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    p: dict[str, float | None] = field(default_factory=dict)  # adjusted for all claims of the region
    verdicts: dict[str, str] = field(default_factory=dict)


_BEST, _PLAIN = "best", "plain"


@dataclass(frozen=True, slots=True)
class _Confirmed:
    """What the launches of the confirmation measured."""

    by_identity: Mapping[str, CaseTimes]
    run: str  # the id of the run folder

    def times(self, case: Case) -> Mapping[int, float]:
        """Return launch -> median time, microseconds; nothing of a case that failed."""
        one = self.by_identity.get(identity(case))
        return one.time_us if one is not None and one.status is Status.OK else {}


_CONFIRMATION = Confirmation()


class Tuner:
    """Tune one region: probe the defaults, search the candidates, confirm the best in fresh launches."""

    def __init__(
        self,
        region: Region,
        measurer: Measurer,
        *,
        budget_s: float,
        scope: Callable[[Outer], Scope],
        note: Callable[[str], None],
        confirmation: Confirmation = _CONFIRMATION,
        model: CostModel | None = None,
    ) -> None:
        """Tune `region` in `budget_s` seconds. `scope(outer)` describes where the choices will hold."""
        self._region = region
        self._measurer = measurer
        self._budget_s = budget_s
        self._scope = scope
        self._note = note
        self._confirmation = confirmation
        self._model = model
        self._ledger = Ledger()
        self._refusals = Refusals(region.default)
        self._policy: Policy = region.problems[0].default.policy
        self._ends_s = measurer.spent_s + budget_s

    def run(self) -> Tuned:
        problems = self._region.problems
        for problem in problems:
            for item in problem.skipped:
                self._refusals.add(item.case, "skipped", item.skip)
        predict = self._probe()
        budget_s = max(0.0, self._ends_s - self._measurer.spent_s - self._budget_s * (1 - _PROBE - _SEARCH))
        ranked = search(
            problems, self._measurer, self._ledger, self._policy,
            budget_s=budget_s, predict=predict, refuse=self._refusals.add,
        )  # fmt: skip
        outer = self._best_outer(ranked)
        arms = [self._arms(problem, ranked[problem.key], outer) for problem in problems]
        return self._decide(arms, self._confirm(arms, outer), outer)

    # Probe

    def _probe(self) -> Predict | None:
        """Measure the default at every size: what a launch costs here, and what a model can be made of."""
        wanted = [problem.default for problem in self._region.problems]
        wanted += self._model.probes if self._model else []
        cap_s = min(cap(self._measurer, wanted, 1, self._budget_s * _PROBE, self._policy.cap_s), _MOST_PROBE_S)
        cases = [with_policy(case, self._policy, launches=1, cap_s=cap_s) for case in wanted]
        self._ledger.add(cases, self._measurer.measure("probe", cases))
        return self._model.fit() if self._model else None

    # Search

    def _best_outer(self, ranked: Mapping[str, Sequence[Case]]) -> Outer:
        """Return the set-up with the best candidates: the geometric mean over problems of their times."""
        scores: dict[str, list[float]] = {outer.key: [] for outer in self._region.outers}
        for problem in self._region.problems:
            for outer in self._region.outers:
                # Where the last rungs have none of its candidates, what earlier rungs measured counts.
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

    def _confirm(self, arms: Sequence[_Arms], outer: Outer) -> _Confirmed:
        """Measure all arms of all problems, in launches of their own."""
        wanted = {identity(case): case for one in arms for case in self._measured(one, outer)}
        left_s = max(0.0, self._ends_s - self._measurer.spent_s)
        if not any(one.challengers for one in arms):
            self._note("nothing was faster than the default in the search; the control alone is left")
            left_s = 0.0
        pairs, cap_s = self._size_of_confirmation(list(wanted.values()), left_s)
        made = {name: with_policy(case, self._policy, launches=pairs, cap_s=cap_s) for name, case in wanted.items()}
        measured = self._measurer.measure("confirm", list(made.values()))
        self._ledger.add(made.values(), measured)
        by_identity = {name: measured[case.case_id] for name, case in made.items() if case.case_id in measured}
        return _Confirmed(by_identity, self._measurer.run)

    def _size_of_confirmation(self, cases: Sequence[Case], seconds: float) -> tuple[int, float]:
        """Return how many pairs, and seconds for each measurement.

        Launches differ more than samples do, and get what time there is.

        Decided by the clock before anything of it is measured: to go on until a claim holds would make it hold.
        """
        fewest, most = self._confirmation.pairs
        starts_s = len({case.outer.key for case in cases}) * self._measurer.start_s
        each_s = starts_s + len(cases) * (self._policy.cap_s + self._measurer.overhead_s)
        pairs = int(min(max(_SPARE * seconds / max(each_s, 1e-6), fewest), most))
        return pairs, cap(self._measurer, cases, pairs, seconds, self._policy.cap_s)

    def _measured(self, arms: _Arms, outer: Outer) -> list[Case]:
        default = arms.problem.default
        started = [] if outer.key == self._region.default.key else [replace(default, outer=outer)]
        return [default, arms.control, *arms.challengers.values(), *started]

    def _decide(self, arms: Sequence[_Arms], confirmed: _Confirmed, outer: Outer) -> Tuned:
        control = self._claim(arms, confirmed)
        moved = outer.key != self._region.default.key and self._start_pays(arms, confirmed, outer)
        decisions = [
            self._decision(one, confirmed, claim, moved=moved) for one, claim in zip(arms, control.claims, strict=True)
        ]
        scope = self._scope(outer if moved else self._region.default)
        choices = []
        for curve in dict.fromkeys(one.problem.curve for one in arms):
            same = [decision for decision in decisions if decision.problem.curve == curve]
            choices += ranges(scope.id, same, self._time_of, _UNIT_BYTES)
        self._refusals.add_rest(decisions, self._ledger)
        return Tuned(scope=scope, choices=choices, refused=self._refusals.records(scope.id), control=control)

    def _claim(self, arms: Sequence[_Arms], confirmed: _Confirmed) -> Control:
        """Set the claims of all arms and their p, adjusted for all of them; return what the control shows."""
        control = Control()
        for one in arms:
            default = confirmed.times(one.problem.default)
            one.claims = {name: compare(default, confirmed.times(case)) for name, case in one.challengers.items()}
            control.claims.append(compare(default, confirmed.times(one.control)))
        every = [(one, name) for one in arms for name in one.claims]
        for (one, name), p in zip(every, holm([one.claims[name].p for one, name in every]), strict=True):
            one.p[name] = p
        control.passed = sum(
            claim.judge(self._confirmation.minimum_gain, p) == Verdict.CONFIRMED
            for claim, p in zip(control.claims, holm([claim.p for claim in control.claims]), strict=True)
        )
        return control

    def _start_pays(self, arms: Sequence[_Arms], confirmed: _Confirmed, outer: Outer) -> bool:
        """Return whether starting ranks otherwise is better over all sizes together, by the best candidates of both."""
        before: dict[int, list[float]] = {}
        after: dict[int, list[float]] = {}
        for one in arms:
            moved = replace(one.problem.default, outer=outer)
            there = [confirmed.times(case) for case in (moved, *one.challengers.values())]
            here = confirmed.times(one.problem.default)
            for launch, value in here.items():
                best = [arm[launch] for arm in there if launch in arm]
                if best:
                    before.setdefault(launch, []).append(math.log(value))
                    after.setdefault(launch, []).append(math.log(min(best)))
        first, second = ({k: math.exp(float(np.mean(v))) for k, v in arm.items()} for arm in (before, after))
        claim = compare(first, second)
        verdict = claim.judge(self._confirmation.minimum_gain, claim.p)
        self._note(f"started with {_started(outer)}: {claim.ratio:.3f}x over all sizes, {verdict}")
        return verdict == Verdict.CONFIRMED

    def _decision(self, arms: _Arms, confirmed: _Confirmed, control: Claim, *, moved: bool) -> Decision:
        """Choose for one problem. `control`: its default against itself; `moved`: ranks will be started otherwise."""
        default = arms.problem.default
        arms.verdicts = {name: self._verdict(arms, name, moved=moved) for name in (_BEST, _PLAIN)}
        name = next((name for name in (_BEST, _PLAIN) if arms.verdicts[name] == Verdict.CONFIRMED), "")
        chosen = arms.challengers[name] if name else default
        plain = None
        if chosen.buffers != "plain":
            plain = arms.challengers[_PLAIN] if arms.verdicts[_PLAIN] == Verdict.CONFIRMED else default
        claim = arms.claims.get(name or _BEST)
        default_us = _median(confirmed.times(default))
        evidence = Evidence(
            size_bytes=arms.problem.size_bytes,
            dtype=default.dtype,
            default=label(default, self._region.default),
            default_us=default_us,
            chosen_us=_median(confirmed.times(chosen)) if name else default_us,
            ratio=claim.ratio if claim and name and math.isfinite(claim.ratio) else 1.0,
            low=claim.low if claim and name else None,
            high=claim.high if claim and name else None,
            interval_of="launches" if claim and name else None,
            pairs=claim.pairs if claim else 0,
            p=arms.p.get(name or _BEST),
            apparent=control.ratio if math.isfinite(control.ratio) else None,
            candidates=len(arms.problem.candidates),
            run=confirmed.run,
            verdict=Verdict.CONFIRMED if name else self._why_default(arms, claim),
        )
        return Decision(problem=arms.problem, chosen=chosen, on_plain=plain, evidence=evidence)

    def _verdict(self, arms: _Arms, name: str, *, moved: bool) -> str:
        """Return `Verdict.CONFIRMED`, or in words why a challenger does not take the default's place."""
        case = arms.challengers.get(name)
        if case is None:
            return "nothing was faster in the search"
        if case.outer.key != arms.problem.default.outer.key and not moved:
            return "not confirmed: the start of ranks that it needs does not pay over all sizes"
        if not self._ledger.usable(case):
            status, reason = self._ledger.failed.get(identity(case)) or self._ledger.banned[candidate_key(case)]
            return f"not confirmed: {status}: {reason}"
        return arms.claims[name].judge(self._confirmation.minimum_gain, arms.p[name])

    def _why_default(self, arms: _Arms, claim: Claim | None) -> str:
        case = arms.challengers.get(_BEST)
        if case is None:
            return f"default kept: {arms.verdicts[_BEST]}"
        seen = f", measured {claim.ratio:.3f}x" if claim and math.isfinite(claim.ratio) else ""
        return f"default kept: {label(case, self._region.default)}{seen}, {arms.verdicts[_BEST]}"

    def _time_of(self, case: Case, problem: Problem) -> float:
        """Return what the candidate of `case` takes at a problem's size, microseconds; infinite if not measured."""
        for other in problem.candidates:
            if candidate_key(other) == candidate_key(case):
                return self._ledger.time_us(other)
        return math.inf


def _median(times: Mapping[int, float]) -> float:
    return float(np.median(list(times.values()))) if times else 0.0


def _started(outer: Outer) -> str:
    words = [outer.binding_text, *(f"{name}={value}" for name, value in outer.env.items())]
    return ", ".join(word for word in words if word) or "the defaults"
