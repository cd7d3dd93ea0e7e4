"""Which experts' weights go to the tokens: none of balanced ones; else what makes the busiest rank's bytes least."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from commbench.errors import UsageError
from moe_ref import FFN, DistributedMoE, Gate, GateConfig, schedules
from moe_ref.schedules.shadowed import POPULAR, ShadowCost, chosen
from tests.moe.fake import Alone

COST = ShadowCost(row=1, expert=50)


def skewed(seed: int, ranks: int = 4, experts: int = 8, exponent: float = 1.5) -> np.ndarray:
    """Rows of each rank for each expert, by Zipf's law; which ones are popular is the same for all ranks."""
    rng = np.random.default_rng(seed)
    shares = rng.permutation(1 / np.arange(1, experts + 1) ** exponent)
    return rng.multinomial(400, shares / shares.sum(), ranks)


def test_balanced_experts_stay_where_they_are() -> None:
    assert not chosen(np.full((4, 8), 100), ShadowCost(row=1, expert=0.001))
    for seed in range(20):
        assert not chosen(skewed(seed, exponent=0), ShadowCost(row=1, expert=0.001))


def test_what_moves_is_close_to_the_best_of_all_popular_ones() -> None:
    moved = 0
    for seed in range(20):
        rows = skewed(seed)
        found = chosen(rows, COST)
        popular = np.flatnonzero(rows.sum(0) > POPULAR * rows.sum(0).mean()).tolist()
        sets = itertools.chain.from_iterable(
            itertools.combinations(popular, count) for count in range(len(popular) + 1)
        )
        best = min(COST.of(rows, which) for which in sets)
        moved += bool(found)
        assert COST.of(rows, found) <= 1.05 * best <= COST.of(rows, [])
    assert moved == 20
    assert not any(chosen(skewed(seed), ShadowCost(row=1, expert=10_000)) for seed in range(20))


def test_bytes_of_the_busiest_rank_by_hand() -> None:
    """Expert 0 of rank 0 has 10 rows of rank 1, which has 4 of its own for it; expert 1 of rank 1 has 3 of rank 0."""
    rows = np.array([[0, 3], [10, 4]])
    assert COST.of(rows, []) == 10 and COST.of(rows, [0]) == 53 and COST.of(rows, [0, 1]) == 50


@pytest.mark.parametrize(("config", "said"), [({"capacity": None}, "slots of experts are sent whole")])
def test_what_it_cannot_run_is_refused(config: dict[str, None], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        DistributedMoE(Gate(8, GateConfig(experts=4)), FFN(4, 8, 16), Alone(), schedule=schedules.get("shadowed"))
