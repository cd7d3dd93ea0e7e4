"""DDP and FSDP around a layer over ranks: experts are left alone, the rest is averaged, misuse is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import commbench
from commbench.communicators.communicator import Communicator
from commbench.errors import UsageError
from moe_ref import (
    FFN,
    Capacity,
    DistributedMoE,
    Gate,
    GateConfig,
    MoE,
    clip_grad_norm_,
    expert_parameters,
    ignore_experts_in_ddp,
)
from tests.support.ranks import on_gloo

D, H, E = 8, 16, 4


class Model(nn.Module):
    """Somebody's model with two expert layers in it."""

    def __init__(self, comm: Communicator) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(D, D, dtype=torch.float64)
        self.blocks = nn.ModuleList(layer(comm, seed) for seed in (1, 2))
        self.to(comm.device)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x).y
        return x


def layer(comm: Communicator, seed: int = 1) -> DistributedMoE:
    """With the gate of all ranks and experts of this one."""
    config = GateConfig(experts=E, top_k=2, dtype="fp64", capacity=Capacity("dropless"))
    gate = Gate(D, config, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(100 * seed + comm.rank)
    experts = FFN(E // comm.size, D, H, dtype=torch.float64, generator=generator)
    return DistributedMoE(gate, experts, comm).to(comm.device)


def tokens(comm: Communicator, rank: int | None = None) -> Tensor:
    """This rank's, or another one's."""
    generator = torch.Generator().manual_seed(comm.rank if rank is None else rank)
    return torch.randn(5, D, dtype=torch.float64, generator=generator).to(comm.device)


def gradients(model: nn.Module, comm: Communicator, run: Callable[[Tensor], Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The output and all gradients of one pass, whole where FSDP has shards of them."""
    model.zero_grad()
    y = run(tokens(comm))
    y = y if isinstance(y, Tensor) else y.y
    y.square().sum().backward()
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        found[name] = (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).clone()
    return y.detach(), found


def expected(model: nn.Module, comm: Communicator) -> tuple[Tensor, dict[str, Tensor]]:
    """Without any wrapper: the mean over ranks of what is replicated, and experts' as they are."""
    y, found = gradients(model, comm, model)
    for name in found.keys() - expert_parameters(model).keys():
        dist.all_reduce(found[name])
        found[name] /= comm.size
    return y, found


def same(ours: tuple[Tensor, dict[str, Tensor]], oracle: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], oracle[0], rtol=1e-12, atol=1e-12)
    assert ours[1].keys() == oracle[1].keys()
    for name, gradient in oracle[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-12, atol=1e-12, msg=name)


def whole_batch(model: Model, comm: Communicator) -> None:
    """Divided by W, experts' gradients are those of the mean that DDP has for the rest: one rank with all tokens.

    So is the norm of all gradients, and what clipping leaves of them.
    """
    gathered = []
    for parameter in expert_parameters(model).values():
        parts = [torch.empty_like(parameter) for _ in range(comm.size)]
        dist.all_gather(parts, parameter.detach())
        gathered.append(torch.cat(parts))
    alone = Model(comm)
    blocks = []
    for block, start in zip(model.blocks, (0, 4), strict=True):
        experts = FFN(E, D, H, dtype=torch.float64).to(comm.device)
        with torch.no_grad():
            for parameter, value in zip(experts.parameters(), gathered[start : start + 4], strict=True):
                parameter.copy_(value)
        blocks.append(MoE(copy.deepcopy(block.gate), experts))
    alone.blocks = nn.ModuleList(blocks)
    alone.zero_grad()
    loss = sum(alone(tokens(comm, rank)).square().sum() for rank in range(comm.size)) / comm.size
    loss.backward()
    wanted = [parameter.grad for block in blocks for parameter in block.experts.parameters()]
    for ours, whole in zip(expert_parameters(model).values(), wanted, strict=True):
        mine = whole[comm.rank * E // comm.size :][: E // comm.size]
        torch.testing.assert_close(ours.grad / comm.size, mine, rtol=1e-10, atol=1e-10)
        ours.grad /= comm.size
    norm = torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.5)
    assert norm > 1
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    torch.testing.assert_close(clip_grad_norm_(model, float("inf")), norm, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(clip_grad_norm_(model, 0.5), norm, rtol=1e-10, atol=1e-10)
    for name, parameter in model.named_parameters():
        clipped, whole = (whole_of(tensor) for tensor in (parameter.grad, before[name]))
        torch.testing.assert_close(clipped, whole * 0.5 / norm, rtol=1e-5, atol=1e-10)  # torch adds 1e-6 to the norm


def whole_of(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def test_names() -> None:
    def rank(transport: Any) -> None:
        with commbench.communicator() as comm:
            names = [f"blocks.{block}.experts.{name}" for block in (0, 1)
                     for name in ("w1_EDH", "w2_EHD", "b1_EH", "b2_ED")]  # fmt: skip
            model = Model(comm)
            assert list(expert_parameters(model)) == names
            assert all(model.get_parameter(name) is found for name, found in expert_parameters(model).items())
            assert next(iter(expert_parameters(model.blocks[0]))) == "experts.w1_EDH"
            config = GateConfig(experts=2)
            assert not expert_parameters(MoE(Gate(D, config), FFN(2, D, H))), "the same experts on all ranks"
            model._ddp_params_and_buffers_to_ignore = ["first.bias"]
            ignore_experts_in_ddp(model)
            assert model._ddp_params_and_buffers_to_ignore == ["first.bias", *names]

    on_gloo(1, rank)


def ddp_leaves_experts_alone(comm: Communicator) -> None:
    alone = layer(comm)
    before = [parameter.detach().clone() for parameter in alone.parameters()]
    oracle = expected(alone, comm)
    same(gradients(alone, comm, DistributedDataParallel(alone)), oracle)
    assert all(torch.equal(now, then) for now, then in zip(alone.parameters(), before, strict=True))

    model = Model(comm)
    oracle = expected(model, comm)
    ignore_experts_in_ddp(model)
    wrapped = DistributedDataParallel(model)
    for _ in range(2):
        same(gradients(model, comm, wrapped), oracle)
    whole_batch(model, comm)


def ddp_that_was_not_told(comm: Communicator) -> None:
    wrapped = DistributedDataParallel(Model(comm))
    with pytest.raises(UsageError, match=r"DistributedDataParallel manages .* ranks 0, 1: .* rank 0's") as found:
        wrapped(tokens(comm))
    assert "ignore_experts_in_ddp" in str(found.value.hint)
    mine, _ = dist.new_subgroups(group_size=1)
    DistributedDataParallel(Model(comm), process_group=mine)(tokens(comm))  # over no other rank of the layer


def fsdp_leaves_experts_alone(comm: Communicator) -> None:
    model = Model(comm)
    oracle = expected(model, comm)
    experts = expert_parameters(model)
    before = [parameter.detach().clone() for parameter in experts.values()]
    mesh = init_device_mesh(comm.device.type, (comm.size,))
    fully_shard(model, mesh=mesh, ignored_params=set(experts.values()))
    for _ in range(2):
        same(gradients(model, comm, model), oracle)
    for (name, parameter), then in zip(experts.items(), before, strict=True):
        assert model.get_parameter(name) is parameter and torch.equal(parameter, then)
    assert isinstance(model.blocks[0].gate.router.weight_ED, DTensor)
    model.zero_grad()
    model(tokens(comm)).square().sum().backward()
    norm_of_all(model, comm)


def fsdp_that_was_not_told(comm: Communicator) -> None:
    mesh = init_device_mesh(comm.device.type, (1, comm.size), mesh_dim_names=("copies", "experts"))
    for wrap in (lambda model: model, lambda model: model.blocks[1], lambda model: model.blocks[1].experts):
        model = Model(comm)
        fully_shard(wrap(model), mesh=mesh["experts"])
        with pytest.raises(UsageError, match=r"FSDP manages .* ranks 0, 1: .* shards") as found:
            model(tokens(comm))
        assert "ignored_params" in str(found.value.hint)
    model = Model(comm)
    y, _ = expected(model, comm)
    for block in model.blocks:  # over ranks that have the same experts, here one
        fully_shard(block.experts, mesh=mesh["copies"])
    torch.testing.assert_close(gradients(model, comm, model)[0], y, rtol=1e-12, atol=1e-12)


def norm_of_all(model: nn.Module, comm: Communicator) -> None:
    """Sharded or not: the root of the squares of what is replicated, once, and of all ranks' experts."""
    experts = expert_parameters(model)
    total = torch.zeros((), dtype=torch.float64, device=comm.device)
    for name, parameter in model.named_parameters():
        square = whole_of(parameter.grad).square().sum()
        if name in experts:
            dist.all_reduce(square)
        total += square
    torch.testing.assert_close(clip_grad_norm_(model, 1e-3), total.sqrt(), rtol=1e-12, atol=1e-12)
    after = clip_grad_norm_(model, float("inf"))
    torch.testing.assert_close(after, torch.full_like(after, 1e-3), rtol=1e-5, atol=1e-9)
    with pytest.raises(UsageError, match="max_norm is nan"):
        clip_grad_norm_(model, float("nan"))


CASES = (ddp_leaves_experts_alone, ddp_that_was_not_told, fsdp_leaves_experts_alone, fsdp_that_was_not_told)


@pytest.mark.parametrize("case", CASES)
def test_wrappers(case: Callable[[Communicator], None]) -> None:
    def rank(transport: Any) -> None:
        with commbench.communicator() as comm:
            case(comm)

    on_gloo(2, rank)
