"""Stages of a pipeline: which layers each has. Three stand for all: the first, the heaviest between, the last."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from commbench.stats import Floats
from commbench.strategy.model_shape import ModelShape
from commbench.strategy.setting import Ints


class StageLayers(NamedTuple):
    """The first, the heaviest middle and the last stage of each setting, [n, 3]: layers, whether it has the embedding
    and the head, and its place from the end, which is how many micro-batches it holds."""

    dense: Floats
    moe: Floats
    embedding: Floats
    head: Floats
    from_end: Floats


def layers_of_stages(layers: int, pp: int) -> list[int]:
    """Return how many layers each stage has: as even as can be, and what is over goes to stages in the middle.

    The first has the embedding, the last the head beside its layers.
    """
    base, over = divmod(layers, pp)
    middle_first = sorted(range(pp), key=lambda stage: (stage == pp - 1, stage == 0, stage))
    more = set(middle_first[:over])
    return [base + (stage in more) for stage in range(pp)]


def stage_layers(model: ModelShape, pp: Ints) -> StageLayers:
    """Return the three stages of each number of stages in `pp` [n]."""
    known = {int(one): _three(model, int(one)) for one in np.unique(pp)}
    rows = np.array([known[int(one)] for one in pp], dtype=float).reshape(len(pp), 3, 5)
    return StageLayers(*(rows[:, :, place] for place in range(5)))


@lru_cache(maxsize=256)
def _three(model: ModelShape, pp: int) -> tuple[tuple[int, int, int, int, int], ...]:
    stages, first = [], 0
    for stage, count in enumerate(layers_of_stages(model.layers, pp)):
        moe = sum(model.has_experts[first : first + count])
        stages.append((count - moe, moe, int(stage == 0), int(stage == pp - 1), pp - stage))
        first += count
    middle = max(stages[1:-1] or stages[:1], key=lambda one: (one[0] + one[1], one[1]))
    return stages[0], middle, stages[-1]
