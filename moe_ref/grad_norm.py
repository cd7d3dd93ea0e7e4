"""The norm of all gradients, where ranks have experts of their own: what torch's own function does for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_

from commbench.errors import UsageError
from moe_ref.data_parallel import expert_parameters
from moe_ref.distributed import DistributedMoE


def clip_grad_norm_(module: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients of `module` so that their 2-norm is at most `max_norm`, and return what it was.

    In place of `torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)` where `module` has `DistributedMoE`
    layers, with or without DDP or FSDP (`fully_shard`) around it: experts of all ranks count, each once, and the rest
    once. The norm is the same on all ranks, fp64 of no dimension. Each layer's experts take one all_reduce of 8 bytes.

    Collective over the ranks of all layers. Raises `UsageError` for a `max_norm` that is not above 0.
    """
    if not max_norm > 0:
        raise UsageError(f"max_norm is {max_norm:g}", hint="above 0; inf: only the norm is wanted")
    layers = [layer for layer in module.modules() if isinstance(layer, DistributedMoE)]
    own = {id(parameter) for parameter in expert_parameters(module).values()}
    with_gradient = [parameter for parameter in module.parameters() if parameter.grad is not None]
    rest = [parameter for parameter in with_gradient if id(parameter) not in own]
    device = layers[0].comm.device if layers else _gradient(rest[0]).device if rest else torch.device("cpu")
    squares = _squares(rest, device)
    for layer in layers:
        mine = _squares((one for one in layer.experts.parameters() if one.grad is not None), device).reshape(1)
        layer.comm.all_reduce(mine)
        squares = squares + mine[0]
    norm = squares.sqrt()
    if math.isfinite(max_norm):
        for sharded in (False, True):  # torch scales DTensors and others apart
            clip_grads_with_norm_([one for one in with_gradient if _is_sharded(one) == sharded], max_norm, norm)
    return norm


def _squares(parameters: Iterable[nn.Parameter], device: torch.device) -> Tensor:
    """Return the sum of squares of gradients, all shards of a DTensor together: fp64, of no dimension."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for parameter in parameters:
        norm = torch.linalg.vector_norm(_gradient(parameter), dtype=torch.float64)
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        total = total + whole.square().to(device)
    return total


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _is_sharded(parameter: nn.Parameter) -> bool:
    return isinstance(parameter.grad, DTensor)
