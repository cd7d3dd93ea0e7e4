"""Schedules over two GPUs: exchanges beside products give what exchanges before and after them give."""

from __future__ import annotations

import os
from typing import Any

import pytest

from commbench import transports
from commbench.machine import gpus

if gpus.count(os.environ) < 2:
    pytest.skip("needs two GPUs", allow_module_level=True)
if reason := transports.missing("nccl"):
    pytest.skip(reason, allow_module_level=True)

import torch

import commbench
from commbench.communicators.loaded import LoadedProfile
from moe_ref import FFN, Capacity, Gate, GateConfig, schedules
from moe_ref.distributed import DistributedMoE
from moe_ref.schedules import Schedule
from moe_ref.schedules.equivalence import compare
from moe_ref.sharding import shard
from tests.support import profiles
from tests.support.ranks import on_ranks

D, H, E = 64, 128, 8
OTHERS = (
    schedules.get("pipelined", chunks=2), schedules.get("pipelined", chunks=5), schedules.get("expert_groups", groups=2)
)  # fmt: skip
OF_GROUPS = tuple(
    schedules.get("tensor_parallel", tp_tokens=way) for way in ("duplicate", "drop", "drop_pipelined", "profile")
)


def gate(capacity: Capacity) -> Gate:
    config = GateConfig(experts=E, top_k=2, dtype="fp64", capacity=capacity)
    return Gate(D, config, generator=torch.Generator().manual_seed(1))


def experts(count: int, rank: int) -> FFN:
    return FFN(count, D, H, dtype=torch.float64, generator=torch.Generator().manual_seed(2 + rank))


def tokens(comm: Any, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(50 + rank)
    return torch.randn(1000, D, dtype=torch.float64, generator=generator).to(comm.device).requires_grad_()


def every_schedule(comm: Any, *, kept: bool, capacities: tuple[Capacity, ...]) -> None:
    for capacity in capacities:
        layer = DistributedMoE(gate(capacity), experts(E // comm.size, comm.rank), comm, keep_buffers=kept)
        layer = layer.to(comm.device, torch.float64)
        for _ in range(2):
            for other in OTHERS:
                compare(layer, tokens(comm, comm.rank), other).raise_if_different()


def test_exchanges_beside_products() -> None:
    def rank(transport: Any) -> None:
        with commbench.communicator() as comm:
            every_schedule(comm, kept=False, capacities=(Capacity("tutel", 0.5), Capacity("dropless")))

    on_ranks("nccl", 2, rank)


@pytest.mark.parametrize("algorithm", ["symm_store", "symm_copy_engine"])
def test_stores_and_copy_engines_beside_products(algorithm: str) -> None:
    def rank(transport: Any) -> None:
        plain = profiles.config("all_to_all", "direct")
        choice = profiles.choice("all_to_all", algorithm, 0, None, buffers="symmetric", on_plain=plain)
        comm = LoadedProfile(profiles.profile(choice, transport="nccl")).communicator()
        every_schedule(comm, kept=True, capacities=(Capacity("tutel", 1.0),))
        assert f": {algorithm} " in comm.explain(), comm.explain()
        comm.close()

    on_ranks("nccl", 2, rank)


def test_tokens_that_both_ranks_have() -> None:
    def rank(transport: Any) -> None:
        import torch.distributed as dist

        comm = commbench.communicator()
        groups = [dist.new_group([number]) for number in range(comm.size)]
        alone = commbench.communicator(groups[comm.rank])
        own = experts(E, 0)
        shard(own, comm.rank, comm.size)
        first, *others = OF_GROUPS
        layer = DistributedMoE(
            gate(Capacity("tutel", 1.0, multiple_of=2)), own, comm, tp=comm, ep=alone, schedule=first
        )
        layer = layer.to(comm.device, torch.float64)
        told: list[Schedule] = [*others, schedules.get("parm_s2", chunks=2)]
        for other in told:
            compare(layer, tokens(comm, 0), other).raise_if_different()

    on_ranks("nccl", 2, rank)
