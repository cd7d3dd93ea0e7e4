"""The confirmation: what fresh launches measure of each problem, what is claimed from it, and what is decided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from commbench.profile import Evidence
from commbench.records import Case, Setup, Status
from commbench.stats import PAIRS_FOR_CLAIM, Verdict
from commbench.tune import MINIMUM_GAIN, CaseTimes
from commbench.tune.choices import Decision
from commbench.tune.claims import Claim, compare, holm
from commbench.tune.search import Ledger
from commbench.tune.space import Problem, candidate_key, identity, label

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

    claims: list[Claim] = field(default_factory=list)
    passed: int = 0  # that the same rules would have taken for a gain

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
    challengers: dict[str, Case] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    p: dict[str, float | None] = field(default_factory=dict)  # adjusted for all claims of the region
    verdicts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ConfirmedTimes:
    """What the launches of the confirmation measured."""

    by_identity: Mapping[str, CaseTimes]
    run: str  # the id of the run folder

    def times(self, case: Case) -> Mapping[int, float]:
        """Return launch -> median time, microseconds; nothing of a case that failed."""
        one = self.by_identity.get(identity(case))
        return one.time_us if one is not None and one.status is Status.OK else {}


class Judge:
    """Decide for one region which candidates take the default's place."""

    def __init__(self, confirmation: Confirmation, ledger: Ledger, default: Setup) -> None:
        """Judge by what `confirmation` asks for. `default`: how ranks start by default."""
        self._minimum, self._ledger, self._default = confirmation.minimum_gain, ledger, default

    def claim(self, arms: Sequence[Arms], confirmed: ConfirmedTimes) -> Control:
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
            claim.judge(self._minimum, p) == Verdict.CONFIRMED
            for claim, p in zip(control.claims, holm([claim.p for claim in control.claims]), strict=True)
        )
        return control

    def start_gain(self, arms: Sequence[Arms], confirmed: ConfirmedTimes, setup: Setup) -> tuple[float, str]:
        """Return the gain of starting ranks as `setup` says, over all sizes by the best candidates, and its verdict."""
        before: dict[int, list[float]] = {}
        after: dict[int, list[float]] = {}
        for one in arms:
            moved = replace(one.problem.default, setup=setup)
            there = [confirmed.times(case) for case in (moved, *one.challengers.values())]
            here = confirmed.times(one.problem.default)
            for launch, value in here.items():
                best = [arm[launch] for arm in there if launch in arm]
                if best:
                    before.setdefault(launch, []).append(math.log(value))
                    after.setdefault(launch, []).append(math.log(min(best)))
        first, second = ({k: math.exp(float(np.mean(v))) for k, v in arm.items()} for arm in (before, after))
        claim = compare(first, second)
        return claim.ratio, claim.judge(self._minimum, claim.p)

    def decide(self, arms: Arms, confirmed: ConfirmedTimes, control: Claim, *, moved: bool) -> Decision:
        """Choose for one problem. `control`: its default against itself; `moved`: ranks will be started otherwise."""
        default = arms.problem.default
        arms.verdicts = {name: self._verdict(arms, name, moved=moved) for name in (BEST, PLAIN)}
        name = next((name for name in (BEST, PLAIN) if arms.verdicts[name] == Verdict.CONFIRMED), "")
        chosen = arms.challengers[name] if name else default
        plain = None
        if chosen.buffers != "plain":
            plain = arms.challengers[PLAIN] if arms.verdicts[PLAIN] == Verdict.CONFIRMED else default
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
            verdict=Verdict.CONFIRMED if name else self._why_default(arms, claim),
        )
        return Decision(problem=arms.problem, chosen=chosen, on_plain=plain, evidence=evidence)

    def _verdict(self, arms: Arms, name: str, *, moved: bool) -> str:
        """Return `Verdict.CONFIRMED`, or in words why a challenger does not take the default's place."""
        case = arms.challengers.get(name)
        if case is None:
            return "nothing was faster in the search"
        if case.setup.key != arms.problem.default.setup.key and not moved:
            return "not confirmed: the start of ranks that it needs does not pay over all sizes"
        if not self._ledger.usable(case):
            status, reason = self._ledger.failed.get(identity(case)) or self._ledger.banned[candidate_key(case)]
            return f"not confirmed: {status}: {reason}"
        return arms.claims[name].judge(self._minimum, arms.p[name])

    def _why_default(self, arms: Arms, claim: Claim | None) -> str:
        case = arms.challengers.get(BEST)
        if case is None:
            return f"default kept: {arms.verdicts[BEST]}"
        seen = f", measured {claim.ratio:.3f}x" if claim and math.isfinite(claim.ratio) else ""
        return f"default kept: {label(case, self._default)}{seen}, {arms.verdicts[BEST]}"


def _median(times: Mapping[int, float]) -> float:
    return float(np.median(list(times.values()))) if times else 0.0
