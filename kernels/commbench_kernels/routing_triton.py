"""The kernels of `commbench_kernels.routing`, in Triton: imported when they are first used, as this needs triton."""

from __future__ import annotations

import triton
import triton.language as tl

_TAKEN = tl.constexpr(-(1 << 31))  # below every number


@triton.jit
def choose(
    logits, real, experts, scores, lse, ranks, before, partial, tokens, many, K: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    program, blocks = tl.program_id(0), tl.num_programs(0)
    token = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.arange(0, WIDE)
    is_token, is_expert = token < tokens, expert < many
    value = tl.load(logits + token[:, None] * many + expert[None, :], mask=is_token[:, None] & is_expert[None, :],
                    other=0.0).to(tl.float32)  # fmt: skip
    value = tl.where(is_expert[None, :], value, float("-inf"))
    valid = is_token
    if PADDED:
        valid = valid & (tl.load(real + token, mask=is_token, other=0) != 0)
    largest = tl.max(value, 1)
    power = tl.exp(value - largest[:, None])
    total = tl.sum(power, 1)
    score = power / total[:, None]
    tl.store(lse + token, largest + tl.log(total), mask=is_token)
    tl.store(partial + program * many + expert, tl.sum(tl.where(valid[:, None], score, 0.0), 0), mask=is_expert)
    # Integers in the order of the logits. A warp has an instruction for reductions of 32 bits, so two of them take less
    # time than one of 64 bits.
    bits = value.to(tl.int32, bitcast=True)
    order = tl.where(is_expert[None, :], tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), _TAKEN)
    place = tl.arange(0, BLOCK)
    is_before = place[None, :] < place[:, None]
    for k in tl.static_range(K):
        best = tl.max(order, 1)
        number = tl.min(tl.where(order == best[:, None], expert[None, :], WIDE), 1)  # the lower one of two equal
        order = tl.where(expert[None, :] == number[:, None], _TAKEN, order)
        chosen = tl.where(best < 0, best ^ 0x7FFFFFFF, best).to(tl.float32, bitcast=True)
        # Of a block's tokens there are fewer than of experts: each is held against the others.
        number_or_none = tl.where(valid, number, -1)
        same = (number[:, None] == number_or_none[None, :]).to(tl.int32)
        at = token * K + k
        tl.store(experts + at, number.to(tl.int64), mask=is_token)
        tl.store(scores + at, tl.exp(chosen - largest) / total, mask=is_token)
        tl.store(ranks + at, tl.sum(tl.where(is_before, same, 0), 1), mask=is_token)
        # Tokens with the same choice write the same number; where nobody chooses, zeros are there.
        tl.store(before + (number * K + k).to(tl.int64) * blocks + program, tl.sum(same, 1), mask=valid)


@triton.jit
def scan(before, partial, loads, firsts, sums, blocks, many, K: tl.constexpr, ROWS: tl.constexpr):
    """Turn an expert's counts into the sums of those before, in place."""
    expert = tl.program_id(0).to(tl.int64)
    so_far = tl.zeros((1,), tl.int32)
    of_firsts = tl.zeros((1,), tl.int32)
    first = 0
    while first < K * blocks:
        number = first + tl.arange(0, ROWS)
        at = before + expert * K * blocks + number
        count = tl.load(at, mask=number < K * blocks, other=0)
        tl.store(at, tl.cumsum(count, 0) - count + so_far, mask=number < K * blocks)
        so_far += tl.sum(count, 0)
        of_firsts += tl.sum(tl.where(number < blocks, count, 0), 0)
        first += ROWS
    only = tl.arange(0, 1)
    tl.store(loads + expert + only, so_far.to(tl.int64))
    tl.store(firsts + expert + only, of_firsts.to(tl.int64))
    total = tl.zeros((ROWS,), tl.float32)
    first = 0
    while first < blocks:
        block = first + tl.arange(0, ROWS)
        total += tl.load(partial + block * many + expert, mask=block < blocks, other=0.0)
        first += ROWS
    tl.store(sums + expert, tl.sum(total, 0))


@triton.jit
def assign(
    experts, scores, ranks, before, first, real, slots, rows, choice, weights, tokens, blocks, capacity, eps,
    K: tl.constexpr, WIDE_K: tl.constexpr, NORMALISE: tl.constexpr, PADDED: tl.constexpr, DROPLESS: tl.constexpr,
    BLOCK: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    token = (tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None]
    k = tl.arange(0, WIDE_K)[None, :]
    mask = (token < tokens) & (k < K)
    at = token * K + k
    expert = tl.load(experts + at, mask=mask, other=0)
    score = tl.load(scores + at, mask=mask, other=0.0)
    place = tl.load(ranks + at, mask=mask, other=0).to(tl.int64)
    place += tl.load(before + (expert * K + k) * blocks + token // BLOCK, mask=mask, other=0)
    kept = mask
    if PADDED:
        kept = kept & (tl.load(real + token, mask=token < tokens, other=0) != 0)
    if DROPLESS:
        row = tl.load(first + expert, mask=mask, other=0) + place
    else:
        kept = kept & (place < capacity)
        row = expert * capacity + place
    tl.store(slots + at, tl.where(kept, place, -1), mask=mask)
    tl.store(rows + at, tl.where(kept, row, -1), mask=mask)
    tl.store(choice + row, at, mask=kept)
    weight = tl.where(kept, score, 0.0)
    if NORMALISE == 1:
        weight = weight / tl.maximum(tl.sum(score, 1), eps)[:, None]
    if NORMALISE == 2:
        weight = weight / tl.maximum(tl.sum(weight, 1), eps)[:, None]
    tl.store(weights + at, weight.to(weights.dtype.element_ty), mask=mask)


@triton.jit
def backward(
    grad_weights, grad_sums, logits, experts, scores, lse, slots, real, grad, tokens, many, eps, K: tl.constexpr,
    NORMALISE: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.arange(0, WIDE)
    is_token, is_expert = token < tokens, expert < many
    valid = is_token
    if PADDED:
        valid = valid & (tl.load(real + token, mask=is_token, other=0) != 0)
    mask = is_token[:, None] & is_expert[None, :]
    at = token[:, None] * many + expert[None, :]
    value = tl.load(logits + at, mask=mask, other=float("-inf")).to(tl.float32)
    score = tl.exp(value - tl.load(lse + token, mask=is_token, other=0.0)[:, None])
    # A weight is m c / S, of the score c, m = 1 where there is a slot, and S the sum of c, of those with m or of all.
    total = tl.zeros((BLOCK,), tl.float32)
    dot = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        chosen = tl.load(scores + token * K + k, mask=is_token, other=0.0)
        kept = tl.load(slots + token * K + k, mask=is_token, other=-1) >= 0
        given = tl.load(grad_weights + token * K + k, mask=is_token, other=0.0).to(tl.float32)
        dot += tl.where(kept, chosen * given, 0.0)
        total += tl.where(kept | (NORMALISE == 1), chosen, 0.0)
    clamped = total < eps
    divisor = tl.where(clamped, eps, total)
    by_score = tl.load(grad_sums + expert, mask=is_expert, other=0.0).to(tl.float32)[None, :]
    by_score = tl.where(valid[:, None] & is_expert[None, :], by_score, 0.0)
    for k in tl.static_range(K):
        kept = tl.load(slots + token * K + k, mask=is_token, other=-1) >= 0
        given = tl.load(grad_weights + token * K + k, mask=is_token, other=0.0).to(tl.float32)
        given = tl.where(kept, given, 0.0)
        if NORMALISE != 0:
            given = given / divisor
            counted = (kept | (NORMALISE == 1)) & (clamped == 0)
            given -= tl.where(counted, dot / (divisor * divisor), 0.0)
        number = tl.load(experts + token * K + k, mask=is_token, other=-1)
        by_score += tl.where(expert[None, :] == number[:, None], given[:, None], 0.0)
    inner = tl.sum(tl.where(mask, score * by_score, 0.0), 1)
    found = score * (by_score - inner[:, None])
    found = tl.where(valid[:, None], found, 0.0)
    tl.store(grad + at, found.to(grad.dtype.element_ty), mask=mask)
