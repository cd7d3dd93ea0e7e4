"""Experts beside data parallelism: what DDP and FSDP take for copies or shards of one tensor, experts are not.

`DistributedDataParallel` gives all ranks rank 0's parameters and averages gradients; `fully_shard` keeps the r-th part
of rank r's tensor. Each rank of a `DistributedMoE` has experts of its own, so both would mix different experts up.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from commbench.communicators.base import CommLike
from commbench.errors import UsageError
from moe_ref.layer import BaseMoELayer


class Holder(NamedTuple):
    """What manages the experts' parameters. ranks: global ones, over which it does; None: not known.

    did: what it has done to them. remedy: what keeps it off.
    """

    name: str
    ranks: list[int] | None
    did: str
    remedy: str


def expert_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of `module` that differ from rank to rank: experts', by their names in `module`.

    For FSDP: `fully_shard(model, ignored_params=set(expert_parameters(model).values()))`.
    """
    return {
        f"{prefix}.{name}" if prefix else name: parameter
        for prefix, layer in module.named_modules()
        if isinstance(layer, BaseMoELayer) and not layer.experts_are_replicated
        for name, parameter in layer.named_parameters()
        if name.startswith("experts.")
    }


def ignore_experts_in_ddp(module: nn.Module) -> None:
    """Tell DDP to leave the experts in `module` alone. Call it before `DistributedDataParallel(module)`.

    It adds to what DDP has been told to ignore in `module`. A `DistributedMoE` that is itself wrapped needs no call.
    """
    names = [*getattr(module, "_ddp_params_and_buffers_to_ignore", ()), *expert_parameters(module)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]


class HolderCheck:
    """Refuses to run experts that something else takes for other ranks' too. It looks once at each wrapper."""

    def __init__(self) -> None:
        self._ddp: weakref.ref[nn.Module] | None = None  # the last one that was found to be right
        self._sharded = False  # whether FSDP was found to be right

    def check(self, experts: nn.Module, comm: CommLike) -> None:
        """Raise `UsageError` where DDP or FSDP manages `experts` over two ranks of `comm`.

        Collective over `comm` where it manages them at all, as all ranks are then asked who they are.
        """
        ddp = getattr(DistributedDataParallel, "_active_ddp_module", None)
        if ddp is not None and (self._ddp is None or self._ddp() is not ddp):
            _refuse(_of_ddp(ddp, experts), comm)
            self._ddp = weakref.ref(ddp)
        if not self._sharded and getattr(experts, "_is_fsdp_managed_module", False):
            _refuse(_of_fsdp(experts), comm)
            self._sharded = True


def _of_ddp(ddp: DistributedDataParallel, experts: nn.Module) -> Holder | None:
    ignored = ddp.parameters_to_ignore
    managed = {id(parameter) for name, parameter in ddp.module.named_parameters() if name not in ignored}
    if managed.isdisjoint(map(id, experts.parameters())):
        return None
    return Holder(
        "DistributedDataParallel",
        dist.get_process_group_ranks(ddp.process_group),
        "gave all of them rank 0's experts and would average their gradients",
        "moe_ref.ignore_experts_in_ddp(model) before DistributedDataParallel(model)",
    )


def _of_fsdp(experts: nn.Module) -> Holder:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    meshes = [parameter.device_mesh for parameter in experts.parameters() if isinstance(parameter, DTensor)]
    own = isinstance(experts, FSDPModule) and bool(meshes)
    return Holder(
        "FSDP",
        meshes[0].mesh.flatten().tolist() if own else None,  # another module's mesh is out of sight from here
        "took their different experts for shards of the same ones",
        "fully_shard(model, .., ignored_params=set(moe_ref.expert_parameters(model).values()))",
    )


def _refuse(holder: Holder | None, comm: CommLike) -> None:
    if holder is None or comm.size == 1:
        return
    here = torch.tensor([dist.get_rank()], dtype=torch.int64, device=comm.device)
    of_layer = here.new_empty(comm.size)
    comm.all_gather(of_layer, here)
    both = [rank for rank in of_layer.tolist() if holder.ranks is None or rank in holder.ranks]
    if len(both) > 1:
        raise UsageError(
            f"{holder.name} manages the experts of a DistributedMoE over ranks {', '.join(map(str, both))}: "
            f"it {holder.did}",
            hint=f"{holder.remedy}, with experts that are made or loaded anew: docs/guide/moe.md",
        )
