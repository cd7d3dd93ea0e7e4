"""Capacity, slots and weights are those of fairseq, Tutel and DeepSpeed, on a thousand random cases each."""

from __future__ import annotations

import random
from itertools import compress

import pytest
import torch
from torch import Tensor

from commbench.errors import UsageError
from moe_ref import Capacity, Gate, GateConfig, Routing, slots
from tests.moe import rules

CASES = 1000


def gate_of_logits(config: GateConfig) -> Gate:
    """Its input is its logits."""
    gate = Gate(config.experts, config)
    with torch.no_grad():
        gate.get_parameter("router.weight_ED").copy_(torch.eye(config.experts))
    return gate


def drawn(seed: int) -> tuple[random.Random, Tensor, int]:
    """What to draw more from, logits of some tokens for some experts, skewed in every second case, and K <= E."""
    dice = random.Random(seed)
    experts, tokens = dice.randint(2, 9), dice.randint(1, 24)
    logits_TE = torch.randn(tokens, experts, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if seed % 2:
        logits_TE += torch.linspace(2, 0, experts, dtype=torch.float64)
    return dice, logits_TE, dice.randint(1, experts)


def same(routing: Routing, expected: rules.Result, padding: list[bool] | None = None) -> None:
    """All that was decided; but which expert padding would have chosen says nothing."""
    capacity, choices = expected
    assert routing.capacity == capacity
    real = [True] * len(choices) if padding is None else [not of for of in padding]
    chosen = [[e for e, _, _ in row] for row in choices]
    assert list(compress(routing.experts_TK.tolist(), real)) == list(compress(chosen, real))
    assert routing.slots_TK.tolist() == [[-1 if slot is None else slot for _, slot, _ in row] for row in choices]
    weights_TK = torch.tensor([[weight for _, _, weight in row] for row in choices], dtype=torch.float64)
    torch.testing.assert_close(routing.weights_TK.detach(), weights_TK, rtol=1e-12, atol=1e-12)
    taken = [0] * routing.experts
    for row in choices:
        for e, slot, _ in row:
            taken[e] += slot is not None
    assert routing.counts_E.tolist() == taken


def test_slots_are_tutels() -> None:
    for seed in range(CASES):
        dice, logits_TE, k = drawn(seed)
        factor = dice.choice([0.25, 0.29, 0.5, 1.0, 1.25, 2.0, 0.0, 0.0, -0.5, -1.0, -1.5])
        prioritised, multiple = dice.random() < 0.5, dice.choice([1, 1, 2, 3])
        config = GateConfig(
            experts=logits_TE.shape[1], top_k=k, dtype="fp64", normalise="before",
            order="batch_prioritised" if prioritised else "position",
            capacity=Capacity("tutel", factor, multiple_of=multiple),
        )  # fmt: skip
        expected = rules.tutel(logits_TE.softmax(1).tolist(), k, factor, prioritised=prioritised, multiple_of=multiple)
        same(gate_of_logits(config)(logits_TE), expected)


def test_slots_are_fairseqs() -> None:
    for seed in range(CASES):
        dice, logits_TE, _ = drawn(seed)
        tokens, experts = logits_TE.shape
        scores = logits_TE.softmax(1).tolist()
        if seed % 5 == 0:
            factor = dice.choice([0.5, 1.0, 1.25, 2.0])
            one = GateConfig(experts=experts, top_k=1, dtype="fp64", capacity=Capacity("fairseq", factor))
            same(gate_of_logits(one)(logits_TE), rules.fairseq_top1(scores, factor))
            continue
        second = dice.choice(["all", "sampling", "random"])
        prioritised, before, evaluating = (dice.random() < 0.5 for _ in range(3))
        padding = [dice.random() < 0.2 for _ in range(tokens)]
        config = GateConfig(
            experts=experts, dtype="fp64", second=second, normalise="before" if before else "after",
            order="batch_prioritised" if prioritised else "position",
            capacity=Capacity("fairseq", eval_fraction=0.25 if evaluating else -1.0),
        )  # fmt: skip
        gate = gate_of_logits(config).train(not evaluating)
        routing = gate(logits_TE, torch.tensor(padding), generator=torch.Generator().manual_seed(seed))
        chosen = [rules.best(row, 2) for row in scores]
        draws = None
        if second == "sampling":
            taken = routing.experts_TK.tolist()
            assert all(a[0] == b[0] for a, b, padded in zip(chosen, taken, padding, strict=True) if not padded)
            chosen = taken
        if second == "random":
            generator = torch.Generator().manual_seed(seed)
            draws = torch.rand(tokens, 2, dtype=torch.float64, generator=generator)[:, 1].tolist()
        same(routing, rules.fairseq_top2(
            scores, chosen, padding=padding, prioritised=prioritised, before_dropping=before, draws=draws,
            eval_fraction=0.25 if evaluating else 0,
        ), padding)  # fmt: skip


def test_slots_are_deepspeeds() -> None:
    for seed in range(CASES):
        dice, logits_TE, k = drawn(seed)
        tokens, experts = logits_TE.shape
        scores = logits_TE.softmax(1).tolist()
        factor, fewest = dice.choice([0.25, 0.5, 1.0, 1.1, 1.25, 2.0]), dice.choice([0, 1, 4, None])
        least = 8 if fewest is None else fewest
        order = "position"
        if k == 1:
            order = dice.choice(["position", "random"])
        if k > 2:
            order = dice.choice(["token", "score"])
        config = GateConfig(experts=experts, top_k=k, dtype="fp64", order=order,
                            capacity=Capacity("deepspeed", factor, fewest=fewest))  # fmt: skip
        routing = gate_of_logits(config)(logits_TE, generator=torch.Generator().manual_seed(seed))
        if k == 1:
            generator = torch.Generator().manual_seed(seed)
            priority = torch.rand(tokens, dtype=torch.float64, generator=generator).tolist()
            expected = rules.deepspeed_top1(scores, factor, least, priority if order == "random" else None)
        elif k == 2:
            expected = rules.deepspeed_top2(scores, [rules.best(row, 2) for row in scores], factor, least)
        else:
            policy = {"token": "position", "score": "probs"}[order]
            expected = rules.deepspeed_topk(scores, k, factor, least, policy)
        same(routing, expected)


@pytest.mark.parametrize(
    ("factor", "fairseq", "tutel", "deepspeed"), [(1, 6, 6, 5), (1.25, 7, 6, 7), (0.5, 3, 2, 3), (0.1, 0, 0, 1)]
)
def test_worked_example_of_capacity(factor: float, fairseq: int, tutel: int, deepspeed: int) -> None:
    """The table in docs/guide/moe.md: ten tokens, four experts, two choices."""
    found = [Capacity(rule, factor, fewest=0).slots(10, 4, 2) for rule in ("fairseq", "tutel", "deepspeed")]
    assert found == [fairseq, tutel, deepspeed]
    assert Capacity("deepspeed", factor).slots(10, 4, 2) == 8, "its least"


def test_capacity_by_load() -> None:
    assert Capacity("tutel", 0).slots(10, 4, 2, load=9) == 9
    assert Capacity("tutel", -1).slots(10, 4, 2, load=9) == 6, "capped"
    assert Capacity("tutel", -1).slots(10, 4, 2, load=5) == 5, "not more than there is"
    assert Capacity("tutel", 0, multiple_of=4).slots(10, 4, 2, load=9) == 12
    assert Capacity("fairseq", eval_fraction=0.25).slots(10, 4, 2, training=False) == 3
    assert Capacity("tutel", 1, eval_factor=2).slots(10, 4, 2, training=False) == 12
    assert not Capacity("tutel", 1, eval_factor=0).needs_load(training=True)
    assert Capacity("tutel", 1, eval_factor=0).needs_load(training=False)


def test_factors_are_the_numbers_that_were_written() -> None:
    """0.29 * 100 is 28.999999999999996, and 1.1 * 10 is 11.000000000000002."""
    assert Capacity("tutel", 0.29).slots(100, 1, 1) == 29
    assert Capacity("deepspeed", 1.1, fewest=0).slots(10, 1, 1) == 11


# Tokens 0 .. 3 choose of A, B, C: AB, AB, BA, AC. Two slots each.
EXPERTS_TK = torch.tensor([[0, 1], [0, 1], [1, 0], [0, 2]])
SCORES_TK = torch.tensor([[0.5, 0.3], [0.6, 0.25], [0.7, 0.2], [0.9, 0.05]])


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("position", [[0, 1], [1, -1], [0, -1], [-1, 0]]),
        ("batch_prioritised", [[-1, -1], [1, 1], [0, -1], [0, 0]]),
        ("random", [[0, 0], [-1, -1], [1, -1], [1, 0]]),
        ("token", [[0, 0], [1, 1], [-1, -1], [-1, 0]]),
        ("score", [[-1, 0], [0, -1], [1, -1], [1, 0]]),
    ],
)
def test_worked_example_of_orders(order: str, expected: list[list[int]]) -> None:
    """The table in docs/guide/moe.md; random with the draws .9 .1 .2 .5."""
    found_TK = slots.assign(
        EXPERTS_TK, torch.ones(4, 2, dtype=torch.bool), 3, 2, order,
        scores_TK=SCORES_TK, best_T=SCORES_TK[:, 0], priority_T=torch.tensor([0.9, 0.1, 0.2, 0.5]),
    )  # fmt: skip
    assert found_TK.tolist() == expected


@pytest.mark.parametrize("experts", [254, 255, 256, 32767, 32768])
def test_ranks_with_keys_of_every_length(experts: int) -> None:
    """The number of experts, which stands for choices that are not valid, is the largest of its dtype, or one more."""
    experts_TK = torch.tensor([[experts - 1, 0], [0, experts - 1], [experts - 1, 0]])
    valid_TK = torch.tensor([[True, True], [False, True], [True, True]])
    found = slots.ranks(experts_TK, valid_TK, torch.arange(6), experts)
    assert found.tolist() == [[0, 0], [-1, 1], [2, 1]]


def test_random_order_keeps_every_token_equally_often() -> None:
    config = GateConfig(experts=2, top_k=1, order="random", capacity=Capacity("tutel", 1.0))
    gate, generator = gate_of_logits(config), torch.Generator().manual_seed(1)
    kept_T = torch.zeros(8)
    for _ in range(400):
        kept_T += gate(torch.tensor([[1.0, 0.0]] * 8), generator=generator).slots_TK[:, 0] >= 0
    assert kept_T.sum() == 1600 and (kept_T - 200).abs().max() < 50  # 5 standard deviations


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Capacity(factor=float("nan")), "factor=nan"),
        (lambda: Capacity(factor=float("inf")), "factor=inf"),
        (lambda: Capacity(eval_factor=float("nan")), "eval_factor=nan"),
        (lambda: Capacity("gshard"), "unknown capacity rule 'gshard'"),
        (lambda: Capacity(fewest=-1), "fewest=-1"),
        (lambda: Capacity(multiple_of=0), "multiple_of=0"),
        (lambda: Capacity("dropless").slots(8, 2, 1), "dropless"),
        (lambda: Capacity(factor=0).slots(8, 2, 1), "largest load"),
        (lambda: slots.sequence("fair", SCORES_TK), "unknown order 'fair'"),
        (lambda: slots.sequence("random", SCORES_TK, priority_T=torch.rand(3)), r"4 tokens, not \[3\]"),
    ],
)
def test_what_cannot_be_meant(make: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()  # type: ignore[operator]
