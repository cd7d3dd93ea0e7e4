"""Which experts a token may choose, and by which numbers: scores, the bias of the choice, limited groups."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCORES = ("softmax", "sigmoid")
_OF_A_GROUP = 2  # scores that count for their group: DeepSeek-V3, arXiv 2412.19437, 2.1.2


def scores(logits_TE: Tensor, kind: str) -> Tensor:
    """Return what weights are made of. kind: of `SCORES`."""
    return logits_TE.softmax(1) if kind == "softmax" else logits_TE.sigmoid()


def shares(scores_TE: Tensor, kind: str) -> Tensor:
    """Return scores that add up to 1 for each token, as the balance losses want them (DeepSeek-V3, equation 18)."""
    if kind == "softmax":
        return scores_TE
    return scores_TE / scores_TE.sum(1, keepdim=True).clamp(min=torch.finfo(scores_TE.dtype).tiny)


def biased(scores_TE: Tensor, bias_E: Tensor | None, groups: int, limit: int) -> Tensor:
    """Return the numbers by which the K best are chosen: no gradient.

    bias_E: is added to scores for the choice alone, and is in no weight (Wang et al., arXiv 2408.15664).
    groups: experts stand in so many groups of E / groups, and a token chooses from `limit` of them only: those whose
    two best numbers have the largest sum; -inf stands at all others.
    """
    numbers_TE = scores_TE.detach()
    if bias_E is not None:
        numbers_TE = numbers_TE + bias_E.to(numbers_TE.dtype)
    if limit == groups:
        return numbers_TE
    by_group_TGE = numbers_TE.view(len(numbers_TE), groups, numbers_TE.shape[1] // groups)
    best_TG = by_group_TGE.topk(min(_OF_A_GROUP, by_group_TGE.shape[2]), dim=2).values.sum(2)
    allowed_TL = best_TG.topk(limit, dim=1).indices
    allowed_TG = torch.zeros_like(best_TG, dtype=torch.bool).scatter(1, allowed_TL, True)
    return by_group_TGE.masked_fill(~allowed_TG[:, :, None], -math.inf).view(numbers_TE.shape)


@torch.no_grad()
def balance(bias_E: Tensor, loads_E: Tensor, rate: float) -> None:
    """Move the bias of the choice by `rate`: up for experts below the mean load, down for those above it.

    loads_E: choices of each expert in a step, before dropping, of all ranks together: their all_reduce is the caller's.
    The mean of the bias stays 0, which changes no choice (torchtitan does so too).
    """
    step_E = torch.sign(loads_E.to(torch.float32).mean() - loads_E.to(torch.float32)) * rate
    bias_E += step_E - step_E.mean()
