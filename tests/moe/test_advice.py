"""`commbench advise` counts what the reference layer sends."""

from __future__ import annotations

import pytest

from commbench.find import layer
from moe_ref import Capacity, schedules
from moe_ref.schedules.base import Shape


@pytest.mark.parametrize("factor", [0, 0.29, 1, 1.25, 2])
@pytest.mark.parametrize(("tokens", "experts", "top_k", "ep"), [(4096, 16, 2, 8), (100, 16, 2, 4), (1024, 8, 1, 2)])
def test_exchanges_are_those_of_moe_ref(tokens: int, experts: int, top_k: int, ep: int, factor: float) -> None:
    if factor == 0 and tokens * top_k % experts:
        tokens += 12  # so that even choices are whole
    words = {"tokens": tokens, "model_dim": 64, "top_k": top_k, "experts": experts, "ep": ep}
    shape = layer.read([*(f"{name}={value}" for name, value in words.items()), f"capacity_factor={factor}"])
    slots = Capacity("tutel", factor=factor).slots(tokens, experts, top_k) if factor else None
    reference = Shape(T=tokens, D=64, E=experts, K=top_k, C=slots, W=ep, itemsize=2)
    sent = [call for call in schedules.get("sequential").traffic(reference) if call.collective == shape.collective]
    assert sum(call.calls for call in sent) == shape.exchanges
    assert {call.nbytes for call in sent} == {shape.size_bytes}
