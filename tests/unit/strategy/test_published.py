"""Steps that others measured and published, beside what the planner says: nothing here was fitted to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from commbench.strategy.draws import draw
from commbench.strategy.known import GPUS
from commbench.strategy.papers import simumax
from commbench.strategy.setting import Setting, Settings
from commbench.strategy.step_time import step_time
from tests.unit.strategy.shapes import deepseek, mixed

# Megatron on 8 B200, as SimuMax measured it (its summary of release 1.2): milliseconds of a step by
# version of DeepSeek and sequences, with ep 8, and with ep 4 pp 2. Its runs overlap no gradients.
EP8, EP4_PP2 = Setting(dp=8, ep=8), Setting(dp=4, pp=2, ep=4)
CELLS = [
    (2, EP8, {32: 366.6, 64: 676.2, 256: 2721.3}),
    (2, EP4_PP2, {16: 282.1, 32: 492.6, 128: 1727.7}),
    (3, EP8, {32: 603.2, 64: 1101.7, 256: 4141.2}),
    (3, EP4_PP2, {16: 452.2, 32: 771.6, 128: 2718.6}),
]


def times_ms(version: int, setting: Setting, batch: int) -> np.ndarray[Any, Any]:
    on = simumax.cluster()
    draws = draw(on, efficiency=GPUS["b200"].efficiency._replace(grad_overlap=(0.0, 0.0)))
    return step_time(deepseek(version), mixed(batch), on, Settings.of([setting]), draws).us[:, 0] / 1e3


@pytest.mark.parametrize(("version", "setting", "cells"), CELLS)
def test_a_published_step_lies_in_the_interval(version: int, setting: Setting, cells: dict[int, float]) -> None:
    for batch, measured in cells.items():
        low, middle, high = np.quantile(times_ms(version, setting, batch), (0.05, 0.5, 0.95))
        assert low < measured < high
        assert middle == pytest.approx(measured, rel=0.16)


@pytest.mark.parametrize("version", [2, 3])
def test_the_ratio_of_two_layouts_is_near_the_published_one(version: int) -> None:
    """1.36 beside 1.34, and 1.39 beside 1.28."""
    measured = {2: 492.6 / 366.6, 3: 771.6 / 603.2}[version]
    found = np.median(times_ms(version, EP4_PP2, 32) / times_ms(version, EP8, 32))
    assert found == pytest.approx(measured, rel=0.1)
