"""Hooks on DeepSpeed's gates: what they choose, as its layer asks for it today and as it did before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("deepspeed")

import torch
from deepspeed.moe.sharded_moe import TopKGate

from moe_ref.recorded_routing import record_routing

pytestmark = pytest.mark.programs


class Asked(torch.nn.Module):
    """A module that asks its gate for routes, as `MOELayer` does."""

    def __init__(self, gate: TopKGate, **how: bool) -> None:
        super().__init__()
        self.gate, self.how = gate, how

    def forward(self, x: torch.Tensor) -> Any:
        return self.gate(x, **self.how)


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_choices_are_those_of_the_masks(top_k: int, factor: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    gate = TopKGate(8, 4, k=top_k, eval_capacity_factor=factor, min_capacity=1, use_rts=False,
                    top2_2nd_expert_sampling=False).eval()  # fmt: skip
    x = torch.randn(12, 8)
    found = []
    for number, how in enumerate(({}, {"sparse_routes": True})):
        with record_routing(Asked(gate, **how), tmp_path / f"{number}.npz"):
            Asked(gate, **how)(x)
        (step,) = np.load(tmp_path / f"{number}.npz")["experts"]
        found.append([sorted(expert for expert in token if expert >= 0) for token in step[0].tolist()])
    assert found[0] == found[1] and any(found[0])
    full = all(len(token) == top_k for token in found[0])
    assert full == (factor == 4.0)
