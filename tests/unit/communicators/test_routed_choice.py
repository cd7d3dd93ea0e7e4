"""Which way a dispatch takes by a profile: by its layer, and by its size; and what that is in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from commbench.communicators import routed_choice
from commbench.communicators.routed_choice import LayerAsk, RoutedChoice
from commbench.profile import Choice, name_collective
from commbench.profile.table import Table
from tests.support import profiles

ASK = LayerAsk(top_k=8, experts=32, size_bytes=1 << 20)
LAYER = {"router": "uniform", "router_seed": 0, "top_k": 8, "experts": 32, "output": "expert", "counts": "host"}


def tuned(algorithm: str, first: int = 0, last: int | None = None, **other: Any) -> Choice:
    return profiles.choice("dispatch", algorithm, first, last, arguments={**LAYER, **other})


def chosen(ask: LayerAsk, *choices: Choice) -> RoutedChoice:
    return routed_choice.choose(Table(profiles.profile(*choices), "s").curves("dispatch"), ask)


@pytest.mark.parametrize(
    ("changed", "algorithm"),
    [
        ({}, "per_rank"),
        ({"size_bytes": 4095}, "per_choice"),
        ({"size_bytes": 4096}, "per_rank"),
        ({"top_k": 2}, "per_node"),
        ({"payload": "fp8"}, "all_gather"),
        ({"payload": "int8"}, "per_choice"),
        ({"experts": 64}, "per_choice"),
    ],
)
def test_the_layer_and_its_size_decide(changed: dict[str, Any], algorithm: str) -> None:
    found = chosen(
        replace(ASK, **changed),
        tuned("per_choice", 0, 4095),
        tuned("per_rank", 4096),
        tuned("per_node", top_k=2),
        tuned("all_gather", payload="fp8"),
        tuned("per_node", experts=64, output="rank"),  # a program takes rows by expert
    )
    assert found.algorithm == algorithm
    assert (found.choice is None) == ("nothing" in found.why) == (changed in ({"payload": "int8"}, {"experts": 64}))
    if found.choice is None:
        assert "but for top-8 of 32, top-2 of 32, top-8 of 32, as fp8, top-8 of 64: the default" in found.why


def test_what_was_told_before_and_other_routers_come_last() -> None:
    """Whatever their order in the file."""
    ways = [tuned("per_node", counts="cached"), tuned("all_gather", router="zipf", alpha=1.0), tuned("per_rank")]
    for order in (ways, ways[::-1]):
        found = chosen(ASK, *order)
        assert (found.algorithm, found.why) == (
            "per_rank",
            "the profile's choice for all sizes, tuned with router=uniform, counts=host",
        )
    assert chosen(ASK, *ways[:2]).algorithm == "all_gather"


def test_ways_of_sweeps_alone_become_those_that_send_the_same_rows() -> None:
    found = chosen(ASK, tuned("per_node_pipelined"))
    assert found.algorithm == "per_node"
    assert "per_node_pipelined chunks=4 is a sweep's alone, and per_node sends the same rows" in found.why
    for one in ("slots", "symm_per_rank", "symm_slots"):
        assert chosen(ASK, tuned(one)).algorithm == "per_rank"


def test_in_words_and_without_a_profile() -> None:
    found = routed_choice.choose(None, ASK)
    assert routed_choice.describe(replace(ASK, payload="fp8"), found) == (
        "dispatch of 1 MiB a rank, top-8 of 32, as fp8: per_choice\n    why: no profile: the default"
    )


def test_choices_are_told_apart_by_what_differs() -> None:
    """In the table of a tuning and in its answer: nothing where one thing was tuned, and no key that is the same."""
    ways = [tuned("per_node"), tuned("per_node", payload="fp8"), profiles.choice("all_to_all", "bruck", captured=True)]
    names = [name_collective(way, ways) for way in ways]
    assert names == ["dispatch payload=none", "dispatch payload=fp8", "all_to_all captured"]
    assert name_collective(ways[0], ways[:1]) == "dispatch"
