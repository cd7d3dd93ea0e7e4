"""Experts in pieces of their hidden dimension, one on each of several ranks; and other parameters in their place.

H cuts without communication inside of an expert: piece i of w1 by columns, of w2 by rows, gives a summand of the output
(Megatron, arXiv 1909.08053, 3). The output's bias is cut by D, and each piece added to its own columns, so that it
counts once in the sum and each rank has an equal part of all parameters.

Where E < W, q = W / E ranks have one expert in pieces. r chooses what they do with them in a step (Tutel, arXiv
2206.03382, 3.2): r = q uses the pieces as they are, tokens go to all q ranks, and outputs are sums over them. r = 0
gathers all parameters of all experts on every rank, and no token moves. In between every q / r pieces in a row are
gathered on each of their ranks, which makes r ranks a whole expert, and tokens go to r ranks. The parameters that an
optimizer sees are always the same pieces: nothing moves when r changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from commbench.communicators.autograd import DifferentiableCollectives
from commbench.communicators.base import CommLike
from commbench.errors import UsageError
from moe_ref.experts import Experts

Weights = Mapping[str, Tensor]


def shard(experts: Experts, piece: int, pieces: int) -> Experts:
    """Cut `experts` in place: it keeps piece `piece` of `pieces` of each parameter.

    Ranks with all pieces started from equal whole experts hold those between them.

    Raises `UsageError` where H, or D with an output bias, does not divide, or `experts` is cut already.
    """
    if experts.pieces > 1:
        raise UsageError(f"experts are cut into {experts.pieces} shards already", hint="cut whole experts")
    if not 0 <= piece < pieces:
        raise UsageError(f"piece={piece} of {pieces}", hint=f"0 <= piece < {pieces}")
    whole = dict(experts.named_parameters())
    for name, parameter in whole.items():
        length = parameter.shape[experts.shard_dims[name]]
        if length % pieces:
            raise UsageError(f"{name} of shape {list(parameter.shape)} does not divide into {pieces} shards",
                             hint=f"{length} is to be a multiple of {pieces}")  # fmt: skip
    for name, parameter in whole.items():
        mine = parameter.detach().chunk(pieces, experts.shard_dims[name])[piece].clone()
        setattr(experts, name, nn.Parameter(mine, requires_grad=parameter.requires_grad))
    experts.piece, experts.pieces = piece, pieces
    experts.hidden //= pieces
    return experts


def own_weights(experts: Experts) -> dict[str, Tensor]:
    """Return this rank's pieces as parameters that give a summand of the output."""
    return _fitted(experts, dict(experts.named_parameters()), experts.piece, experts.pieces)


def gather_weights(experts: Experts, comm: CommLike, r: int, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return parameters for a step with this r, collective over `comm`; with gradients, which go back to their pieces.

    r = 0: of all experts, by one all_gather, backward one reduce_scatter. r = q: this rank's, without communication.
    Else by one all_to_allv among q / r ranks and backward another one: it needs no groups of its own, so that r may
    change from step to step. dtype: in which they travel; None: as they are. Raises `UsageError` for an r that is not
    possible, and for parameters of several dtypes.
    """
    if r == 0:
        mine = _flat(experts, dtype)
        every_WN = DifferentiableCollectives(comm).all_gather(mine[None])
        return {name: _whole(parts, experts.shard_dims[name], experts.pieces)
                for name, parts in _split(experts, every_WN).items()}  # fmt: skip
    if experts.pieces % r:
        raise UsageError(f"r={r} for experts in {experts.pieces} shards", hint=f"0, or a divisor of {experts.pieces}")
    copies = experts.pieces // r
    if copies == 1:
        return own_weights(experts)
    matrix = [[int(i // copies == j // copies) for j in range(comm.size)] for i in range(comm.size)]
    counts = matrix[comm.rank]
    rows_GN = _flat(experts, dtype).expand(copies, -1).contiguous()
    found_GN = DifferentiableCollectives(comm).all_to_allv(rows_GN, counts, counts, matrix=matrix)
    whole = {name: _whole(parts, experts.shard_dims[name], copies) for name, parts in _split(experts, found_GN).items()}
    return _fitted(experts, whole, experts.piece // copies, r)


def copy_weights(
    experts: Experts, comm: CommLike, which: Sequence[int], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return the parameters of the experts numbered `which`, in order, which their ranks send to all, collective.

    By one all_to_allv; backward gradients go back by another one, and are added up. dtype: as of `gather_weights`.
    """
    here, ranks = experts.experts, comm.size
    owned = [[expert - rank * here for expert in which if expert // here == rank] for rank in range(ranks)]
    lengths = [len(numbers) for numbers in owned]
    mine = torch.tensor(owned[comm.rank], dtype=torch.int64, device=comm.device)
    _one_dtype(experts)
    rows_SN = torch.cat([parameter.index_select(0, mine).flatten(1) for parameter in experts.parameters()], dim=1)
    rows_SN = rows_SN if dtype is None else rows_SN.to(dtype)
    sent_MN = rows_SN.expand(ranks, -1, -1).flatten(0, 1).contiguous()
    found_SN = DifferentiableCollectives(comm).all_to_allv(
        sent_MN, lengths, [len(rows_SN)] * ranks, matrix=[[length] * ranks for length in lengths]
    )
    shapes = {name: parameter.shape[1:] for name, parameter in experts.named_parameters()}
    parts = torch.split(found_SN, [math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def select_experts(weights: Weights, which: slice) -> dict[str, Tensor]:
    """Return the weights of some experts only."""
    return {name: weight[which] for name, weight in weights.items()}


def _fitted(experts: Experts, weights: dict[str, Tensor], piece: int, pieces: int) -> dict[str, Tensor]:
    """Put zeros into the columns of an output bias that other ranks add."""
    for name in experts.output_biases.intersection(weights):
        length = weights[name].shape[-1]
        weights[name] = functional.pad(weights[name], (piece * length, (pieces - 1 - piece) * length))
    return weights


def _flat(experts: Experts, dtype: torch.dtype | None) -> Tensor:
    _one_dtype(experts)
    flat = torch.cat([parameter.flatten() for parameter in experts.parameters()])
    return flat if dtype is None else flat.to(dtype)


def _one_dtype(experts: Experts) -> None:
    if len(found := {str(parameter.dtype) for parameter in experts.parameters()}) > 1:
        raise UsageError(f"experts' parameters are {', '.join(sorted(found))}",
                         hint="one dtype, since they travel together")  # fmt: skip


def _split(experts: Experts, rows_GN: Tensor) -> dict[str, Tensor]:
    """View rows of several ranks' parameters as [G, *shape] by name."""
    shapes = {name: parameter.shape for name, parameter in experts.named_parameters()}
    parts = torch.split(rows_GN, [math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: part.view(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _whole(parts: Tensor, cut: int, pieces: int) -> Tensor:
    """Bring [G, E_g, ..] to [G / pieces E_g, ..] with `pieces` in a row put together in dimension `cut`."""
    groups, here, *shape = parts.shape
    joined = parts.view(groups // pieces, pieces, here, *shape).movedim(1, cut + 1)
    shape[cut - 1] *= pieces
    return joined.reshape(groups // pieces * here, *shape)


__all__ = ["Weights", "copy_weights", "gather_weights", "own_weights", "select_experts", "shard"]
