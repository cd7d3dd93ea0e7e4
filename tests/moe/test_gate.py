"""What a gate adds to the rules: precision, noise, routers, draws, padding, losses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from commbench.errors import UsageError
from moe_ref import Capacity, Gate, GateConfig, losses
from tests.moe.test_rules import gate_of_logits

WIDTH = 8
PLAIN = GateConfig(experts=5, top_k=2)


def tokens(many: int = 12, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(many, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(many))


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("fp64", torch.float64)])
@pytest.mark.parametrize("router", ["linear", "cosine"])
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32, torch.float64])
def test_the_gate_computes_in_its_own_dtype(given: torch.dtype, router: str, name: str, dtype: torch.dtype) -> None:
    gate = Gate(WIDTH, replace(PLAIN, dtype=name, router=router))
    gate.to(torch.bfloat16)  # as a cast of the whole model does
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = gate(tokens(dtype=given))
    assert routing.weights_TK.dtype == dtype
    assert not torch.equal(routing.weights_TK, routing.weights_TK.bfloat16().to(dtype))
    assert Gate(WIDTH, replace(PLAIN, dtype="input"))(tokens(dtype=given)).weights_TK.dtype == given


def test_noise_jitter_and_dropout_are_in_training_only() -> None:
    for change in ({"noise": 1.0}, {"jitter": 0.1}, {"dropout": 0.5}):
        gate = Gate(WIDTH, replace(PLAIN, losses=("z",), **change), generator=torch.Generator().manual_seed(0))
        plain = Gate(WIDTH, PLAIN)
        plain.load_state_dict(gate.state_dict())
        x_TD = tokens()
        still = plain(x_TD)
        one, again, other = (gate(x_TD, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
        assert torch.equal(one.weights_TK, again.weights_TK) and not torch.equal(one.weights_TK, other.weights_TK)
        assert not torch.equal(one.weights_TK, still.weights_TK)
        assert torch.equal(gate.eval()(x_TD).weights_TK, still.weights_TK)


def test_sizes_of_noise_jitter_and_dropout() -> None:
    x_TE = torch.full((20000, 4), 2.0)
    noisy = gate_of_logits(GateConfig(experts=4, noise=3.0))
    clean_TE, noisy_TE = noisy._logits(x_TE, torch.Generator().manual_seed(0))
    assert torch.equal(clean_TE, x_TE) and float((noisy_TE - clean_TE).detach().std()) == pytest.approx(3 / 4, rel=0.02)
    routing = noisy(x_TE, generator=torch.Generator().manual_seed(0))
    seen_TK = noisy_TE.softmax(1).topk(2).values
    kept_T = (routing.slots_TK >= 0).all(1)
    torch.testing.assert_close(
        routing.weights_TK[kept_T], (seen_TK / seen_TK.sum(1, keepdim=True))[kept_T], msg="scores see the noise"
    )
    jittered, _ = gate_of_logits(GateConfig(experts=4, jitter=0.25))._logits(x_TE, torch.Generator().manual_seed(0))
    assert 1.5 <= float(jittered.detach().min()) < 1.51 and 2.49 < float(jittered.detach().max()) <= 2.5
    dropped, _ = gate_of_logits(GateConfig(experts=4, dropout=0.2))._logits(x_TE, torch.Generator().manual_seed(0))
    assert sorted(set(dropped.flatten().tolist())) == [0.0, 2.5]
    assert float((dropped == 0).float().mean()) == pytest.approx(0.2, abs=0.01)


def test_the_second_expert_is_drawn_in_proportion_to_scores() -> None:
    share_E = torch.tensor([0.5, 0.3, 0.15, 0.05])
    gate = gate_of_logits(GateConfig(experts=4, second="sampling"))
    routing = gate(share_E.log().repeat(20000, 1), generator=torch.Generator().manual_seed(0))
    assert set(routing.experts_TK[:, 0].tolist()) == {0}
    found_E = routing.experts_TK[:, 1].bincount(minlength=4) / 20000
    torch.testing.assert_close(found_E, torch.tensor([0, 0.6, 0.3, 0.1]), rtol=0, atol=0.015)


def test_the_second_expert_is_taken_with_twice_its_weight() -> None:
    gate = gate_of_logits(GateConfig(experts=3, second="random", capacity=Capacity("dropless")))
    routing = gate(torch.tensor([0.7, 0.2, 0.1]).log().repeat(20000, 1), generator=torch.Generator().manual_seed(0))
    assert routing.rows == int(routing.counts_E.sum()) and routing.counts_E[0] == 20000
    assert float(routing.counts_E[1] / 20000) == pytest.approx(0.4, abs=0.015)


def test_weights_before_and_after_dropping() -> None:
    """The worked example in docs/guide/moe.md: the second expert of token 0 is full."""
    logits_TE = torch.tensor([[0.5, 0.4, 0.1], [0.1, 0.6, 0.3]]).log()
    config = GateConfig(experts=3, capacity=Capacity("deepspeed", 0.75, fewest=0))
    for normalise, expected in (("after", [1.0, 0.0]), ("before", [5 / 9, 0.0]), ("never", [0.5, 0.0])):
        routing = gate_of_logits(replace(config, normalise=normalise))(logits_TE)
        assert routing.capacity == 1 and routing.slots_TK.tolist() == [[0, -1], [0, 0]]
        torch.testing.assert_close(routing.weights_TK[0], torch.tensor(expected))


def test_the_cosine_router_sees_angles_only() -> None:
    gate = Gate(WIDTH, replace(PLAIN, router="cosine", cosine_dim=16, cosine_temperature=0.01, losses=("z",)))
    x_TD = tokens()
    weights = gate(x_TD).weights_TK
    torch.testing.assert_close(gate(100 * x_TD).weights_TK, weights)
    with torch.no_grad():
        gate.get_parameter("router.steepness").fill_(50.0)
    torch.testing.assert_close(gate(x_TD).weights_TK, weights, msg="100 is the steepest")
    logits_TE, _ = gate._logits(x_TD, None)
    router = gate.router
    by_hand = torch.nn.functional.cosine_similarity(
        (x_TD @ gate.get_parameter("router.project_PD").t())[:, None], gate.get_parameter("router.vectors_EP")[None], -1
    )
    torch.testing.assert_close(logits_TE, 100 * by_hand)
    logits_TE.square().sum().backward()
    assert all(p.grad is not None for p in router.parameters())


def test_padding_chooses_nothing_and_counts_in_capacity() -> None:
    gate = Gate(WIDTH, replace(PLAIN, losses=("gshard", "gshard_all", "z")))
    x_TD = tokens(20)
    padding_T = torch.arange(20) >= 13
    padded, alone = gate(x_TD, padding_T), gate(x_TD[:13], most_tokens=20)
    assert padded.capacity == alone.capacity == gate(x_TD).capacity
    assert (padded.slots_TK[13:] == -1).all() and (padded.weights_TK[13:] == 0).all()
    assert torch.equal(padded.slots_TK[:13], alone.slots_TK)
    for name, value in padded.losses.items():
        torch.testing.assert_close(value, alone.losses[name], msg=name)


def test_ranks_agree_on_capacity() -> None:
    gate = Gate(WIDTH, replace(PLAIN, capacity=Capacity(factor=0)))
    asked: list[int] = []

    def largest(load: int) -> int:
        asked.append(load)
        return 11

    routing = gate(tokens(), largest=largest)
    assert routing.capacity == 11 and asked == [int(routing.loads_E.max())]
    with pytest.raises(UsageError, match="most_tokens=3, but this rank has 12"):
        gate(tokens(), most_tokens=3)


def test_the_gshard_loss() -> None:
    scores_TE = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    experts_TK = torch.tensor([[0, 1], [0, 1], [1, 0], [2, 0]])
    # means .4 .425 .175, shares of first choices .5 .25 .25, of all choices .5 .375 .125
    assert float(losses.gshard(scores_TE, experts_TK)) == pytest.approx(3 * (0.2 + 0.10625 + 0.04375))
    both = losses.gshard(scores_TE, experts_TK, choices=2)
    assert float(both) == pytest.approx(3 * (0.2 + 0.159375 + 0.021875))
    real_T = torch.tensor([True, False, True, False])
    assert float(losses.gshard(scores_TE, experts_TK, real_T)) == pytest.approx(3 * (0.4 * 0.5 + 0.5 * 0.5))
    even = torch.full((6, 3), 1 / 3)
    assert float(losses.gshard(even, torch.tensor([[0], [1], [2]] * 2))) == pytest.approx(1)


def test_the_importance_and_load_loss() -> None:
    logits_TE = torch.tensor([[1.0, 0.0], [0.5, -0.5], [0.0, 2.0]], dtype=torch.float64)
    noisy_TE = torch.tensor([[1.2, 0.1], [0.1, 0.4], [0.3, 1.5]], dtype=torch.float64)

    def normal(value: float) -> float:
        return (1 + math.erf(value / math.sqrt(2))) / 2

    def variation(pair: list[float]) -> float:
        mean = sum(pair) / 2
        return sum((v - mean) ** 2 for v in pair) / 2 / mean**2

    load = [sum(normal((row[e] - max(noisy)) / 0.3) for row, noisy in
                zip(logits_TE.tolist(), noisy_TE.tolist(), strict=True)) for e in range(2)]  # fmt: skip
    expected = (variation(logits_TE.softmax(1).sum(0).tolist()) + variation(load)) / 2
    assert float(losses.importance_load(logits_TE, noisy_TE, 1, 0.3)) == pytest.approx(expected, rel=1e-12)


def test_the_z_loss() -> None:
    logits_TE = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], dtype=torch.float64)
    assert float(losses.z(logits_TE)) == pytest.approx((math.log(2) ** 2 + math.log(4) ** 2) / 2, rel=1e-12)
    assert float(losses.z(logits_TE, torch.tensor([False, True]))) == pytest.approx(math.log(4) ** 2, rel=1e-12)


@pytest.mark.parametrize("many", [0, 3])
def test_losses_of_no_tokens_are_zero_and_have_gradients(many: int) -> None:
    config = replace(PLAIN, noise=1.0, losses=("gshard", "gshard_all", "importance_load", "z"))
    gate = Gate(WIDTH, config)
    routing = gate(tokens(many), torch.ones(many, dtype=torch.bool))
    assert [float(loss.detach()) for loss in routing.losses.values()] == [0, 0, 0, 0]
    sum(routing.losses.values()).backward()
    assert torch.equal(gate.get_parameter("router.weight_ED").grad, torch.zeros(5, WIDTH))


def test_gradients_reach_the_router_through_every_loss() -> None:
    for name in ("gshard", "gshard_all", "importance_load", "z"):
        gate = Gate(WIDTH, replace(PLAIN, noise=1.0, losses=(name,)))
        gate(tokens()).losses[name].backward()
        grad = gate.get_parameter("router.weight_ED").grad
        assert grad is not None and bool(grad.isfinite().all()) and bool(grad.any()), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"top_k": 6}, "top_k=6 of experts=5"),
        ({"top_k": 0}, "top_k=0"),
        ({"experts": 0}, "experts=0"),
        ({"order": "fifo"}, "unknown order 'fifo'"),
        ({"second": "any"}, "unknown second 'any'"),
        ({"normalise": "both"}, "unknown normalise"),
        ({"dtype": "fp16"}, "unknown dtype 'fp16'"),
        ({"router": "hash"}, "unknown router"),
        ({"losses": ("balance",)}, "unknown loss 'balance'"),
        ({"losses": ("importance_load",)}, "needs noise"),
        ({"noise": float("nan")}, "noise=nan"),
        ({"jitter": -0.1}, "jitter=-0.1"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"cosine_temperature": 0.0}, "cosine_temperature=0.0"),
    ],
)
def test_configurations_that_cannot_be_meant(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        replace(PLAIN, **change)


@pytest.mark.parametrize(
    ("x_TD", "padding_T", "words"),
    [
        (torch.zeros(4, 7), None, r"tokens of shape \[4, 7\] for a gate of width 8"),
        (torch.zeros(2, 4, 8), None, r"\[2, 4, 8\]"),
        (torch.zeros(4, 8, dtype=torch.int64), None, "int64"),
        (torch.zeros(4, 8), torch.zeros(3, dtype=torch.bool), r"shape \[3\] .* tokens of shape \[4, 8\]"),
        (torch.zeros(4, 8), torch.zeros(4), "torch.float32"),
    ],
)
def test_tensors_that_do_not_fit(x_TD: torch.Tensor, padding_T: torch.Tensor | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Gate(WIDTH, PLAIN)(x_TD, padding_T)
