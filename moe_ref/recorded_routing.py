"""What routers of any model choose, recorded by hooks into a routing trace that `router=trace` reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from commbench.errors import UsageError
from commbench.files import atomic_file
from moe_ref.gate import Gate
from moe_ref.huggingface import is_block
from moe_ref.routing import Routing

_KNOWN = "blocks of Hugging Face's models, gates of DeepSpeed (TopKGate), gates of moe_ref"


@contextlib.contextmanager
def record_routing(model: nn.Module, file: str | Path, *, ranks: int = 1, most: int = 256) -> Iterator[None]:
    """Write what the routers of a model choose inside of `with` into `file`: a routing trace (.npz).

    Each pass through a router is a step of the trace: its first `most` ones are kept, in the order of the passes. In a
    program of several ranks (torch.distributed) all of them do this, and rank 0 writes what all chose, as many passes
    as each of them made. In one process, `ranks` shares each pass's tokens out in equal blocks, as if as many ranks
    had them. Nothing is written where `with` is left by an exception. Raises `UsageError` for a model without routers
    that are known, and where nothing passed them.
    """
    if ranks < 1 or most < 1:
        raise UsageError(f"ranks={ranks}, most={most}", hint="both are 1 at least")
    routers = [router for module in model.modules() if (router := _router(module)) is not None]
    if not routers:
        raise UsageError(f"{type(model).__name__} has no router that is known", hint=f"known are {_KNOWN}")
    passes: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        if len(passes) < most:
            passes.append(_chosen(output).to("cpu", torch.int32))

    hooks = [router.register_forward_hook(keep) for router in routers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    steps = _of_all_ranks(passes) if dist.is_initialized() else [_shared_out(one, ranks) for one in passes]
    if not steps:
        raise UsageError("no tokens have passed a router", hint="call the model inside of `with`")
    if not dist.is_initialized() or dist.get_rank() == 0:
        with atomic_file(Path(file)) as out:
            np.savez_compressed(out, experts=np.stack([one.numpy() for one in _alike(steps)]))


def _router(module: nn.Module) -> nn.Module | None:
    """Return the router of this module, whose output tells the choices; None where it has none of its own."""
    if is_block(module):
        router = module.gate
        return router if isinstance(router, nn.Module) else None
    is_deepspeeds = isinstance(getattr(module, "wg", None), nn.Linear) and isinstance(getattr(module, "k", None), int)
    return module if isinstance(module, Gate) or is_deepspeeds else None


@torch.no_grad()
def _chosen(output: Any) -> Tensor:
    """Return the experts of each token, [T, K], -1 for none, of what a router has returned.

    Raises `UsageError` where that does not tell it.
    """
    if isinstance(output, Routing):
        return torch.where(output.slots_TK >= 0, output.experts_TK, -1)
    third = output[2] if isinstance(output, tuple) and len(output) > 2 else None
    if isinstance(third, Tensor) and third.dim() == 2 and not third.is_floating_point():
        return third
    fourth = output[3] if isinstance(output, tuple) and len(output) > 3 else None
    if isinstance(third, int) and isinstance(fourth, Tensor) and fourth.dim() == 2:  # of DeepSpeed 0.19's own layer
        return fourth.t()  # [K, T], -1 for what is dropped
    if (
        isinstance(third, Tensor) and third.dim() == 3
    ):  # of DeepSpeed's before, and of its gates alone: token, expert, slot
        taken_TE = third.ne(0).any(dim=2)
        most = max(1, int(taken_TE.sum(dim=1).max())) if taken_TE.numel() else 1
        found, experts_TK = taken_TE.int().topk(most, dim=1)
        return torch.where(found > 0, experts_TK, -1)
    raise UsageError(f"a router has returned {type(output).__name__}, which does not tell its choices",
                     hint=f"known are {_KNOWN}")  # fmt: skip


def _shared_out(experts_TK: Tensor, ranks: int) -> Tensor:
    """Return the choices by rank, [ranks, T, K]: equal blocks of tokens, the last one filled up with -1."""
    tokens = -(-experts_TK.shape[0] // ranks)
    return _padded(experts_TK, tokens * ranks, experts_TK.shape[1]).reshape(ranks, tokens, -1)


def _of_all_ranks(passes: list[Tensor]) -> list[Tensor]:
    """Return the passes that all ranks made, each [ranks, T, K]; every rank calls it."""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    least = torch.tensor(len(passes), device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    steps = []
    for one in passes[: int(least)]:
        shape = torch.tensor(one.shape, device=device)
        dist.all_reduce(shape, dist.ReduceOp.MAX)
        mine = _padded(one, *shape.tolist()).to(device)
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
        steps.append(torch.stack(parts).cpu())
    return steps


def _alike(steps: list[Tensor]) -> list[Tensor]:
    """Return all steps in the shape of the largest one."""
    tokens, top_k = (max(one.shape[place] for one in steps) for place in (1, 2))
    return [torch.stack([_padded(rank, tokens, top_k) for rank in one]) for one in steps]


def _padded(experts_TK: Tensor, tokens: int, top_k: int) -> Tensor:
    made = experts_TK.new_full((tokens, top_k), -1)
    made[: experts_TK.shape[0], : experts_TK.shape[1]] = experts_TK
    return made
