"""The confirmation: what fresh launches measure of each problem, what is claimed from it, and what is decided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from commbench.profile import Evidence
from commbench.records import Case, Setup, Status
from commbench.stats import PAIRS_FOR_CLAIM, Verdict
from commbench.tune import MINIMUM_GAIN, CaseTimes, ProcessGroup
from commbench.tune.choices import Decision
from commbench.tune.claims import Claim, compare, holm
from commbench.tune.search import Ledger
from commbench.tune.space import Problem, candidate_key, identity, label
from commbench.tune.starts import compare_starts, control_start, describe_start, weaker

MOST_PAIRS = 30  # more do not separate a gain of 3 % from none better
BEST, PLAIN = "best", "plain"  # the claims: of the best candidate, and of the best one on plain buffers


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """What it takes to give the default up."""

    minimum_gain: float = MINIMUM_GAIN  # that the lower end of the interval must show
    pairs: tuple[int, int] = (PAIRS_FOR_CLAIM, MOST_PAIRS)  # of launches, the fewest and the most


@dataclass(slots=True)
class Control:
    """The default against itself: what no gain looks like here."""

    sizes: list[Claim] = field(default_factory=list)
    start: Claim | None = None  # of the default start in launches of its own; None where no other start is claimed
    passed: int = 0  # that the same rules would have taken for a gain

    @property
    def claims(self) -> list[Claim]:
        return [*self.sizes, *([self.start] if self.start else [])]

    @property
    def apparent(self) -> float | None:
        """Return the largest ratio that was seen without any gain."""
        known = [claim.ratio for claim in self.claims if math.isfinite(claim.ratio)]
        return max(known) if known else None


@dataclass(slots=True)
class Arms:
    """What is measured of a problem in the confirmation, and what is claimed from it. By claim: `BEST`, `PLAIN`."""

    problem: Problem
    control: Case
    challengers: dict[str, dict[str, Case]]  # by the key of the start of ranks: of the default and the best other one
    claims: dict[str, Claim] = field(default_factory=dict)  # of the start that is taken
    p: dict[str, float | None] = field(default_factory=dict)  # adjusted for all claims of the region
    verdicts: dict[str, str] = field(default_factory=dict)

    def of_start(self, setup: Setup) -> Case:
        """Return the one arm by which a start is judged."""
        return self.challengers[setup.key].get(BEST) or replace(self.problem.default, setup=setup)

    def control_of_start(self) -> Case:
        """Return the arm of the default start again, for launches of its own."""
        default = self.problem.default.setup
        return replace(self.of_start(default), setup=control_start(default))

    def measured(self, setup: Setup) -> list[Case]:
        """Return all cases that the confirmation needs where `setup` is the best start."""
        default = self.problem.default
        challengers = [case for cases in self.challengers.values() for case in cases.values()]
        if setup.key == default.setup.key:
            return [default, self.control, *challengers]
        moved = self.of_start(setup)
        return [
            *(default, self.control, *challengers, moved),
            *(replace(moved, setup=default.setup), self.control_of_start()),
        ]


@dataclass(frozen=True, slots=True)
class ConfirmedTimes:
    """What the launches of the confirmation measured."""

    by_identity: Mapping[str, CaseTimes]
    run: str  # the id of the run folder

    def times(self, case: Case) -> Mapping[ProcessGroup, float]:
        """Return the median time of each launch, microseconds; nothing of a case that failed."""
        one = self.by_identity.get(identity(case))
        return one.time_us if one is not None and one.status is Status.OK else {}

    def claim(self, first: Case, second: Case) -> Claim:
        """Return the claim that `second` is faster: in the same process groups, or of another start in its rounds."""
        times = self.times(first), self.times(second)
        return compare(*times) if first.setup.key == second.setup.key else compare_starts([times])


class Judge:
    """Decide for one region which candidates take the default's place."""

    def __init__(self, confirmation: Confirmation, ledger: Ledger, default: Setup) -> None:
        """Judge by what `confirmation` asks for. `default`: how ranks start by default."""
        self._minimum, self._ledger, self._default = confirmation.minimum_gain, ledger, default

    def control(self, arms: Sequence[Arms], confirmed: ConfirmedTimes, setup: Setup) -> Control:
        """Return what the same rules make of the default against itself, where `setup` is the best start."""
        shown = Control(sizes=[confirmed.claim(one.problem.default, one.control) for one in arms])
        if setup.key != self._default.key:
            usual = [one.of_start(self._default) for one in arms]
            shown.start = _compare_starts(confirmed, usual, [one.control_of_start() for one in arms])
        shown.passed = sum(verdict == Verdict.CONFIRMED for verdict in self._judge(shown.claims))
        return shown

    def _judge(self, claims: Sequence[Claim]) -> list[str]:
        """Return the verdict on each of a family of claims."""
        adjusted = holm([claim.p for claim in claims])
        return [claim.judge(self._minimum, p) for claim, p in zip(claims, adjusted, strict=True)]

    def claim(
        self, arms: Sequence[Arms], confirmed: ConfirmedTimes, setup: Setup, start: Claim | None = None
    ) -> float | None:
        """Set the claims of all arms of a start, and their p; return that of `start`.

        p are adjusted for all of them, `start` included.
        """
        for one in arms:
            default, challengers = one.problem.default, one.challengers[setup.key]
            one.claims = {name: confirmed.claim(default, case) for name, case in challengers.items()}
        every = [(one, name) for one in arms for name in one.claims]
        adjusted = holm([*([start.p] if start else []), *(one.claims[name].p for one, name in every)])
        p_of_start = adjusted.pop(0) if start else None
        for (one, name), p in zip(every, adjusted, strict=True):
            one.p[name] = p
        return p_of_start

    def claim_start(
        self, arms: Sequence[Arms], confirmed: ConfirmedTimes, setup: Setup, control: Control
    ) -> tuple[float, str]:
        """Set the claims of the start that is taken; return the gain of `setup` over all sizes, and its verdict."""
        moved = [one.of_start(setup) for one in arms]
        usual = [one.of_start(self._default) for one in arms]
        same = [replace(case, setup=self._default) for case in moved]
        claim = weaker(*(_compare_starts(confirmed, first, moved) for first in (usual, same)))
        verdict = claim.judge(self._minimum, self.claim(arms, confirmed, setup, claim))
        if verdict == Verdict.CONFIRMED == self._judge(control.claims)[-1]:
            verdict = "not confirmed: so is the default start in launches of its own (A-A control)"
        if verdict != Verdict.CONFIRMED:
            self.claim(arms, confirmed, self._default, claim)
        return claim.ratio, verdict

    def decide(self, arms: Arms, confirmed: ConfirmedTimes, control: Claim, started: Setup) -> Decision:
        """Choose for one problem. `control`: its default against itself; `started`: how ranks will be started."""
        default = arms.problem.default
        challengers = arms.challengers[started.key]
        arms.verdicts = {name: self._verdict(arms, name, challengers.get(name)) for name in (BEST, PLAIN)}
        name = next((name for name in (BEST, PLAIN) if arms.verdicts[name] == Verdict.CONFIRMED), "")
        chosen = challengers[name] if name else default
        plain = None
        if chosen.buffers != "plain":
            plain = challengers[PLAIN] if arms.verdicts[PLAIN] == Verdict.CONFIRMED else default
        claim = arms.claims.get(name or BEST)
        default_us = _median(confirmed.times(default))
        evidence = Evidence(
            size_bytes=arms.problem.size_bytes,
            dtype=default.dtype,
            default=label(default, self._default),
            default_us=default_us,
            chosen_us=_median(confirmed.times(chosen)) if name else default_us,
            ratio=claim.ratio if claim and name and math.isfinite(claim.ratio) else 1.0,
            low=claim.low if claim and name else None,
            high=claim.high if claim and name else None,
            interval_of="launches" if claim and name else None,
            pairs=claim.pairs if claim else 0,
            p=arms.p.get(name or BEST),
            apparent=control.ratio if math.isfinite(control.ratio) else None,
            candidates=len(arms.problem.candidates),
            run=confirmed.run,
            verdict=Verdict.CONFIRMED if name else self._why_default(arms, started),
        )
        return Decision(problem=arms.problem, chosen=chosen, on_plain=plain, evidence=evidence)

    def _verdict(self, arms: Arms, name: str, case: Case | None) -> str:
        """Return `Verdict.CONFIRMED`, or in words why a challenger does not take the default's place."""
        if case is None:
            return "nothing was faster in the search"
        if not self._ledger.usable(case):
            status, reason = self._ledger.failed.get(identity(case)) or self._ledger.banned[candidate_key(case)]
            return f"not confirmed: {status}: {reason}"
        return arms.claims[name].judge(self._minimum, arms.p[name])

    def _why_default(self, arms: Arms, started: Setup) -> str:
        case, claim = arms.challengers[started.key].get(BEST), arms.claims.get(BEST)
        if case is None:
            others = [cases[BEST].setup for cases in arms.challengers.values() if BEST in cases]
            but = f", but with {describe_start(others[0])}, which does not pay over all sizes" if others else ""
            return f"default kept: {arms.verdicts[BEST]}{but}"
        seen = f", measured {claim.ratio:.3f}x" if claim and math.isfinite(claim.ratio) else ""
        return f"default kept: {label(case, self._default)}{seen}, {arms.verdicts[BEST]}"


def _compare_starts(confirmed: ConfirmedTimes, first: Sequence[Case], second: Sequence[Case]) -> Claim:
    """Return the claim of `compare_starts`, from the arm of each size under either start."""
    pairs = zip(first, second, strict=True)
    return compare_starts([(confirmed.times(one), confirmed.times(two)) for one, two in pairs])


def _median(times: Mapping[ProcessGroup, float]) -> float:
    return float(np.median(list(times.values()))) if times else 0.0
