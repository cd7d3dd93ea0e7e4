"""From a gate's logits to who goes where: softmax, the K best, ranks within experts, slots, weights; and back.

choose    softmax, the K best of each token, their rank in a block of tokens, and each block's counts
scan      where each block begins in each expert, first choices of all tokens before second ones; loads
assign    slots, rows of the buffer and their inverse, weights
backward  the gradient of logits by weights and by sums of scores

Plain torch needs some sixty kernels for it, most of them for a moment only. Here each number is read once, nothing is
atomic and sums have a fixed order. Beside each stands its reference in plain torch. Roofline: logits are read and K
choices of each token written; far below 10 us for 32768 tokens, so launches and the K searches in a row decide.

Needs a GPU and triton, and at most `MOST_EXPERTS` experts. With TRITON_INTERPRET=1 triton runs on a CPU, slowly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST_EXPERTS = 256
NORMALISE = {"never": 0, "before": 1, "after": 2}
_ELEMENTS = 2048  # of logits that a program holds
_TOKENS = (16, 64)  # fewest and most that it does
_ROWS = 2048  # numbers that `scan` has at a time
_WARPS = 4
_ASSIGNED = 256  # tokens of a program of `assign`


class TopKChoices(NamedTuple):
    """What `choose` and `scan` find.

    experts: int64 [T, K], best first; of equal logits the lower one. scores: fp32 [T, K], their softmax over all
    experts. lse: fp32 [T], log of the sum of exp(logits). ranks: int32 [T, K], within the token's block, of the choices
    with that k. before: int32 [E, K, blocks], how many choices of an expert come before block b's with that k. loads,
    firsts: int64 [E], choices and first choices of each expert. sums: fp32 [E], scores summed over real tokens.
    """

    experts: Tensor
    scores: Tensor
    lse: Tensor
    ranks: Tensor
    before: Tensor
    loads: Tensor
    firsts: Tensor
    sums: Tensor


class SlotAssignment(NamedTuple):
    """What `assign` finds: slots, rows int64 [T, K], -1 for none; choice int64 [R], their inverse; weights [T, K]."""

    slots: Tensor
    rows: Tensor
    choice: Tensor
    weights: Tensor


def block_tokens(experts: int) -> int:
    """Return how many tokens one program of `choose` and `backward` has."""
    fewest, most = _TOKENS
    return max(fewest, min(most, _ELEMENTS // _power_of_2(experts)))


def choose(logits: Tensor, top_k: int, real: Tensor | None = None) -> TopKChoices:
    """Return the K best experts of each token, and what their places follow from.

    logits: [T, E] of fp32, bf16 or fp16, T of 1 or more. real: bool [T], false for tokens that choose nothing.
    """
    tokens, experts = logits.shape
    block = block_tokens(experts)
    blocks = -(-tokens // block)
    device = logits.device
    chosen = torch.empty(tokens, top_k, dtype=torch.int64, device=device)
    scores = torch.empty(tokens, top_k, dtype=torch.float32, device=device)
    ranks = torch.empty(tokens, top_k, dtype=torch.int32, device=device)
    lse = torch.empty(tokens, dtype=torch.float32, device=device)
    before = torch.zeros(experts, top_k, blocks, dtype=torch.int32, device=device)
    partial = torch.empty(blocks, experts, dtype=torch.float32, device=device)
    loads, firsts = (torch.empty(experts, dtype=torch.int64, device=device) for _ in range(2))
    sums = torch.empty(experts, dtype=torch.float32, device=device)
    logits = logits.contiguous()
    mask = logits if real is None else real.contiguous()
    _launch("choose", blocks, logits, mask, chosen, scores, lse, ranks, before, partial, tokens, experts, K=top_k,
            PADDED=real is not None, BLOCK=block, WIDE=_power_of_2(experts))  # fmt: skip
    _launch("scan", experts, before, partial, loads, firsts, sums, blocks, experts, K=top_k, ROWS=_ROWS)
    return TopKChoices(chosen, scores, lse, ranks, before, loads, firsts, sums)


def choose_reference(logits: Tensor, top_k: int, real: Tensor | None = None) -> TopKChoices:
    """Compute `choose` in plain torch; `ranks` are those of all tokens and `before` is what then is left: [E, K, 1]."""
    wide = logits.float()
    real = torch.ones(len(logits), dtype=torch.bool, device=logits.device) if real is None else real
    scores = wide.softmax(1)
    experts = wide.argsort(dim=1, descending=True, stable=True)[:, :top_k]
    hot = torch.nn.functional.one_hot(experts, logits.shape[1]) * real[:, None, None]
    ranks = (hot.cumsum(0) * hot).sum(2) - 1
    counts = hot.sum(0)
    before = (counts.cumsum(0) - counts).t()[:, :, None]
    sums = (scores * real[:, None]).sum(0)
    return TopKChoices(experts, scores.gather(1, experts), wide.logsumexp(1), ranks.int(), before.int(), counts.sum(0),
                  counts[0], sums)  # fmt: skip


def assign(
    chosen: TopKChoices,
    capacity: int | None,
    rows: int,
    *,
    normalise: str,
    dtype: torch.dtype,
    real: Tensor | None = None,
) -> SlotAssignment:
    """Give each choice its slot, where its expert has one left, and its weight.

    capacity: slots of an expert; None: as many as it has choices. rows: of the buffer. normalise: `never`; `before` and
    `after` dropping weights are divided by their sum, at least the eps of `dtype`, which is the weights'.
    """
    tokens, top_k = chosen.experts.shape
    device = chosen.experts.device
    slots, of_rows = (torch.empty(tokens, top_k, dtype=torch.int64, device=device) for _ in range(2))
    choice = torch.full((rows,), -1, dtype=torch.int64, device=device)
    weights = torch.empty(tokens, top_k, dtype=dtype, device=device)
    first = chosen.loads.cumsum(0) - chosen.loads if capacity is None else chosen.loads
    mask = chosen.experts if real is None else real.contiguous()
    experts = len(chosen.loads)
    _launch("assign", -(-tokens // _ASSIGNED), chosen.experts, chosen.scores, chosen.ranks, chosen.before, first, mask,
            slots, of_rows, choice, weights, tokens, chosen.before.shape[2],
            -1 if capacity is None else capacity, torch.finfo(dtype).eps, K=top_k, WIDE_K=_power_of_2(top_k),
            NORMALISE=_how(normalise, top_k), PADDED=real is not None, DROPLESS=capacity is None,
            BLOCK=block_tokens(experts), TOKENS=_ASSIGNED)  # fmt: skip
    return SlotAssignment(slots, of_rows, choice, weights)


def assign_reference(
    chosen: TopKChoices,
    capacity: int | None,
    rows: int,
    *,
    normalise: str,
    dtype: torch.dtype,
    real: Tensor | None = None,
) -> SlotAssignment:
    """Compute `assign` in plain torch, of what `choose_reference` finds."""
    k = torch.arange(chosen.experts.shape[1], device=chosen.experts.device)
    places = chosen.ranks + chosen.before[chosen.experts, k, 0]
    kept = torch.ones_like(places, dtype=torch.bool) if real is None else real[:, None].expand_as(places).clone()
    first = torch.arange(len(chosen.loads), device=k.device) * (capacity or 0)
    if capacity is None:
        first = chosen.loads.cumsum(0) - chosen.loads
    else:
        kept &= places < capacity
    slots = torch.where(kept, places, -1).long()
    of_rows = torch.where(kept, first[chosen.experts] + places, -1)
    choice = torch.full((rows,), -1, device=k.device)
    choice[of_rows[kept]] = torch.arange(kept.numel(), device=k.device).view_as(kept)[kept]
    weights = chosen.scores * kept
    if mode := _how(normalise, kept.shape[1]):
        of = chosen.scores if mode == NORMALISE["before"] else weights
        weights = weights / of.sum(1, keepdim=True).clamp(min=torch.finfo(dtype).eps)
    return SlotAssignment(slots, of_rows, choice, weights.to(dtype))


def backward(
    grad_weights: Tensor, grad_sums: Tensor, logits: Tensor, chosen: TopKChoices, slots: Tensor, *, normalise: str,
    real: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the gradient of logits [T, E], in their dtype, by weights [T, K] and by `sums` fp32 [E]."""
    tokens, experts = logits.shape
    grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    top_k, block = slots.shape[1], block_tokens(experts)
    mask = slots if real is None else real.contiguous()
    _launch("backward", -(-tokens // block), grad_weights.contiguous(), grad_sums.contiguous(), logits.contiguous(),
            chosen.experts, chosen.scores, chosen.lse, slots, mask, grad, tokens, experts,
            torch.finfo(grad_weights.dtype).eps, K=top_k, NORMALISE=_how(normalise, top_k), PADDED=real is not None,
            BLOCK=block, WIDE=_power_of_2(experts))  # fmt: skip
    return grad


def _how(normalise: str, top_k: int) -> int:
    """Return the number of a way to normalise: one choice never is, or the gate would get no gradient."""
    return NORMALISE["never" if top_k == 1 else normalise]


def _power_of_2(number: int) -> int:
    return max(2, 1 << (number - 1).bit_length())


def _launch(name: str, programs: int, *arguments: Any, **constants: int) -> None:
    from commbench_kernels import routing_triton

    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        getattr(routing_triton, name)[(programs,)](*arguments, **constants, num_warps=_WARPS)
