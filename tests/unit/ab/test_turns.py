"""Turns: who is launched when, what ends it, and what a launch that fails means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from commbench.ab.pairs import BASELINE, CANDIDATE
from commbench.ab.turns import ArmFailed, Stop, TurnLimits, Turns


@dataclass(frozen=True)
class Launch:
    arm: str
    round: int
    cost: float


class Scripted:
    """Launches that take a second each; cost: by arm and how many there were before."""

    def __init__(self, cost: Callable[[str, int], float]) -> None:
        self._cost = cost
        self.asked: list[str] = []
        self.now = 0.0

    def __call__(self, arm: str, number: int) -> Launch:
        self.asked.append(f"{arm[0]}{number}")
        self.now += 1.0
        return Launch(arm, number, self._cost(arm, len(self.asked)))

    def turns(self, limits: TurnLimits, **more: Any) -> Turns[Launch]:
        return Turns(limits, self, lambda paired: None, clock=lambda: self.now, **more)


def wobble(arm: str, place: int) -> float:
    return 1.0 + 0.01 * (place * 7 % 5)


def test_arms_go_first_by_turns() -> None:
    its = Scripted(wobble)
    assert its.turns(TurnLimits(rounds=3)).run() is Stop.ROUNDS
    assert its.asked == ["b0", "c0", "c1", "b1", "b2", "c2"]


def test_it_stops_when_it_knows() -> None:
    its = Scripted(lambda arm, place: wobble(arm, place) / (1.2 if arm == CANDIDATE else 1.0))
    turns = its.turns(TurnLimits())
    assert turns.run() is Stop.RESOLVED and len(turns.launches) == 18, "nine rounds, the first look that can tell"
    assert turns.paired is not None and turns.paired.ratio.low is not None and turns.paired.ratio.low > 1


def test_it_stops_when_there_is_nothing_that_matters() -> None:
    its = Scripted(lambda arm, place: 1.0 + 0.0001 * (place * 7 % 5))
    turns = its.turns(TurnLimits(resolve=0.01))
    assert turns.run() is Stop.RESOLVED and turns.paired is not None and turns.paired.nothing_above(0.01)


def test_rounds_that_are_asked_for_are_made() -> None:
    its = Scripted(lambda arm, place: wobble(arm, place) / (1.2 if arm == CANDIDATE else 1.0))
    assert its.turns(TurnLimits(rounds=12)).run() is Stop.ROUNDS and len(its.asked) == 24


def test_a_budget_begins_no_round_that_would_not_end_in_it() -> None:
    its = Scripted(lambda arm, place: 1.0 + 0.3 * (place * 7 % 5))
    turns = its.turns(TurnLimits(budget_s=9.0))
    assert turns.run() is Stop.BUDGET and turns.spent_s == 8.0
    on = its.turns(TurnLimits(budget_s=13.0), launches=turns.launches, spent_s=turns.spent_s)
    assert on.run() is Stop.BUDGET and len(on.launches) == 12 and its.asked[8] == "b4"


def test_an_arm_that_fails_twice_in_a_row_is_the_answer() -> None:
    def cost(arm: str, place: int) -> float:
        if arm == CANDIDATE:
            raise ArmFailed("exit code 3")
        return 1.0

    its = Scripted(cost)
    turns = its.turns(TurnLimits())
    assert turns.run() is Stop.FAILED and turns.failed == {CANDIDATE: "exit code 3"}
    assert its.asked == ["b0", "c0", "b0", "c0"] and turns.paired is None


def test_a_round_in_which_one_failed_is_made_again_whole() -> None:
    def cost(arm: str, place: int) -> float:
        if place in (4, 9):
            raise ArmFailed("once")
        return 2.0 if place == 3 else wobble(arm, place)

    its = Scripted(cost)
    turns = its.turns(TurnLimits(rounds=4))
    assert turns.run() is Stop.ROUNDS and not turns.failed
    assert its.asked == ["b0", "c0", "c1", "b1", "c1", "b1", "b2", "c2", "c3", "c3", "b3"]
    assert turns.paired is not None and turns.paired.rounds == 4
    assert max(one.cost for one in turns.launches) > 1.9 and turns.paired.ratio.value < 1.1, (
        "the lone launch is no pair"
    )


def test_what_interrupts_keeps_the_launches() -> None:
    def cost(arm: str, place: int) -> float:
        if place == 5:
            raise KeyboardInterrupt
        return 1.0

    its = Scripted(cost)
    turns = its.turns(TurnLimits())
    with pytest.raises(KeyboardInterrupt):
        turns.run()
    assert [one.arm for one in turns.launches] == [BASELINE, CANDIDATE, CANDIDATE, BASELINE]
