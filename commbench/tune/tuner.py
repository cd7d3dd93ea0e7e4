"""One region from its candidates to its scope and choices: probe, search, confirm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from commbench.profile import Choice, Refused, Scope
from commbench.records import Case, Policy, Setup
from commbench.tune import Measurer
from commbench.tune.choices import ranges
from commbench.tune.confirmation import BEST, PLAIN, Arms, Confirmation, ConfirmedTimes, Confirming, Control
from commbench.tune.decide import decide
from commbench.tune.looks import Looks
from commbench.tune.refusals import Refusals
from commbench.tune.search import Ledger, Predict, cap, launches_in, search, with_policy
from commbench.tune.space import Problem, Region, candidate_key, identity
from commbench.tune.starts import describe_start, over_sizes

_PROBE, _SEARCH = 0.08, 0.42  # parts of the budget; the rest confirms
_MOST_PROBE_S = 0.1  # seconds for each measurement of the probe
_UNIT_BYTES = 16  # borders between choices are multiples of it


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """What may rule candidates out before they are measured."""

    probes: Sequence[Case]  # measured beside the defaults, for the fit
    fit: Callable[[], Predict | None]  # called after the probe; None: the fit is not good enough


@dataclass(slots=True, kw_only=True)
class Tuned:
    scope: Scope
    choices: list[Choice]
    refused: list[Refused]
    control: Control


_CONFIRMATION = Confirmation()


class Tuner:
    """Tune one region: probe the defaults, search the candidates, confirm the best in fresh launches."""

    def __init__(
        self,
        region: Region,
        measurer: Measurer,
        *,
        budget_s: float,
        scope: Callable[[Setup], Scope],
        note: Callable[[str], None],
        confirmation: Confirmation = _CONFIRMATION,
        model: CostModel | None = None,
    ) -> None:
        """Tune `region` in `budget_s` seconds. `scope(setup)` describes where the choices will hold."""
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
        setup = self._best_setup(ranked)
        arms = [self._arms(problem, ranked[problem.key], setup) for problem in problems]
        return self._decide(arms, *self._confirm(arms, setup), setup)

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

    def _best_setup(self, ranked: Mapping[str, Sequence[Case]]) -> Setup:
        """Return the set-up with the best candidates, over all problems."""
        scores: dict[str, list[float]] = {setup.key: [] for setup in self._region.setups}
        for problem in self._region.problems:
            for setup in self._region.setups:
                # Where the last rungs have none of its candidates, what earlier rungs measured counts.
                times, every = (
                    [self._ledger.time_us(case) for case in cases if case.setup.key == setup.key]
                    for cases in (ranked[problem.key], problem.candidates)
                )
                best = min(times or every, default=math.inf)
                scores[setup.key].append(best if best > 0 else math.inf)
        calls = [problem.calls for problem in self._region.problems]
        means = {key: over_sizes(values, calls) for key, values in scores.items()}
        best_key = min(means, key=lambda key: (means[key], key != self._region.default.key))
        if not math.isfinite(means[best_key]):
            return self._region.default
        return next(setup for setup in self._region.setups if setup.key == best_key)

    def _arms(self, problem: Problem, ranked: Sequence[Case], setup: Setup) -> Arms:
        default = problem.default
        challengers = {key: self._challengers(problem, ranked, key) for key in (default.setup.key, setup.key)}
        return Arms(problem, replace(default, seed=(default.seed + 1) % 2**63), challengers)

    def _challengers(self, problem: Problem, ranked: Sequence[Case], key: str) -> dict[str, Case]:
        """Return by claim what is faster than the default in the search, of one start of ranks."""
        default_us = self._ledger.time_us(problem.default)
        # Where the last rungs have none of its candidates, what earlier rungs measured counts.
        for cases in (ranked, problem.candidates):
            inside = [case for case in cases if case.setup.key == key and identity(case) != identity(problem.default)]
            if inside:
                break
        best = min(inside, key=self._ledger.time_us, default=None)
        if best is None:
            return {}
        challengers = {BEST: best}
        if best.buffers != "plain":
            plain = [case for case in inside if case.buffers == "plain"]
            challengers |= {PLAIN: min(plain, key=self._ledger.time_us)} if plain else {}
        return {name: case for name, case in challengers.items() if self._ledger.time_us(case) < default_us}

    # Confirmation

    def _confirm(self, arms: Sequence[Arms], setup: Setup) -> tuple[Confirming, ConfirmedTimes]:
        """Measure all arms of all problems in launches of their own, until each contest is decided or time is over.

        Launches differ more than samples do, and get what time there is: those of contests that are open.
        """
        confirming = Confirming(arms, setup, self._confirmation, self._failure)
        looks, times = Looks(*self._confirmation.pairs), ConfirmedTimes()
        if not confirming.open:
            self._note("nothing was faster than the default in the search; the control alone is left")
        last = False
        while not last and (confirming.open or not times.runs):
            left_s = max(0.0, self._ends_s - self._measurer.spent_s) if confirming.open else 0.0
            made, most = looks.made, self._confirmation.pairs[1]
            fits = launches_in(
                self._measurer, confirming.wanted(), left_s, self._policy.cap_s, (0, max(most - made, 0))
            )
            look = looks.next(fits)
            self._measure(confirming, times, look.launches - made, left_s)
            # What a crash split into two process groups is no pair, and is made up for once.
            self._measure(confirming, times, look.launches - (confirming.pairs(times) or look.launches), left_s)
            confirming.look(times, look, max(look.launches, made + fits))
            last = look.last
        return confirming, times

    def _measure(self, confirming: Confirming, times: ConfirmedTimes, launches: int, left_s: float) -> None:
        """Measure all that contests need in so many launches."""
        if launches <= 0:
            return
        cases = confirming.wanted()
        cap_s = cap(self._measurer, cases, launches, left_s, self._policy.cap_s)
        made = [with_policy(case, self._policy, launches=launches, cap_s=cap_s) for case in cases]
        measured = self._measurer.measure(f"confirm-{len(times.runs) + 1}", made)
        self._ledger.add(made, measured)
        known = [(case, measured[case.case_id]) for case in made if case.case_id in measured]
        times.add(self._measurer.run, launches, known)

    def _failure(self, case: Case) -> str:
        if self._ledger.usable(case):
            return ""
        status, reason = self._ledger.failed.get(identity(case)) or self._ledger.banned[candidate_key(case)]
        return f"{status}: {reason}"

    def _decide(self, arms: Sequence[Arms], confirming: Confirming, times: ConfirmedTimes, setup: Setup) -> Tuned:
        if confirming.start is not None:
            start = confirming.start
            self._note(
                f"started with {describe_start(setup)}: {start.claim.ratio:.3f}x over all sizes, {start.verdict}"
            )
        control = confirming.control
        decisions = [decide(one, index, confirming, times, control.sizes[index]) for index, one in enumerate(arms)]
        scope = self._scope(confirming.started)
        choices = []
        for curve in dict.fromkeys(one.problem.curve for one in arms):
            same = [decision for decision in decisions if decision.problem.curve == curve]
            choices += ranges(scope.id, same, self._time_of, _UNIT_BYTES)
        self._refusals.add_rest(decisions, self._ledger)
        return Tuned(scope=scope, choices=choices, refused=self._refusals.records(scope.id), control=control)

    def _time_of(self, case: Case, problem: Problem) -> float:
        """Return what the candidate of `case` takes at a problem's size, microseconds; infinite if not measured."""
        for other in problem.candidates:
            if candidate_key(other) == candidate_key(case):
                return self._ledger.time_us(other)
        return math.inf
