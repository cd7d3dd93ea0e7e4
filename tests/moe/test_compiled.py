"""A compiled layer is the eager one: one graph on one rank, and the exchanges outside of the graphs over ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import commbench
from moe_ref import FFN, Capacity, DistributedMoE, Gate, GateConfig, MoE
from tests.support.ranks import on_gloo

CAPACITIES = {"drops": Capacity("tutel", 1.0), "dropless": Capacity("dropless")}


def gate(capacity: str) -> Gate:
    config = GateConfig(experts=4, capacity=CAPACITIES[capacity], losses=("gshard", "z"))
    return Gate(16, config, generator=torch.Generator().manual_seed(0))


def experts(many: int, dtype: torch.dtype = torch.float32) -> FFN:
    return FFN(many, 16, 32, dtype=dtype, generator=torch.Generator().manual_seed(1))


def gradients(layer: Any, x_TD: torch.Tensor, parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    y_TD, routing = layer(x_TD)
    loss = y_TD.float().square().sum() + routing.losses["gshard"] + routing.losses["z"]
    return [y_TD.detach(), *torch.autograd.grad(loss, [x_TD, *parameters])]


@pytest.fixture(autouse=True)
def forget() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_one_rank_is_one_graph(capacity: str, dtype: torch.dtype) -> None:
    layer = MoE(gate(capacity), experts(4, dtype))
    x_TD = torch.randn(12, 16, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    both = [gradients(each, x_TD, list(layer.parameters())) for each in (layer, compiled)]
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for eager, found in zip(*both, strict=True):
        torch.testing.assert_close(found, eager, **tolerance)


def test_over_ranks_with_and_without_a_compiler() -> None:
    def rank(transport: Any) -> None:
        with commbench.communicator() as comm:
            for capacity in CAPACITIES:
                layer = DistributedMoE(gate(capacity), experts(2), comm, equal_tokens=True)
                x_TD = torch.randn(12, 16, generator=torch.Generator().manual_seed(comm.rank)).requires_grad_()
                compiled = torch.compile(layer, backend="eager")
                both = [gradients(each, x_TD, list(layer.parameters())) for each in (layer, compiled)]
                for eager, found in zip(*both, strict=True):
                    torch.testing.assert_close(found, eager, rtol=1e-5, atol=1e-5)
            whole = torch.compile(lambda x: comm.autograd.all_to_all(2 * x).sin(), backend="eager")
            torch.testing.assert_close(whole(x_TD), comm.autograd.all_to_all(2 * x_TD).sin())

    on_gloo(2, rank)
