"""Which uneven exchanges of a program go by the profile, where a rank knows its own counts only: no ranks needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from commbench import algorithms
from commbench.backend import uneven
from commbench.backend.uneven import Uneven
from commbench.communicators.select import Chooser
from commbench.layout import Layout
from commbench.profile import Choice
from commbench.profile.table import Table
from tests.support import profiles

SMALL, LARGE = 10, 1000  # bytes; the choices below change at 100


class FakeComm:
    """Two ranks in one, of which the other sends as much as this one. Notes who makes each call."""

    size = 2

    def __init__(self, *choices: Choice) -> None:
        self._chooser = Chooser("gloo", Layout(1, 2), Table(profiles.profile(*choices), "s"))
        self.made: list[str] = []

    def choose(self, ask: Any, *, counts: bool = True) -> Any:
        return self._chooser.choose(ask, counts=counts)

    def counts_inside(self, chosen: Any) -> Any:
        comm = self
        if chosen.algorithm.counts_inside is None:
            return None

        class Inside:
            def run(self, out: Any, inp: Any, received: list[int], sent: list[int]) -> int:
                comm.made.append(chosen.config.algorithm)
                return max(sum(received), sum(sent))

        return Inside()

    def exchange_counts(self, sent: list[int]) -> list[list[int]]:
        self.made.append("counts")
        return [sent, sent]

    def all_to_allv(self, out: Any, inp: Any, received: Any, sent: Any, *, matrix: Any = None) -> None:
        self.made.append("torch" if matrix is None else "by its counts")


def calls(*sizes: int, choices: list[Choice]) -> tuple[list[str], Uneven]:
    """Return who has made calls of so many bytes, one after the other."""
    comm: Any = FakeComm(*choices)
    decides = Uneven(comm, profiles.profile(*choices))
    comm.made.clear()
    for nbytes in sizes:
        data = torch.zeros(nbytes, dtype=torch.uint8)
        decides.run(data, data, [nbytes // 2] * 2, [nbytes // 2] * 2)
    return comm.made, decides


def direct_to(algorithm: str, **more: Any) -> list[Choice]:
    """torch's own call below 100 bytes."""
    return [
        profiles.choice("all_to_allv", "direct", 0, 99),
        profiles.choice("all_to_allv", algorithm, 100, **more),
    ]


def test_the_largest_of_the_last_calls_says_who_makes_the_next() -> None:
    made, decides = calls(SMALL, LARGE, SMALL, LARGE, *[SMALL] * 18, LARGE, choices=direct_to("pairwise"))
    assert made[:2] == ["counts", "torch"], "of the first nobody knows the size, and torch's own says nothing of it"
    assert made[2:4] == ["counts", "pairwise"] and made[4:6] == ["pairwise"] * 2
    assert made[6:22] == ["pairwise"] * 16, "small ones go the same way while a large one is remembered"
    assert made[22:] == ["counts", "torch", "counts", "torch", "counts", "pairwise"][-len(made[22:]) :]
    assert "pairwise window=1" in decides.explain() and "carry the counts" in decides.explain()


def test_nobody_asks_for_long_where_torchs_own_is_the_choice() -> None:
    many = uneven._STREAK + uneven._PAUSE
    made, decides = calls(*[SMALL] * many, LARGE, choices=direct_to("pairwise"))
    assert made == ["counts", "torch"] * uneven._STREAK + ["torch"] * uneven._PAUSE + ["counts", "pairwise"]
    assert decides.calls == many + 1


def test_counts_are_exchanged_first_where_that_pays_and_messages_carry_none() -> None:
    assert algorithms.get("all_to_allv", "counts_first").counts_inside is None
    pays = replace(profiles.EVIDENCE, default_us=1e9)
    made, decides = calls(LARGE, LARGE, choices=direct_to("counts_first", evidence=[pays]))
    assert made == ["counts", "counts", "by its counts", "counts", "by its counts"]
    assert "2 of 2 calls exchanged their counts first" in decides.explain()

    never = replace(profiles.EVIDENCE, default_us=100.0)  # as fast as by default
    _, decides = calls(choices=direct_to("counts_first", evidence=[never]))
    assert decides.not_worth.startswith("to exchange the counts takes") and "torch's own, as" in decides.explain()
    mixed = [*direct_to("counts_first", evidence=[never])[:1], profiles.choice("all_to_allv", "pairwise", 100, 1999)]
    mixed += [profiles.choice("all_to_allv", "counts_first", 2000, evidence=[never])]
    made, decides = calls(LARGE, 3 * LARGE, 3 * LARGE, LARGE, choices=mixed)
    assert not decides.not_worth
    assert made == ["counts", "pairwise", "pairwise", "torch", "counts", "pairwise"], "the third is too large to pay"
    assert "torch's own where the counts would have to be exchanged first" in decides.explain()


def test_a_profile_without_a_choice_is_said() -> None:
    _, decides = calls(choices=[profiles.choice("all_to_allv", "direct")])
    assert decides.not_worth == "the profile has torch's own call for all sizes"
