"""Steps that others measured and published, beside what the planner says: nothing here was fitted to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from commbench.strategy import planned
from commbench.strategy.draws import draw
from commbench.strategy.known import GPUS
from commbench.strategy.papers import simumax
from commbench.strategy.ranking import rank
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


H100 = ("gpu=h100", "inter_gbs=400", "skew=1", "fabric_routing=adaptive")
QWEN_235B = ("layers=96", "width=4096", "heads=64", "kv_heads=4", "head_dim=128", "hidden=12288", "experts=128",
             "top_k=8", "expert_hidden=1536", "vocabulary=151936", "context=4096", "batch=2048",
             "nodes=32")  # fmt: skip
GPT_OSS = ("layers=36", "width=2880", "heads=64", "kv_heads=8", "head_dim=64", "hidden=2880", "experts=128",
           "top_k=4", "expert_hidden=2880", "vocabulary=201088", "context=4096", "batch=1024", "nodes=8")  # fmt: skip


@pytest.mark.parametrize(("words", "runs", "published"), [
    (("qwen3-30b-a3b", "nodes=2"), "ep16,mb1,overlap_1f1b,per_node,selective", (13011, 13011)),
    (QWEN_235B, "tp2,pp8,vpp4,ep32,mb1,overlap_1f1b", (1686, 1712)),
    (GPT_OSS, "pp4,ep8,mb1", (5810, 5984)),
])  # fmt: skip
def test_what_megatron_bridge_publishes_lies_inside(
    words: tuple[str, ...], runs: str, published: tuple[int, int]
) -> None:
    request = planned.read([*words, *H100, f"current={runs}"])
    problem = request.problem
    assert request.current is not None
    us = problem.drawn_us(Settings.of([request.current]))[:, 0]
    rates = problem.work.batch * problem.model.context / problem.cluster.gpus / us * 1e6
    low, middle, high = np.quantile(rates, (0.05, 0.5, 0.95))
    assert low < min(published) and max(published) < high
    assert middle == pytest.approx(np.mean(published), rel=0.14)


def test_the_published_choice_of_qwen3_30b_is_the_first() -> None:
    request = planned.read(["qwen3-30b-a3b", "nodes=2", *H100, "tp=1,2", "pp=1", "micro_batch=1", "ep=8,16"])
    first = rank(request.problem, most=50).ranked[0].setting
    assert (first.tp, first.ep, first.schedule.name, first.exchange) == (1, 16, "overlap_1f1b", "per_node")
