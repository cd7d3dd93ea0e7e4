"""The engine of every A/B: launches of two arms by turns, until there is an answer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from commbench.ab import pairs
from commbench.ab.pairs import ARMS, OfArm, Paired

L = TypeVar("L", bound=OfArm)
_TRIES = 2  # launches of an arm in a row that fail: then it is the arm


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLimits:
    """When it stops. rounds: so many, and no look before; None: when resolved, MOST_ROUNDS at the most.

    budget_s: no round is begun that would end later, None: none. resolve: a relative difference that is none.
    """

    rounds: int | None = None
    budget_s: float | None = None
    resolve: float = 0.01

    @property
    def most(self) -> int:
        return pairs.MOST_ROUNDS if self.rounds is None else self.rounds


class Stop(StrEnum):
    """Why it stopped."""

    RESOLVED = "resolved"
    ROUNDS = "rounds"
    BUDGET = "budget"
    FAILED = "failed"  # an arm fails


class ArmFailed(Exception):
    """Raised by a launch that has no value; says why."""


class Turns(Generic[L]):
    """Makes rounds of launches. Whoever interrupts it finds what there is in `launches`."""

    def __init__(
        self,
        limits: TurnLimits,
        launch: Callable[[str, int], L],
        after: Callable[[Paired], None],
        *,
        launches: Iterable[L] = (),
        spent_s: float = 0.0,
        clock: Callable[[], float],
    ) -> None:
        """launch: makes one of an arm, for a round, and raises `ArmFailed`. after: hears of each whole round.

        launches: those of a run that goes on, which has spent `spent_s` seconds.
        """
        self._limits, self._launch, self._after, self._clock = limits, launch, after, clock
        self._begun = clock() - spent_s
        self._round_s: list[float] = []
        self.launches: list[L] = list(launches)
        self.failed: dict[str, str] = {}  # why the arm's last launch failed, while no later one has ended well

    @property
    def paired(self) -> Paired | None:
        return pairs.compare(self.launches, looked_at=self._limits.rounds is None)

    @property
    def spent_s(self) -> float:
        return self._clock() - self._begun

    def run(self) -> Stop:
        """Make rounds until there is an answer, or nothing is left for one; say which."""
        tries = dict.fromkeys(ARMS, 0)
        number = len(pairs.whole(self.launches))
        while (stop := self._stop(number)) is None:
            began = self._clock()
            for arm in pairs.order(number):
                try:
                    self.launches.append(self._launch(arm, number))
                except ArmFailed as error:
                    self.failed[arm] = str(error)
                    tries[arm] += 1
                    if tries[arm] == _TRIES:
                        return Stop.FAILED
                    break  # the round is made again, both arms of it: what is far apart in time is no pair
                self.failed.pop(arm, None)
                tries[arm] = 0
            else:
                self._round_s.append(self._clock() - began)
                number += 1
                if (paired := self.paired) is not None:
                    self._after(paired)
        return stop

    def _stop(self, number: int) -> Stop | None:
        limits = self._limits
        if number >= limits.most:
            return Stop.ROUNDS
        paired = self.paired
        if limits.rounds is None and paired is not None and paired.level == pairs.LOOKED_AT:
            low, high = paired.ratio.low, paired.ratio.high
            if low is not None and high is not None and (low > 1 or high < 1 or paired.nothing_above(limits.resolve)):
                return Stop.RESOLVED
        ahead = statistics.median(self._round_s) if self._round_s else 0.0
        if limits.budget_s is not None and self.spent_s + ahead > limits.budget_s:
            return Stop.BUDGET
        return None
