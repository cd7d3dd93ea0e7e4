"""Gates of today: sigmoid scores, a bias of the choice, limited groups, scaled weights, shared experts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from commbench.errors import UsageError
from moe_ref import FFN, Capacity, Gate, GateConfig, MoE

DROPLESS = Capacity("dropless")
WIDTH, EXPERTS, TOKENS = 6, 12, 40


def gate(**asked: Any) -> Gate:
    config = GateConfig(experts=EXPERTS, dtype="fp64", capacity=DROPLESS, **asked)
    return Gate(WIDTH, config, generator=torch.Generator().manual_seed(1))


def tokens() -> torch.Tensor:
    x_TD = torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return x_TD.requires_grad_()


def deepseek_v3(
    logits: list[float], bias: list[float], groups: int, limit: int, top_k: int, scale: float
) -> dict[int, float]:
    """One token's experts and weights, as arXiv 2412.19437 (equations 12 to 16, section 2.1.2) says it."""
    score = [1 / (1 + math.exp(-logit)) for logit in logits]
    number = [s + b for s, b in zip(score, bias, strict=True)]
    size = len(logits) // groups
    members = [range(group * size, (group + 1) * size) for group in range(groups)]
    best = sorted(range(groups), key=lambda g: -sum(sorted(number[e] for e in members[g])[-2:]))[:limit]
    chosen = sorted((e for g in best for e in members[g]), key=lambda e: -number[e])[:top_k]
    return {e: scale * score[e] / sum(score[c] for c in chosen) for e in chosen}


@pytest.mark.parametrize(("groups", "limit", "top_k"), [(1, 0, 3), (4, 2, 3), (3, 1, 4), (12, 5, 5), (6, 6, 2)])
def test_deepseek_v3(groups: int, limit: int, top_k: int) -> None:
    made = gate(
        top_k=top_k, score="sigmoid", expert_bias=True, expert_groups=groups, group_limit=limit, route_scale=2.5,
        normalise="before",
    )  # fmt: skip
    assert made.expert_bias_E is not None
    made.expert_bias_E += torch.linspace(-0.5, 0.5, EXPERTS)
    routing = made(tokens())
    assert routing.logits_TE is not None
    for token in range(TOKENS):
        wanted = deepseek_v3(
            routing.logits_TE[token].tolist(), made.expert_bias_E.tolist(), groups, limit or groups, top_k, 2.5
        )
        found = dict(zip(routing.experts_TK[token].tolist(), routing.weights_TK[token].tolist(), strict=True))
        assert found.keys() == wanted.keys()
        assert all(found[e] == pytest.approx(wanted[e], rel=1e-12) for e in wanted)


def test_gradients_are_those_of_the_formula() -> None:
    made, x_TD = gate(top_k=2, score="sigmoid", expert_bias=True, normalise="before", route_scale=0.7), tokens()
    routing = made(x_TD)
    draw_TK = torch.randn(TOKENS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (found_TD,) = torch.autograd.grad((routing.weights_TK * draw_TK).sum() + routing.losses["gshard"], x_TD)
    score_TE = (x_TD @ made.router.weight_ED.t()).sigmoid()  # type: ignore[operator,union-attr]
    chosen_TK = score_TE.gather(1, routing.experts_TK)
    firsts_E = routing.experts_TK[:, 0].bincount(minlength=EXPERTS).double() / TOKENS
    loss = EXPERTS * ((score_TE / score_TE.sum(1, keepdim=True)).mean(0) * firsts_E).sum()
    wanted = (0.7 * chosen_TK / chosen_TK.sum(1, keepdim=True) * draw_TK).sum() + loss
    torch.testing.assert_close(found_TD, torch.autograd.grad(wanted, x_TD)[0], rtol=1e-11, atol=1e-12)


def test_the_bias_is_in_no_weight_and_evens_loads_out() -> None:
    made, x_TD = gate(top_k=2, score="sigmoid", expert_bias=True, normalise="never"), tokens()
    with torch.no_grad():
        before = made(x_TD)
        for _ in range(400):
            made.balance(made(x_TD).loads_E, rate=0.01)
        after = made(x_TD)
    assert int(after.loads_E.max()) <= TOKENS * 2 / EXPERTS + 3 < int(before.loads_E.max())
    torch.testing.assert_close(after.weights_TK, after.scores_TE().gather(1, after.experts_TK))
    assert made.expert_bias_E is not None and float(made.expert_bias_E.mean()) == pytest.approx(0, abs=1e-6)
    assert "expert_bias_E" in made.state_dict() and "expert_bias_E" not in gate().state_dict()


def test_scores_are_handed_out() -> None:
    made = gate(top_k=3, normalise="never")
    routing = made(tokens())
    torch.testing.assert_close(routing.scores_TE().sum(1), torch.ones(TOKENS, dtype=torch.float64))
    torch.testing.assert_close(routing.weights_TK, routing.scores_TE().topk(3).values)


def test_shared_experts_are_added_but_not_to_padding() -> None:
    shared = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
    experts = FFN(EXPERTS, WIDTH, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    x_TD, padding_T = tokens(), torch.arange(TOKENS) % 3 == 0
    plain = MoE(gate(), experts)(x_TD, padding_T).y
    both = MoE(gate(), experts, shared=shared)(x_TD, padding_T).y
    torch.testing.assert_close(both, plain + torch.where(padding_T[:, None], 0, shared(x_TD)))
    assert not both[padding_T].any()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "score": ({"score": "tanh"}, "unknown score 'tanh'"),
    "groups": ({"expert_groups": 5}, "expert_groups=5 of experts=12"),
    "limit": ({"expert_groups": 4, "group_limit": 5}, "group_limit=5 of expert_groups=4"),
    "few": ({"expert_groups": 6, "group_limit": 1, "top_k": 3}, "group_limit=1 of expert_groups=6, with 2 experts"),
    "scale": ({"route_scale": 0.0}, "route_scale=0.0"),
    "nan": ({"route_scale": math.nan}, "route_scale=nan"),
    "draws": ({"score": "sigmoid", "second": "sampling"}, "second=sampling draws from softmax scores"),
    "load": ({"score": "sigmoid", "losses": ("importance_load",), "noise": 1.0}, "importance_load is defined for"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_refused(case: str) -> None:
    asked, said = WRONG[case]
    with pytest.raises(UsageError, match=said) as raised:
        GateConfig(experts=EXPERTS, **asked)
    assert raised.value.hint
    with pytest.raises(UsageError, match="no bias of the choice"):
        gate().balance(torch.zeros(EXPERTS))
