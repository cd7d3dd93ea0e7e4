"""A compiled layer is the eager one: one graph on one rank, and the exchanges outside of the graphs over ranks."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from commbench_kernels import rows
from torch import nn

import commbench
from commbench.communicators.loaded import LoadedProfile
from moe_ref import FFN, Capacity, DistributedMoE, Gate, GateConfig, MoE
from tests.support.profiles import choice, profile
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


@pytest.mark.parametrize("permute", ["auto", "fused"])
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_a_compiler_is_kept_from_kernels(capacity: str, permute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where they run: what launches them, and what looks for triton, is nothing that can be traced."""
    plain = MoE(gate(capacity), experts(4), permute="sparse")
    x_TD = torch.randn(12, 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
    right = gradients(plain, x_TD, list(plain.parameters()))
    monkeypatch.setattr(rows, "unsupported", lambda device: "" if importlib.import_module("math") else "nothing")
    layer = MoE(gate(capacity), experts(4), permute=permute)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for found, oracle in zip(gradients(compiled, x_TD, list(layer.parameters())), right, strict=True):
        torch.testing.assert_close(found, oracle, rtol=1e-5, atol=1e-5)
    if importlib.util.find_spec("triton") is None:
        with pytest.raises(ImportError, match="triton"):  # where nothing traces, the kernels are asked for
            layer(x_TD)


class Block(nn.Module):
    """A block of somebody's model: x + layer(norm(x)), with the gate's losses."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = nn.RMSNorm(16), layer

    def forward(self, x_TD: torch.Tensor) -> Any:
        y_TD, routing = self.layer(self.norm(x_TD))
        return x_TD + y_TD, routing


TUNED = profile(
    choice("all_to_all", "bruck", 0, 4095), choice("all_to_all", "pairwise", 4096), choice("all_to_allv", "pairwise")
)


def even(rank: int) -> int:
    return 12


def uneven(rank: int) -> int:
    return (0, 5, 1, 9)[rank]


CASES = [*itertools.product(CAPACITIES, (even, uneven), (False, True))]


def compare(capacity: str, tokens: Callable[[int], int], with_profile: bool) -> None:
    """On each rank: the compiled block is the eager one, and so is a call by itself."""
    with LoadedProfile(TUNED).communicator() if with_profile else commbench.communicator() as comm:
        layer = DistributedMoE(gate(capacity), experts(4 // comm.size), comm, equal_tokens=tokens is even)
        x_TD = torch.randn(tokens(comm.rank), 16, generator=torch.Generator().manual_seed(comm.rank))
        block = Block(layer)
        compiled = torch.compile(block, backend="eager")
        both = [gradients(each, x_TD.requires_grad_(), list(block.parameters())) for each in (block, compiled)]
        for eager, found in zip(*both, strict=True):
            torch.testing.assert_close(found, eager, rtol=1e-5, atol=1e-5)
        whole = torch.compile(lambda x: comm.autograd.all_to_all(2 * x).sin(), backend="eager")
        x_WD = torch.randn(4 * comm.size, 16)
        torch.testing.assert_close(whole(x_WD), comm.autograd.all_to_all(2 * x_WD).sin())


@pytest.mark.parametrize(
    ("ranks", "cases"),
    [
        (2, [("drops", even, False), ("dropless", uneven, True)]),
        *(pytest.param(ranks, CASES, marks=pytest.mark.slow) for ranks in (1, 2, 4)),
    ],
)
def test_over_ranks_with_and_without_a_compiler(ranks: int, cases: list[Any]) -> None:
    def rank(transport: Any) -> None:
        for case in cases:
            compare(*case)

    on_gloo(ranks, rank)
