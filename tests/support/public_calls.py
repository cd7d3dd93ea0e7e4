"""torch's public collective API, call by call: what each gives on this rank, as digests by name."""

from __future__ import annotations

import copy
import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.nn.functional as differentiable
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh


def digest(*tensors: Tensor) -> str:
    told = hashlib.sha256()
    for tensor in tensors:
        told.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        told.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()[:16]


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(group: Any, name: str) -> dict[str, str]:
    """Functions of torch.distributed, on one group, with and without async_op."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    found: dict[str, str] = {}
    x = numbers(4 * size, 3, seed=rank + 1)
    for asynchronous in (False, True):
        made = functools.partial(_waited, found, f"{name} async" if asynchronous else name)
        more: dict[str, Any] = {"group": group, "async_op": asynchronous}
        out = torch.empty_like(x)
        made("all_to_all_single", out, dist.all_to_all_single(out, x, **more))
        sent, received = [(rank + i) % 3 + 1 for i in range(size)], [(rank + i) % 3 + 1 for i in range(size)]
        rows, uneven = numbers(sum(sent), 3, seed=rank), torch.empty(sum(received), 3)
        made("all_to_all_single uneven", uneven, dist.all_to_all_single(uneven, rows, received, sent, **more))
        blocks = [torch.empty(4, 3) for _ in range(size)]
        try:
            made("all_to_all", blocks, dist.all_to_all(blocks, list(x.chunk(size)), **more))
        except RuntimeError as error:  # torch 2.11 has none over gloo
            found[f"{name} all_to_all, {asynchronous}"] = str(error)
        blocks = [torch.empty_like(x) for _ in range(size)]
        made("all_gather", blocks, dist.all_gather(blocks, x, **more))
        whole = torch.empty(4 * size * size, 3)
        made("all_gather_into_tensor", whole, dist.all_gather_into_tensor(whole, x, **more))
        total = x.clone()
        made("all_reduce", total, dist.all_reduce(total, **more))
        total = x.clone()
        made("all_reduce max", total, dist.all_reduce(total, dist.ReduceOp.MAX, **more))
        total = x.clone()
        made("reduce", total if rank == 0 else x, dist.reduce(total, group_dst=0, **more))
        part = torch.empty(4, 3)
        made("reduce_scatter_tensor", part, dist.reduce_scatter_tensor(part, x, **more))
        part = torch.empty(4, 3)
        made("reduce_scatter", part, dist.reduce_scatter(part, list(x.chunk(size)), **more))
        for root in (0, size - 1):
            sent_out = x.clone() if rank == root else torch.empty_like(x)
            made(f"broadcast {root}", sent_out, dist.broadcast(sent_out, group_src=root, **more))
        blocks = [torch.empty_like(x) for _ in range(size)] if rank == 0 else []
        made("gather", blocks, dist.gather(x, blocks or None, group_dst=0, **more))
        part = torch.empty(4, 3)
        made("scatter", part, dist.scatter(part, list(x.chunk(size)) if rank == 0 else None, group_src=0, **more))
        made("barrier", x, dist.barrier(**more))
    if size > 1:
        found |= messages(group, name, x)
    objects: list[Any] = [None] * size
    dist.all_gather_object(objects, {"rank": rank}, group=group)
    found[f"{name} all_gather_object"] = str(objects)
    dist.monitored_barrier(group=group)
    return found


def messages(group: Any, name: str, x: Tensor) -> dict[str, str]:
    """Point to point, round a ring."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    left, right = (rank - 1) % size, (rank + 1) % size
    got, other = torch.empty_like(x), torch.empty_like(x)
    for work in (dist.isend(x, group=group, group_dst=right), dist.irecv(got, group=group, group_src=left)):
        assert work is not None
        work.wait()
    ops = [
        dist.P2POp(dist.isend, x, group=group, group_peer=right),
        dist.P2POp(dist.irecv, other, group=group, group_peer=left),
    ]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    return {f"{name} isend irecv": digest(got), f"{name} batch_isend_irecv": digest(other)}


def _waited(found: dict[str, str], name: str, call: str, out: Any, work: Any) -> None:
    if work is not None:
        work.wait()
    found[f"{name} {call}"] = digest(*(out if isinstance(out, list) else [out]))


def functions(group: Any) -> dict[str, str]:
    """Functional collectives, with and without gradients, and compiled."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    x = numbers(2 * size, 3, seed=rank + 9)
    splits = [(rank + i) % 3 + 1 for i in range(size)]
    rows = numbers(sum(splits), 3, seed=rank)

    def exchange(value: Tensor) -> Tensor:
        even = functional.all_to_all_single(value * 2, None, None, group)
        return functional.all_gather_tensor(even + 1, 0, group) * functional.all_reduce(value, "sum", group).sum()

    found = {
        "functional all_to_all_single": digest(functional.all_to_all_single(x, None, None, group) + 0),
        "functional uneven": digest(functional.all_to_all_single(rows, splits, splits, group) + 0),
        "functional all_gather_tensor": digest(functional.all_gather_tensor(x, 0, group) + 0),
        "functional reduce_scatter_tensor": digest(functional.reduce_scatter_tensor(x, "sum", 0, group) + 0),
        "functional broadcast": digest(functional.broadcast(x, 0, group) + 0),
        "functional together": digest(exchange(x)),
        "compiled": digest(torch.compile(exchange, backend="aot_eager", fullgraph=True)(x)),
    }
    for name, call in (
        ("autograd even", lambda v: functional.all_to_all_single_autograd(v, None, None, group)),
        ("autograd uneven", lambda v: functional.all_to_all_single_autograd(v, splits, splits, group)),
        ("autograd nn all_to_all", lambda v: differentiable.all_to_all_single(
            torch.empty_like(v), v, splits, splits, group=group)),
        ("autograd nn all_gather", lambda v: torch.cat(list(differentiable.all_gather(v[:1], group=group)))),
    ):  # fmt: skip
        value = (x if name == "autograd even" else rows).clone().requires_grad_()
        out = call(value)
        (out * torch.arange(float(out.numel())).view_as(out)).sum().backward()
        assert value.grad is not None
        found[name] = digest(out, value.grad)
    return found


def trainings(folder: Path) -> dict[str, str]:
    """DDP, FSDP2, DTensor on a mesh, and a checkpoint of it."""
    from torch.distributed.checkpoint import load, save
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8 * size))
    found = {}

    def trained(wrapped: Any) -> list[Tensor]:
        optimizer, losses = torch.optim.SGD(wrapped.parameters(), lr=0.1), []
        for step in range(3):
            loss = wrapped(numbers(4, 8, seed=10 * step + rank)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    found["DDP"] = digest(*trained(torch.nn.parallel.DistributedDataParallel(copy.deepcopy(model))))
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("dp",))
    sharded = copy.deepcopy(model)
    for layer in (sharded[0], sharded[2], sharded):
        fully_shard(layer, mesh=mesh)
    found["FSDP2"] = digest(*trained(sharded))
    state = {"model": sharded.state_dict()}
    save(state, checkpoint_id=str(folder / "checkpoint"))
    for value in state["model"].values():
        value.zero_()
    load(state, checkpoint_id=str(folder / "checkpoint"))
    found["checkpoint"] = digest(*(value.full_tensor() for value in state["model"].values()))
    shards = distribute_tensor(numbers(size * 4, size * 2, seed=1), mesh, [Shard(0)])
    found["DTensor"] = digest(
        shards.redistribute(placements=[Shard(1)]).to_local(), shards.redistribute(placements=[Replicate()]).to_local()
    )
    return found


def everything(folder: Path, *, compiled: bool = True) -> dict[str, str]:
    """Return all of it on this rank. `compiled`: with what imports a compiler, which takes seconds."""
    rank, size = dist.get_rank(), dist.get_world_size()
    halves = [list(range(size // 2 or 1)), list(range(size // 2, size))] if size > 2 else [list(range(size))]
    groups = [dist.new_group(ranks) for ranks in halves]
    pairs: list[tuple[Any, str]] = [(dist.group.WORLD, "world")]
    pairs += [(group, "sub-group") for group, ranks in zip(groups, halves, strict=True) if rank in ranks]
    found: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for group, name in pairs:
            found |= plain(group, name)
        parts: list[Callable[[], dict[str, str]]] = [lambda: functions(dist.group.WORLD), lambda: trainings(folder)]
        for part in parts if compiled else []:
            found |= part()
    return found
