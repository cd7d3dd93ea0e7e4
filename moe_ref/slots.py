"""Who gets which slot of an expert: choices are served in some order, and the r-th that an expert gets has rank r."""

from __future__ import annotations

import torch
from torch import Tensor

from commbench.errors import UsageError, unknown

ORDERS = {
    "position": "first choices of all tokens, then second ones, ..; each by position (GShard, fairseq, Tutel, "
    "DeepSpeed top-2)",
    "batch_prioritised": "the same, but tokens by their best score (V-MoE, arXiv 2106.05974, 4; fairseq, Tutel)",
    "random": "the same, but tokens in random order (DeepSpeed top-1's random token selection)",
    "token": "token by token, all choices of a token before the next token (DeepSpeed top-k, drop policy position)",
    "score": "by the score of the choice (DeepSpeed top-k, drop policy probs)",
}
COMPACT = ("random", "score")  # the order says who is kept; slots are then numbered token by token, as in DeepSpeed
_KEYS = (torch.uint8, torch.int16, torch.int64)  # of a sort by expert


def sequence(
    order: str, scores_TK: Tensor, *, best_T: Tensor | None = None, priority_T: Tensor | None = None
) -> Tensor:
    """Return the choices in the order in which they are served: int64 [T K], entry t K + j for choice j of token t.

    scores_TK: score of each choice, needed for its shape and by `score`. best_T: best score of each token, for
    `batch_prioritised`. priority_T: a random number each, for `random`. Equal values keep their positions.
    Raises `UsageError` for an unknown order, or where what it needs is missing or has another shape.
    """
    if order not in ORDERS:
        raise unknown("order", order, ORDERS)
    tokens, top_k = scores_TK.shape
    device = scores_TK.device
    if order == "token":
        return torch.arange(tokens * top_k, device=device)
    if order == "score":
        return scores_TK.flatten().argsort(descending=True, stable=True)
    served_T = torch.arange(tokens, device=device)
    if order != "position":
        key_T = best_T if order == "batch_prioritised" else priority_T
        if key_T is None or key_T.shape != (tokens,):
            raise UsageError(f"order={order} needs a number for each of {tokens} tokens, "
                             f"not {None if key_T is None else list(key_T.shape)}",
                             hint="best_T for batch_prioritised, priority_T for random")  # fmt: skip
        served_T = key_T.argsort(descending=True, stable=True)
    return (served_T * top_k + torch.arange(top_k, device=device)[:, None]).flatten()


def ranks(experts_TK: Tensor, valid_TK: Tensor, sequence_N: Tensor, experts: int) -> Tensor:
    """Return the rank of each choice among those on the same expert: int64 [T, K], -1 where it is not valid.

    One stable sort of T K numbers, no one-hot of [T, E]; nothing on the host waits.
    """
    # Choices that are not valid go to an expert behind the last one.
    expert_N = torch.where(valid_TK, experts_TK, experts).flatten()[sequence_N]
    # GPUs sort by digits: the fewer bytes, the faster, by 90 to 23 us for 65536 choices on an H100.
    key = next(dtype for dtype in _KEYS if experts <= torch.iinfo(dtype).max)
    sorted_N, by_expert_N = expert_N.to(key).sort(stable=True)
    starts_E = torch.searchsorted(sorted_N, torch.arange(experts + 1, device=sorted_N.device, dtype=key))
    found_N = torch.empty_like(sequence_N)
    position_N = torch.arange(len(sorted_N), device=sorted_N.device)
    found_N[sequence_N[by_expert_N]] = position_N - starts_E[sorted_N.long()]  # uint8 would be a mask
    return found_N.view_as(experts_TK).masked_fill(~valid_TK, -1)


def assign(
    experts_TK: Tensor,
    valid_TK: Tensor,
    experts: int,
    capacity: int | None,
    order: str = "position",
    *,
    scores_TK: Tensor,
    best_T: Tensor | None = None,
    priority_T: Tensor | None = None,
) -> Tensor:
    """Return the slot of each choice: int64 [T, K] in 0 .. capacity - 1, -1 for none (not valid, or dropped).

    capacity: None for dropless, where slots are ranks. The other arguments as in `sequence` and `ranks`.
    """
    order_N = sequence(order, scores_TK, best_T=best_T, priority_T=priority_T)
    slots_TK = ranks(experts_TK, valid_TK, order_N, experts)
    if capacity is not None:
        slots_TK = slots_TK.masked_fill(slots_TK >= capacity, -1)
    if order in COMPACT:
        by_token_N = torch.arange(slots_TK.numel(), device=slots_TK.device)
        slots_TK = ranks(experts_TK, slots_TK >= 0, by_token_N, experts)
    return slots_TK
