"""What ranks of a dispatch compare before rows move, so that what is wrong on one is an error on all of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from commbench import payloads
from commbench.algorithms import per_choice, per_node, per_rank
from commbench.algorithms.token_plan import Way
from commbench.algorithms.two_d_intra_first import unsupported_layout
from commbench.collectives.routing import NONE
from commbench.communicators.base import CommLike
from commbench.communicators.routed_choice import PROFILE
from commbench.errors import UsageError, unknown
from commbench.layout import Layout
from commbench.payloads import tensors

ALL_GATHER = "all_gather"
WAYS: dict[str, Way] = {
    "per_choice": per_choice.PerChoiceDispatch.way,
    "per_rank": per_rank.PerRankDispatch.way,
    "per_node": per_node.PerNodeDispatch.way,
    ALL_GATHER: Way(()),
}
PLAIN = "payload=none, which sends rows as they are"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def unsupported(algorithm: str, layout: Layout) -> str:
    """Return in words why an algorithm cannot run on a layout; "" if it can."""
    if algorithm not in WAYS:
        return str(unknown("algorithm", algorithm, WAYS))
    return unsupported_layout(layout) if algorithm == "per_node" else ""


def not_as_payload(algorithm: str, dtype: torch.dtype, asked: tuple[str, str]) -> str:
    """Return in words why rows cannot travel as a payload; "" if they can."""
    for name in asked:
        if name not in payloads.CHOICES:
            return str(unknown("payload", name, payloads.CHOICES))
        payload = payloads.get(name)
        if payload is not None and algorithm == ALL_GATHER:
            return f"algorithm all_gather sends rows as they are, and not as payload={name}"
        kind = tensors.DTYPES.get(dtype, str(dtype).removeprefix("torch."))
        if payload is not None and (reason := payload.unsupported(kind)):
            return reason
    return ""


def all_numbers(comm: CommLike, numbers: list[int]) -> np.ndarray:
    """Return all ranks' numbers, a row for each rank. Collective; the host waits."""
    mine = torch.tensor([numbers], dtype=torch.int64, device=comm.device)
    found = mine.new_empty(comm.size, len(numbers))
    comm.all_gather(found, mine)
    return found.cpu().numpy()


def _problem(comm: CommLike, x: Tensor, experts: Tensor, weights: Tensor, num_experts: int) -> tuple[str, str]:
    """Return what is wrong with a rank's tensors, and what is allowed; "" where nothing is."""
    ranks = comm.size
    if num_experts < ranks or num_experts % ranks:
        return f"num_experts={num_experts} on {ranks} ranks", "a multiple of the ranks"
    if x.dim() != 2 or x.dtype not in _DTYPES or x.device.type != comm.device.type:
        return f"x is {tuple(x.shape)} of {x.dtype} on {x.device}", f"[tokens, width] of a float on {comm.device}"
    if experts.dim() != 2 or len(experts) != len(x) or experts.dtype not in (torch.int64, torch.int32):
        return (f"experts are {tuple(experts.shape)} of {experts.dtype} for {len(x)} tokens",
                "[tokens, top_k] of int64 or int32")  # fmt: skip
    if weights.shape != experts.shape or not weights.is_floating_point():
        return (f"weights are {tuple(weights.shape)} of {weights.dtype} for experts {tuple(experts.shape)}",
                "a float for each expert")  # fmt: skip
    top_k = experts.shape[1]
    if not 1 <= top_k <= num_experts:
        return f"{top_k} experts a token of num_experts={num_experts}", f"1 to {num_experts}"
    outside = (experts < NONE) | (experts >= num_experts)
    if outside.any():
        return (f"expert {int(experts[outside][0])} of num_experts={num_experts}",
                f"0 to {num_experts - 1}, or {NONE} for none")  # fmt: skip
    ordered = experts.sort(dim=1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NONE)
    if twice.any():
        return f"token {int(twice.any(dim=1).nonzero()[0])} has an expert twice", "different experts"
    if not torch.isfinite(weights).all():
        bad = int((~torch.isfinite(weights)).any(dim=1).nonzero()[0])
        return f"a weight of token {bad} is not finite", "finite weights"
    return "", ""


def agree(
    comm: CommLike, x: Tensor, experts: Tensor, weights: Tensor, num_experts: int, algorithm: str, layout: Layout,
    asked: tuple[str, str],
) -> int:  # fmt: skip
    """Raise one error on all ranks where one of them brings what cannot be, or what differs. Collective.

    Return the tokens of the rank that has most.
    """
    wrong, hint = _problem(comm, x, experts, weights, num_experts)
    if not wrong and algorithm != PROFILE and (wrong := unsupported(algorithm, layout)):
        hint = "per_choice, per_rank or all_gather"
    if not wrong and (wrong := not_as_payload(algorithm, x.dtype, asked)):
        hint = PLAIN
    names = ("width", "top_k", "num_experts", "dtype", "dtype of weights", "gradient of x", "gradient of weights",
             "algorithm", "payload", "payload_back")  # fmt: skip
    mine = [0] * len(names)
    if not wrong:
        kinds = [_DTYPES.index(t.dtype) if t.dtype in _DTYPES else len(_DTYPES) for t in (x, weights)]
        needs = [int(t.requires_grad and torch.is_grad_enabled()) for t in (x, weights)]
        mine = [x.shape[1], experts.shape[1], num_experts, *kinds, *needs, [*WAYS, PROFILE].index(algorithm),
                *map(payloads.CHOICES.index, asked)]  # fmt: skip
    found = all_numbers(comm, [int(bool(wrong)), *mine, len(x) if x.dim() else 0])
    if wrong:
        raise UsageError(f"dispatch: rank {comm.rank}: {wrong}", hint=hint)
    if found[:, 0].any():
        raise UsageError(f"dispatch: rank {int(found[:, 0].argmax())} brings what cannot be dispatched",
                         hint="its own error says what")  # fmt: skip
    rank, name = (int(place[0]) if len(place) else -1 for place in np.nonzero(found[:, 1:-1] != found[0, 1:-1]))
    if rank >= 0:
        raise UsageError(f"dispatch: rank {rank} differs from rank 0 in {names[name]}: "
                         f"{found[rank, 1 + name]} and {found[0, 1 + name]}", hint="the same on all ranks")  # fmt: skip
    return int(found[:, -1].max())
