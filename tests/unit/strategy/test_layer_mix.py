"""Keep, redo or swap each layer: as good as all mixes tried one by one."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest

from commbench.strategy import planned
from commbench.strategy.layer_mix import LayerKind, mix, told
from commbench.strategy.ranking import rank
from commbench.strategy.tagged import Tagged


def drawn(seed: int, layers: int) -> list[LayerKind]:
    rng = np.random.default_rng(seed)
    return [
        LayerKind(count=1, kept_bytes=float(rng.integers(20, 100)), redone_bytes=float(rng.integers(1, 9)),
                  redo_us=float(rng.integers(5, 50)), copy_us=float(rng.integers(5, 60)))
        for _ in range(layers)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(1))
def test_it_is_as_good_as_all_531441_mixes_of_12_layers(seed: int) -> None:
    kinds = drawn(seed, 12)
    choices = np.array(list(itertools.product(range(3), repeat=6)), dtype=np.int8)
    parts = []
    for half in (kinds[:6], kinds[6:]):
        table = np.array([[(kind.kept_bytes, 0, 0), (kind.redone_bytes, kind.redo_us, 0), (0, 0, kind.copy_us)]
                          for kind in half])  # fmt: skip
        parts.append(table[np.arange(6), choices].sum(axis=1))
    every = (parts[0][:, None] + parts[1][None]).reshape(-1, 3)
    assert len(every) == 3**12
    whole = sum(kind.kept_bytes for kind in kinds)
    for limit, hidden in ((0.7 * whole, 0.0), (0.4 * whole, 60.0), (0.1 * whole, 200.0), (0.3 * whole, 1e9)):
        costs = every[:, 1] + np.maximum(every[:, 2] - hidden, 0.0)
        found = mix(kinds, limit, hidden)
        assert found is not None and found.held_bytes <= limit
        assert found.us == costs[every[:, 0] <= limit].min()


def test_layers_that_are_alike_are_counted() -> None:
    kind = LayerKind(count=48, kept_bytes=10.0, redone_bytes=1.0, redo_us=7.0)
    found = mix([kind], 400.0)
    assert found == ((9,), (0,), 63.0, 399.0), "each of nine frees nine"
    swapping = LayerKind(count=48, kept_bytes=10.0, redone_bytes=1.0, redo_us=7.0, copy_us=4.0)
    assert mix([swapping], 400.0, hidden_us=40.0) == ((0,), (8,), 0.0, 400.0), "copies beside compute cost nothing"
    assert mix([kind], 40.0) is None


def test_a_strategy_that_memory_binds_is_filled_up() -> None:
    """Qwen3-30B with exchanges beside compute: it fits with some layers redone, and with a fast host with none."""
    words = ["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400", "tp=1", "pp=1", "ep=16", "micro_batch=1",
             "schedule=overlap_1f1b", "recompute=redo", "trainer=all"]  # fmt: skip
    problem = planned.read(words).problem
    first = rank(problem, most=5).ranked[0]
    said = told(problem, first)
    match = re.match(r"with (\d+) of 48 layers redone .* fits too: \d+ ms a step, (0\.\d+)x", said)
    assert match and 0 < int(match[1]) < 48 and float(match[2]) < 1, said
    swapped = told(dataclasses.replace(problem, host_gbs=1e5), first)
    assert "redone" not in swapped and re.search(r"\d+ of 48 layers swapped", swapped), swapped
    roomy = dataclasses.replace(
        problem, cluster=dataclasses.replace(problem.cluster, memory_gib=Tagged(800, "declared"))
    )
    assert told(roomy, first) == "", "all fits"
