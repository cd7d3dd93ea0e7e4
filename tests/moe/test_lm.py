"""The language model: its formulas against counting, causality, blocks that are redone, and that it learns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from commbench.errors import UsageError
from moe_ref import Capacity
from moe_ref.experts import Experts
from moe_ref.lm import LM, LMConfig
from moe_ref.lm.config import flops_per_token, parameters

SMALL = LMConfig(layers=4, width=16, heads=2, hidden=24, context=8, experts=4, capacity=Capacity(factor=0))
# Table 1 of Tutel's announcement.
TABLE1 = LMConfig(
    layers=32, width=4096, heads=32, hidden=16384, context=1024, moe_freq=2, experts=512, vocabulary=51200
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More would wait for each other where CPUs are busy, and cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some(config: LMConfig, sequences: int = 3, seed: int = 5) -> torch.Tensor:
    shape = (sequences, config.context)
    return torch.randint(0, config.vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("moe_freq", [0, 1, 2, 3])
def test_parameters_are_as_many_as_the_formula_says(moe_freq: int, tied: bool) -> None:
    config = replace(SMALL, moe_freq=moe_freq, tied=tied)
    model, formula = LM(config), parameters(config)
    experts = sum(p.numel() for m in model.modules() if isinstance(m, Experts) for p in m.parameters())
    assert experts == formula.experts
    assert sum(p.numel() for p in model.parameters()) == formula.total
    assert sum(block.moe is not None for block in model.blocks) == config.moe_layers
    assert [config.has_experts(layer) for layer in range(4)] == [block.moe is not None for block in model.blocks]


def test_table_1_has_the_parameters_and_the_arithmetic_that_were_derived_for_it() -> None:
    formula = parameters(TABLE1)
    assert formula.total == pytest.approx(1.104e12, rel=2e-3)
    assert formula.replicated == pytest.approx(4.505e9, rel=1e-2)
    assert formula.active == pytest.approx(8.80e9, rel=5e-3)
    assert flops_per_token(TABLE1) == pytest.approx(52.8e9 + 1.6e9, rel=5e-3)
    assert flops_per_token(TABLE1, recompute=True) == pytest.approx((52.8e9 + 1.6e9) * 4 / 3, rel=1e-2)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("moe_freq", [0, 2])
def test_arithmetic_is_what_torch_counts(moe_freq: int, top_k: int) -> None:
    # 24 tokens among 4 experts: capacity factor 1 makes exactly K T rows of them.
    config = replace(SMALL, moe_freq=moe_freq, top_k=top_k, capacity=Capacity("tutel", 1.0))
    model, x_BS = LM(config), some(config)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(x_BS).logits_BSV.sum().backward()
    counted = counter.get_total_flops()
    # Backward of the math attention does what the formula says; the gate's product by top-k has no other counterpart.
    assert counted == pytest.approx(flops_per_token(config) * x_BS.numel(), rel=1e-9)


def test_a_byte_sees_only_those_before_it() -> None:
    config = replace(SMALL, losses=())
    model, x_BS = LM(config), some(config)
    other_BS = x_BS.clone()
    other_BS[:, 5:] = (other_BS[:, 5:] + 1) % 256
    before, after = (model(each).logits_BSV for each in (x_BS, other_BS))
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-5)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


@pytest.mark.parametrize("second", ["all", "random"])
def test_blocks_that_are_redone_give_the_same(second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With draws too: they depend on the seed and the layer, not on how often a block has run."""
    if second == "random":
        gate = replace(SMALL.gate, second="random", jitter=0.1)
        monkeypatch.setattr(LMConfig, "gate", property(lambda self: gate))
    model, x_BS = LM(SMALL), some(SMALL)
    found = []
    for contexts in (None, lambda: (nullcontext(), nullcontext())):
        model.zero_grad()
        result = model(x_BS, seed=3, contexts=contexts)
        loss = functional.cross_entropy(result.logits_BSV.flatten(0, 1), x_BS.flatten()) + result.losses["gshard"]
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) == 1 + len(list(model.parameters()))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_first_weights_depend_on_the_seed_alone() -> None:
    one, same, other = LM(SMALL, seed=1), LM(SMALL, seed=1), LM(SMALL, seed=2)
    for (name, a), (_, b), (_, c) in zip(*(m.named_parameters() for m in (one, same, other)), strict=True):
        assert torch.equal(a, b), name
        if a.dim() > 1 and not name.endswith(("b1_EH", "b2_ED", "qkv_bias_3I")):
            assert not torch.equal(a, c), name
    experts = next(m for m in one.modules() if isinstance(m, Experts))
    assert not torch.equal(experts.get_parameter("w1_EDH")[0], experts.get_parameter("w1_EDH")[1])


def test_it_knows_nothing_first_and_learns_a_text_by_heart() -> None:
    config = replace(SMALL, width=32, hidden=64)
    model = LM(config)
    text = torch.tensor(list(b"a loaf is a loaf is a"))
    x_BS, y_BS = text[:8][None], text[1:9][None]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(100):
        loss = functional.cross_entropy(model(x_BS).logits_BSV.flatten(0, 1), y_BS.flatten())
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(256), abs=0.3) and losses[-1] < 0.1


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({"heads": 3}, "width=16 does not divide among heads=3"),
    "layers": ({"layers": 0}, "layers is 0"),
    "moe_freq": ({"moe_freq": -1}, "moe_freq is -1"),
    "top_k": ({"top_k": 5}, "top_k=5 of experts=4"),
    "activation": ({"activation": "tanh"}, "unknown activation 'tanh'"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_sizes_that_do_not_fit_are_refused(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(UsageError, match=message):
        replace(SMALL, **changes)


def test_inputs_that_do_not_fit_are_refused() -> None:
    model = LM(SMALL)
    for wrong in (torch.zeros(2, 9, dtype=torch.int64), torch.zeros(8, dtype=torch.int64), torch.zeros(2, 8)):
        with pytest.raises(UsageError, match="bytes of shape"):
            model(wrong)
