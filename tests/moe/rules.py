"""The rules of three systems once more, on lists and counters: what each says, as slowly as it can be said.

Scores are one list a token. A result is C, and for each token one `(expert, slot, weight)` per choice, slot None where
it has none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

Scores = Sequence[Sequence[float]]
Choice = tuple[int, int | None, float]
Result = tuple[int, list[list[Choice]]]
EPS = 2.0**-52


def best(scores: Sequence[float], k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda e: -scores[e])[:k]


def number(factor: float) -> Fraction:
    return Fraction(str(factor))


def tutel(scores: Scores, k: int, factor: float, *, prioritised: bool = False, multiple_of: int = 1) -> Result:
    """Weights are normalised over all k choices, then those that do not fit are not sent."""
    experts = len(scores[0])
    chosen = [best(row, k) for row in scores]
    order = sorted(range(len(scores)), key=lambda t: -max(scores[t])) if prioritised else range(len(scores))
    at: dict[tuple[int, int], int] = {}
    before: Counter[int] = Counter()
    for j in range(k):
        here: Counter[int] = Counter()
        for t in order:
            e = chosen[t][j]
            at[t, j] = here[e] + before[e]
            here[e] += 1
        before += here
    per_expert = -(-len(scores) // experts)
    if factor > 0:
        capacity = k * math.floor(number(factor) * per_expert)
    else:
        capacity = max(at.values()) + 1
        if factor < 0:
            capacity = min(capacity, k * math.floor(-number(factor) * per_expert))
    if capacity % multiple_of:
        capacity += multiple_of - capacity % multiple_of
    found: list[list[Choice]] = []
    for t, row in enumerate(scores):
        total = max(sum(row[e] for e in chosen[t]), EPS) if k > 1 else 1.0
        kept = [(e, at[t, j] if at[t, j] < capacity else None, row[e] / total) for j, e in enumerate(chosen[t])]
        found.append([(e, slot, 0.0 if slot is None else weight) for e, slot, weight in kept])
    return capacity, found


def fairseq_top2(
    scores: Scores,
    chosen: Sequence[Sequence[int]],
    *,
    padding: Sequence[bool],
    prioritised: bool,
    before_dropping: bool,
    draws: Sequence[float] | None = None,
    eval_fraction: float = 0,
) -> Result:
    """`chosen`: the two experts of each token; `draws`: of the second-expert policy random."""
    tokens, experts = len(scores), len(scores[0])
    capacity = math.ceil(number(eval_fraction) * tokens) if eval_fraction > 0 else 2 * math.ceil(tokens / experts)
    weights = [[scores[t][e] for e in chosen[t]] for t in range(tokens)]
    if before_dropping:
        weights = [[w / max(sum(pair), EPS) for w in pair] for pair in weights]
    first = [not padding[t] for t in range(tokens)]
    second = [first[t] and (draws is None or 2 * weights[t][1] > draws[t]) for t in range(tokens)]
    order = sorted(range(tokens), key=lambda t: -max(scores[t])) if prioritised else range(tokens)
    all_first = Counter(chosen[t][0] for t in range(tokens) if first[t])
    seen: list[Counter[int]] = [Counter(), all_first]
    at: dict[tuple[int, int], int] = {}
    for j, takes in enumerate((first, second)):
        for t in order:
            if takes[t]:
                e = chosen[t][j]
                if seen[j][e] < capacity:
                    at[t, j] = seen[j][e]
                seen[j] = seen[j] + Counter([e])
    found: list[list[Choice]] = []
    for t in range(tokens):
        pair = [weights[t][j] if (t, j) in at else 0.0 for j in range(2)]
        if not before_dropping:
            pair = [w / max(sum(pair), EPS) for w in pair]
        found.append([(chosen[t][j], at.get((t, j)), pair[j]) for j in range(2)])
    return capacity, found


def fairseq_top1(scores: Scores, factor: float) -> Result:
    experts = len(scores[0])
    capacity = math.floor(number(factor) * math.ceil(len(scores) / experts))
    return capacity, _first_come(scores, capacity)


def deepspeed_capacity(tokens: int, experts: int, k: int, factor: float, fewest: int) -> int:
    return max(fewest, math.ceil(Fraction(tokens, experts) * number(factor) * k))


def deepspeed_top1(scores: Scores, factor: float, fewest: int, priority: Sequence[float] | None) -> Result:
    """With priorities each expert keeps those of its tokens that have the largest; they keep their order."""
    experts = len(scores[0])
    capacity = deepspeed_capacity(len(scores), experts, 1, factor, fewest)
    if priority is None:
        return capacity, _first_come(scores, capacity)
    slots: dict[int, int] = {}
    for e in range(experts):
        mine = [t for t, row in enumerate(scores) if best(row, 1) == [e]]
        kept = sorted(mine, key=lambda t: -priority[t])[:capacity]
        slots |= {t: slot for slot, t in enumerate(sorted(kept))}
    return capacity, [[_single(row, slots.get(t))] for t, row in enumerate(scores)]


def deepspeed_top2(scores: Scores, chosen: Sequence[Sequence[int]], factor: float, fewest: int) -> Result:
    """fairseq's order and normalisation, by another C."""
    capacity = deepspeed_capacity(len(scores), len(scores[0]), 2, factor, fewest)
    first, second = (Counter(pair[j] for pair in chosen) for j in range(2))
    assert sum(first.values()) == sum(second.values()) == len(scores)
    found: list[list[Choice]] = []
    for t, (one, two) in enumerate(chosen):
        at_one = sum(chosen[s][0] == one for s in range(t))
        at_two = first[two] + sum(chosen[s][1] == two for s in range(t))
        pair = [scores[t][one] * (at_one < capacity), scores[t][two] * (at_two < capacity)]
        total = max(sum(pair), EPS)
        found.append([
            (one, at_one if at_one < capacity else None, pair[0] / total),
            (two, at_two if at_two < capacity else None, pair[1] / total),
        ])  # fmt: skip
    return capacity, found


def deepspeed_topk(scores: Scores, k: int, factor: float, fewest: int, policy: str) -> Result:
    """Each expert looks down the list of tokens (`position`), or keeps its best scores (`probs`)."""
    experts = len(scores[0])
    capacity = deepspeed_capacity(len(scores), experts, k, factor, fewest)
    chosen = [best(row, k) for row in scores]
    slots: dict[tuple[int, int], int] = {}
    for e in range(experts):
        mine = [t for t in range(len(scores)) if e in chosen[t]]
        kept = mine[:capacity] if policy == "position" else sorted(mine, key=lambda t: -scores[t][e])[:capacity]
        slots |= {(t, e): slot for slot, t in enumerate(sorted(kept))}
    found: list[list[Choice]] = []
    for t, row in enumerate(scores):
        total = max(sum(row[e] for e in chosen[t] if (t, e) in slots), EPS)
        found.append([(e, slots.get((t, e)), row[e] / total if (t, e) in slots else 0.0) for e in chosen[t]])
    return capacity, found


def _first_come(scores: Scores, capacity: int) -> list[list[Choice]]:
    seen: Counter[int] = Counter()
    found: list[list[Choice]] = []
    for row in scores:
        (e,) = best(row, 1)
        found.append([_single(row, seen[e] if seen[e] < capacity else None)])
        seen[e] += 1
    return found


def _single(row: Sequence[float], slot: int | None) -> Choice:
    """Weights of one choice are not normalised."""
    (e,) = best(row, 1)
    return e, slot, 0.0 if slot is None else row[e]
