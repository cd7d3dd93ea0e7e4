"""What routers chose, against the trace that is written of it; routers stand here as other libraries have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from commbench.collectives import routing_trace
from commbench.errors import UsageError
from moe_ref import Capacity, Gate, GateConfig
from moe_ref.recorded_routing import record_routing


class HFRouter(nn.Module):
    """Returns logits, scores and choices, as routers of transformers 5 do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.top_k = nn.Parameter(torch.randn(4, 8)), 2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = x @ self.weight.T
        return (logits, *logits.topk(2))


class HFMoE(nn.Module):
    """A block of a Hugging Face model, as far as its router goes."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = HFRouter(), nn.Module()
        self.experts.gate_up_proj = self.experts.down_proj = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.chosen = self.gate(x)[2]
        return x


class TopKGate(nn.Module):
    """Returns a loss, weights and a mask [token, expert, slot], as DeepSpeed's does."""

    def __init__(self) -> None:
        super().__init__()
        self.wg, self.k = nn.Linear(8, 4), 2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mask = torch.zeros(5, 4, 3, dtype=torch.bool)
        mask[0, 3, 0] = mask[0, 1, 0] = mask[1, 2, 1] = mask[4, 0, 2] = True  # tokens 2 and 3 are dropped
        return torch.zeros(()), mask.float(), mask, mask.sum((0, 2))


def read(path: Path) -> Any:
    """As a sweep reads it."""
    return np.stack([routing_trace.unpack(step) for step in json.loads(routing_trace.read(str(path)))])


def test_each_pass_through_a_router_is_a_step(tmp_path: Path) -> None:
    model = nn.Sequential(HFMoE(), HFMoE())
    chosen = []
    with record_routing(model, tmp_path / "r.npz", most=3):
        for rows in (6, 4):
            model(torch.randn(rows, 8))
            chosen += [block.chosen for block in model]
    found = read(tmp_path / "r.npz")
    assert found.shape == (3, 1, 6, 2)
    assert np.array_equal(found[1, 0], chosen[1].numpy()) and np.array_equal(found[2, 0, :4], chosen[2].numpy())
    assert (found[2, 0, 4:] == -1).all()
    model(torch.randn(6, 8))  # the hooks are gone
    assert not any(block.gate._forward_hooks for block in model)


def test_tokens_are_shared_out_over_ranks(tmp_path: Path) -> None:
    block = HFMoE()
    with record_routing(block, tmp_path / "r.npz", ranks=4):
        block(torch.randn(6, 8))
    found = read(tmp_path / "r.npz")
    assert found.shape == (1, 4, 2, 2) and (found[0, 3] == -1).all()
    assert np.array_equal(found[0, :3].reshape(6, 2), block.chosen.numpy())


def test_gates_of_deepspeed_and_of_ours_with_what_they_drop(tmp_path: Path) -> None:
    gate = TopKGate()
    with record_routing(gate, tmp_path / "d.npz"):
        gate(torch.randn(5, 8))
    found = read(tmp_path / "d.npz")[0, 0]
    assert [sorted(map(int, token)) for token in found] == [[1, 3], [-1, 2], [-1, -1], [-1, -1], [-1, 0]]
    ours = Gate(8, GateConfig(experts=4, top_k=1, capacity=Capacity("fairseq", 0.5)))
    with record_routing(ours, tmp_path / "o.npz"):
        routing = ours(torch.randn(16, 8))
    found = read(tmp_path / "o.npz")[0, 0]
    assert (found == -1).any() and np.bincount(found[found >= 0], minlength=4).tolist() == routing.counts_E.tolist()


def test_a_gate_of_deepspeed_that_gives_routes(tmp_path: Path) -> None:
    """What DeepSpeed 0.19 asks it: loss, capacity, number of experts, experts of tokens [K, T], places, weights, .."""
    routes = torch.tensor([[1, 2, -1], [3, -1, -1]], dtype=torch.int32)
    gate = TopKGate()
    gate.forward = lambda x: (x.sum(), torch.tensor(2), 4, routes, routes, x, x)  # type: ignore[method-assign]
    with record_routing(gate, tmp_path / "r.npz"):
        gate(torch.randn(3, 8))
    assert read(tmp_path / "r.npz")[0, 0].tolist() == routes.t().tolist()


def test_what_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    with pytest.raises(UsageError, match="Linear has no router that is known"), record_routing(nn.Linear(2, 2), path):
        pass
    with pytest.raises(UsageError, match="no tokens have passed"), record_routing(HFMoE(), path):
        pass
    with pytest.raises(RuntimeError, match="stop"), record_routing(block := HFMoE(), path):
        block(torch.randn(6, 8))
        raise RuntimeError("stop")
    assert not path.exists()


def test_over_ranks_all_choices_are_put_together(tmp_path: Path) -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        block = HFMoE()
        with record_routing(block, tmp_path / "r.npz"):
            block(torch.randn(6, 8))
    finally:
        torch.distributed.destroy_process_group()
    assert np.array_equal(read(tmp_path / "r.npz")[0, 0], block.chosen.numpy())
