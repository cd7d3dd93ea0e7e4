"""The confirmation: what fresh launches measure of each problem, and what is claimed from it, look by look."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from commbench.records import Case, Setup, Status
from commbench.stats import MINIMUM_GAIN, PAIRS_FOR_CLAIM, Floats, Verdict
from commbench.tune import CaseTimes, ProcessGroup
from commbench.tune.claims import Claim, claim, holm, hopeless, observe
from commbench.tune.looks import Look
from commbench.tune.space import Problem, identity
from commbench.tune.starts import control_start, observe_starts, weaker
from commbench.units import format_size

MOST_PAIRS = 60  # they find a gain of 10 % where each measurement is off by 10 %
BEST, PLAIN = "best", "plain"  # the claims: of the best candidate, and of the best one on plain buffers
_NOTHING = claim(np.empty(0))


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


@dataclass(frozen=True, slots=True)
class Arms:
    """What is measured of a problem in the confirmation, and what is claimed from it. By claim: `BEST`, `PLAIN`."""

    problem: Problem
    control: Case
    challengers: dict[str, dict[str, Case]]  # by the key of the start of ranks: of the default and the best other one

    def of_start(self, setup: Setup) -> Case:
        """Return the one arm by which a start is judged."""
        return self.challengers[setup.key].get(BEST) or replace(self.problem.default, setup=setup)

    def control_of_start(self) -> Case:
        """Return the arm of the default start again, for launches of its own."""
        default = self.problem.default.setup
        return replace(self.of_start(default), setup=control_start(default))

    def of_starts(self, setup: Setup) -> list[Case]:
        """Return the cases by which `setup` is judged."""
        default, moved = self.problem.default.setup, self.of_start(setup)
        return [self.of_start(default), moved, replace(moved, setup=default), self.control_of_start()]


class ConfirmedTimes:
    """What the launches of the confirmation measured, of all looks so far."""

    def __init__(self) -> None:
        self.launches = 0
        self.runs: list[str] = []  # the ids of the run folders
        self._times: dict[str, dict[ProcessGroup, float]] = {}
        self._failed: set[str] = set()

    def add(self, run: str, launches: int, measured: Iterable[tuple[Case, CaseTimes]]) -> None:
        """Take over the launches of one look."""
        for case, one in measured:
            if one.status is not Status.OK:
                self._failed.add(identity(case))
            times = self._times.setdefault(identity(case), {})
            for group, time_us in one.time_us.items():
                times[ProcessGroup(self.launches + group.round, f"{run}/{group.attempt}")] = time_us
        self.launches += launches
        self.runs.append(run)

    def times(self, case: Case) -> Mapping[ProcessGroup, float]:
        """Return the median time of each launch, microseconds; nothing of a case that failed."""
        return {} if identity(case) in self._failed else self._times.get(identity(case), {})

    def baseline(self, arms: Arms) -> Mapping[ProcessGroup, float]:
        """Return the geometric mean of the default and its control: measured twice in a launch, it is known better."""
        first, second = self.times(arms.problem.default), self.times(arms.control)
        return {group: math.sqrt(first[group] * second[group]) for group in first if group in second}


@dataclass(slots=True, eq=False)
class Contest:
    """One claim, look by look, until it is confirmed, given up, or the last look is over."""

    claim: Claim = _NOTHING
    p: float | None = None  # the least of all looks so far
    adjusted: float | None = None  # for all claims of the family
    verdict: str = ""  # `Verdict.CONFIRMED`, or in words why not; "" while it is open

    @property
    def open(self) -> bool:
        return not self.verdict

    @property
    def confirmed(self) -> bool:
        return self.verdict == Verdict.CONFIRMED

    def look(self, logs: Sequence[Floats], share: float) -> None:
        """Claim what all of `logs` show."""
        first, *others = (claim(one, share) for one in logs)
        for other in others:
            first = weaker(first, other)
        self.claim = first
        if first.p is not None:
            self.p = min(first.p, 1.0 if self.p is None else self.p)


class Confirming:
    """The contests of a region: which are open, what they need to be measured, and how they end."""

    def __init__(
        self, arms: Sequence[Arms], setup: Setup, confirmation: Confirmation, failure: Callable[[Case], str]
    ) -> None:
        """Confirm the challengers of `arms`, and `setup` where it is not the default start of ranks.

        `failure(case)` says in words why a case cannot be chosen, "" if it can.
        """
        self._arms, self._setup, self._minimum = arms, setup, confirmation.minimum_gain
        self._most, self._failure = confirmation.pairs[1], failure
        self._default = arms[0].problem.default.setup
        keys = dict.fromkeys((self._default.key, setup.key))
        self._sizes = {key: [{name: Contest() for name in one.challengers[key]} for one in arms] for key in keys}
        self._controls = [Contest() for _ in arms]
        self.start: Contest | None = Contest() if len(keys) > 1 else None
        self._start_control: Contest | None = Contest() if len(keys) > 1 else None
        self._begun = False

    @property
    def open(self) -> bool:
        """Return whether anything is left to decide."""
        return any(contest.open for contest in self._contests())

    @property
    def started(self) -> Setup:
        """Return how ranks are to be started, as far as it is decided."""
        return self._setup if self.start is not None and self.start.confirmed else self._default

    def contests(self, index: int) -> Mapping[str, Contest]:
        """Return by claim the contests of a problem under the start that is taken."""
        return self._sizes[self.started.key][index]

    @property
    def control(self) -> Control:
        """Return what the same rules made of the default against itself."""
        every = [*self._controls, *([self._start_control] if self._start_control else [])]
        return Control(
            sizes=[one.claim for one in self._controls],
            start=self._start_control.claim if self._start_control else None,
            passed=sum(one.confirmed for one in every),
        )

    def _keys(self) -> list[str]:
        """Return the starts under which something may still be chosen."""
        return list(self._sizes) if self.start is not None and self.start.open else [self.started.key]

    def _contests(self) -> list[Contest]:
        sizes = [contest for key in self._keys() for of_size in self._sizes[key] for contest in of_size.values()]
        return [*([self.start] if self.start else []), *sizes]

    def wanted(self) -> list[Case]:
        """Return what open contests need, each case once; at first the default and its control at every size."""
        cases: list[Case] = []
        for index, one in enumerate(self._arms):
            challengers = [
                one.challengers[key][name]
                for key in self._keys()
                for name, contest in self._sizes[key][index].items()
                if contest.open
            ]
            if challengers or not self._begun:
                cases += [one.problem.default, one.control, *challengers]
            if self.start is not None and self.start.open:
                cases += one.of_starts(self._setup)
        return list({identity(case): case for case in cases}.values())

    def look(self, times: ConfirmedTimes, look: Look, reach: int) -> None:
        """Judge all that is open. `reach`: how many launches there will be at the most."""
        measured = {}
        for contest, logs in self._observed(times):
            contest.look(logs, look.share)
            measured[id(contest)] = logs
        self._begun = True
        self._decide(measured, look, reach)
        if self.start is not None and self.start.confirmed and (slower := self._slower(times)) is not None:
            self.start.verdict = f"not confirmed: slower at {format_size(slower)}, which the program sends"

    def _slower(self, times: ConfirmedTimes) -> int | None:
        """Return a size that a recorded program sends and that the other start makes slower, for certain."""
        for one in self._arms:
            usual, moved, *_ = one.of_starts(self._setup)
            high = claim(observe_starts([(times.times(usual), times.times(moved))])).high
            if one.problem.calls and high is not None and high < 1:
                return one.problem.size_bytes
        return None

    def pairs(self, times: ConfirmedTimes) -> int | None:
        """Return how many pairs each open contest has at the least, None where all have failed."""
        controls = [*self._controls, self._start_control]
        known = [one.size for contest, logs in self._observed(times) if contest not in controls for one in logs]
        return min(known, default=None)

    def _observed(self, times: ConfirmedTimes) -> Iterator[tuple[Contest, list[Floats]]]:
        """Yield open contests with the logarithms of their ratios; those whose candidate has failed end."""
        for index, one in enumerate(self._arms):
            baseline, keys = times.baseline(one), self._keys()
            tried = not self._begun or any(contest.open for key in keys for contest in self._sizes[key][index].values())
            if self._controls[index].open and tried:
                yield self._controls[index], [observe(times.times(one.problem.default), times.times(one.control))]
            for key in keys:
                for name, contest in self._sizes[key][index].items():
                    case = one.challengers[key][name]
                    if contest.open and (why := self._failure(case)):
                        contest.verdict = f"not confirmed: {why}"
                    elif contest.open:
                        pair = baseline, times.times(case)
                        yield contest, [observe(*pair) if key == self._default.key else observe_starts([pair])]
        if self.start is not None and self._start_control is not None and self.start.open:
            usual, moved, same, control = zip(*(one.of_starts(self._setup) for one in self._arms), strict=True)

            def starts(first: Sequence[Case], second: Sequence[Case]) -> Floats:
                pairs = zip(first, second, strict=True)
                calls = [one.problem.calls for one in self._arms]
                return observe_starts([(times.times(one), times.times(two)) for one, two in pairs], calls)

            yield self.start, [starts(usual, moved), starts(same, moved)]
            yield self._start_control, [starts(usual, control)]

    def _decide(self, measured: Mapping[int, list[Floats]], look: Look, reach: int) -> None:
        """End the contests that this look decides: controls first, as a start has to do better than its own."""
        start = [self.start] if self.start else []
        controls = [*self._controls, *([self._start_control] if self._start_control else [])]
        families = {key: [*start, *(one for size in self._sizes[key] for one in size.values())] for key in self._keys()}
        for key, family in [("", controls), *families.items()]:
            for contest, p in zip(family, holm([one.p for one in family]), strict=True):
                if contest is self.start and key == self._default.key and self._setup.key in families:
                    continue  # a start is claimed beside its own sizes
                contest.adjusted = p
                if contest.open and id(contest) in measured:
                    verdict = contest.claim.judge(self._minimum, p)
                    logs = measured[id(contest)]
                    if verdict == Verdict.CONFIRMED or look.last:
                        contest.verdict = verdict
                    elif family is not controls and any(hopeless(one, reach, self._minimum) for one in logs):
                        contest.verdict = f"{verdict}; given up, as {reach} pairs would hardly show it"
        if self.start and self.start.confirmed and self._start_control and self._start_control.confirmed:
            self.start.verdict = "not confirmed: so is the default start in launches of its own (A-A control)"
