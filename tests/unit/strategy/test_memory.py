"""What strategies take of memory, beside what was measured, ours and others'."""

from __future__ import annotations

import pytest

from commbench.strategy.memory import GIB, memory
from commbench.strategy.model_shape import ModelShape
from commbench.strategy.setting import Setting, Settings
from commbench.strategy.workload import Workload
from tests.unit.strategy.shapes import deepseek, fp32_states, mixed, table1

MEASURED = [
    # Ours: docs/guide/gpus.md
    (table1(8), fp32_states(24), Setting(micro_batch=12, recompute="stash"), 55.1),
    (table1(24), fp32_states(24), Setting(micro_batch=12, dp=2, ep=2, recompute="stash"), 88.2),
    # Megatron on B200, as SimuMax measured it; nothing was fitted to these
    (deepseek(2), mixed(32), Setting(dp=8, ep=8), 45.63),
    (deepseek(2), mixed(32), Setting(dp=4, pp=2, ep=4), 44.70),
    (deepseek(3), mixed(32), Setting(dp=8, ep=8), 104.30),
    (deepseek(3), mixed(32), Setting(dp=4, pp=2, ep=4), 114.00),
]


@pytest.mark.parametrize(("model", "work", "setting", "gib"), MEASURED)
def test_within_three_per_cent_of_what_was_measured(
    model: ModelShape, work: Workload, setting: Setting, gib: float
) -> None:
    found = memory(model, work, Settings.of([setting])).total[0] / GIB
    assert found == pytest.approx(gib, rel=0.03)


def total(setting: Setting, model: ModelShape | None = None) -> float:
    return float(memory(model or deepseek(2), mixed(64), Settings.of([setting])).total[0])


def test_what_spreads_states_saves_memory() -> None:
    plain = Setting(dp=8, ep=4, edp=2)
    zeros = [total(Setting(dp=8, ep=4, edp=2, zero=zero)) for zero in (0, 1, 3)]
    assert zeros[0] > zeros[1] > zeros[2]
    assert total(Setting(dp=8, ep=8)) < total(plain), "more ranks share the experts"


def test_recompute_keeps_less_in_its_order() -> None:
    kept = [total(Setting(dp=8, ep=8, micro_batch=4, recompute=how)) for how in ("none", "selective", "stash", "redo")]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 4


def test_the_first_stage_holds_more_micro_batches_than_the_last() -> None:
    deep = ModelShape(name="deep", source="keys", layers=32, width=4096, heads=32, kv_heads=32, head_dim=128,
                      hidden=16384, vocabulary=1000, context=4096, has_experts=(False,) * 32)  # fmt: skip
    few = memory(deep, mixed(4), Settings.of([Setting(pp=4, vpp=1)])).activations[0]
    many = memory(deep, mixed(64), Settings.of([Setting(pp=4)])).activations[0]
    interleaved = memory(deep, mixed(64), Settings.of([Setting(pp=4, vpp=2)])).activations[0]
    one = memory(deep, mixed(1), Settings.of([Setting(pp=4)])).activations[0]
    assert few == many == pytest.approx(4 * one), "as many wait as there are stages"
    assert interleaved == pytest.approx(many * (1 + 3 / 8))
