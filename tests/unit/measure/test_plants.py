"""A few plants; `python -m tests.bench plants` has hundreds, over gloo and MPI too."""

from __future__ import annotations

from pathlib import Path

import pytest

from commbench.records import Status
from tests.support.planted_calls import KINDS, RULES, WAYS, Plant, scripted

MANY = [(rule, kind, way) for way in range(len(WAYS)) for rule in RULES for kind in KINDS]


@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_no_wrong_call_is_timed(tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commbench.machine.memory.last_level_cache_bytes", lambda: 4096)
    plants = [
        Plant(number, "scripted", "isolated", rule, kind, period=2 + 5 * number % 49, way=way, cache=cache)
        for number, (rule, kind, way) in enumerate(MANY[:: 2 if cache == "cold" else 1])
    ]
    struck = 0
    for plant, outcome in scripted(tmp_path, plants):
        right = Status.WRONG_RESULT if outcome.struck else Status.OK
        assert outcome.status == right or (not outcome.struck and plant.rule == "random"), (plant, outcome)
        struck += outcome.struck > 0
    assert struck > len(plants) / 2


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # sums in place, which grow
@pytest.mark.parametrize("mode", ["isolated", "pipelined"])
def test_what_is_right_is_timed(tmp_path: Path, mode: str) -> None:
    for plant, outcome in scripted(tmp_path, [Plant(n, "scripted", mode, "none", way=n % 6) for n in range(12)]):
        assert outcome.status == Status.OK, (plant, outcome)


def test_a_frequent_fault_is_caught_between_calls_back_to_back(tmp_path: Path) -> None:
    """Every third call: 1 - (2/3)^34, and for calls that do nothing 1 - (2/3)^16."""
    plants = [Plant(n, "scripted", "pipelined", "period", kind, period=3) for n, kind in enumerate(KINDS * 2)]
    assert {outcome.status for _, outcome in scripted(tmp_path, plants)} == {Status.WRONG_RESULT}
