"""The layer is what its definition says, alone and cut over ranks, and it learns."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from commbench.errors import UsageError
from moe_ref import FFN, Capacity, Gate, GateConfig, MoE, SwiGLU, dispatch, experts
from tests.conftest import REPOSITORY

D, H, E = 8, 16, 4
KEEP_ALL = (Capacity(factor=0), Capacity("dropless"))
CONFIG = GateConfig(experts=E, top_k=2, dtype="fp64", losses=("gshard", "z"))


def layer(config: GateConfig = CONFIG, *, way: str = "sparse", swiglu: bool = False) -> MoE:
    generator = torch.Generator().manual_seed(0)
    gate = Gate(D, config, generator=generator)
    kind = SwiGLU if swiglu else FFN
    return MoE(gate, kind(E, D, H, dtype=torch.float64, generator=generator), permute=way)


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, D, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def dense(moe: MoE, x_TD: Tensor, kept_TK: Tensor, *, normalise: str) -> Tensor:
    """All experts on all tokens, and of that what the routing kept: no buffer, no slots."""
    scores_TE = (x_TD @ moe.gate.get_parameter("router.weight_ED").t()).softmax(1)
    experts_TK = scores_TE.topk(kept_TK.shape[1]).indices
    all_ETD = moe.experts(x_TD.expand(E, *x_TD.shape))
    weights_TK = scores_TE.gather(1, experts_TK)
    if normalise == "before":
        weights_TK = weights_TK / weights_TK.sum(1, keepdim=True)
    weights_TK = weights_TK * kept_TK
    if normalise == "after":
        weights_TK = weights_TK / weights_TK.sum(1, keepdim=True).clamp(min=1e-300)
    rows_TKD = all_ETD[experts_TK, torch.arange(len(x_TD))[:, None]]
    return (weights_TK[:, :, None] * rows_TKD).sum(1)


@pytest.mark.parametrize("way", ["loop", "fairseq_einsum", "sparse"])
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("normalise", ["before", "after", "never"])
@pytest.mark.parametrize("capacity", [Capacity("tutel", 0.5), Capacity("fairseq"), *KEEP_ALL], ids=str)
def test_it_is_what_its_definition_says(capacity: Capacity, normalise: str, swiglu: bool, way: str) -> None:
    moe = layer(replace(CONFIG, capacity=capacity, normalise=normalise), way=way, swiglu=swiglu)
    x_TD = tokens(18).requires_grad_()
    y_TD, routing = moe(x_TD)
    assert (int(routing.dropped) > 0) == (capacity not in KEEP_ALL)
    expected = dense(moe, x_TD, routing.slots_TK >= 0, normalise=normalise)
    torch.testing.assert_close(y_TD, expected, rtol=1e-12, atol=1e-12)
    wanted = [x_TD, *moe.parameters()]
    ours, oracle = (torch.autograd.grad((y**2).sum(), wanted, materialize_grads=True, allow_unused=True)
                    for y in (y_TD, expected))  # fmt: skip
    for one, other in zip(ours, oracle, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_leading_shapes_and_padding() -> None:
    moe = layer()
    x, padding = tokens(3, 6), torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = True
    y, routing = moe(x, padding)
    flat, _ = moe(x.view(18, D), padding.view(18))
    assert y.shape == x.shape and routing.tokens == 18
    assert torch.equal(y.view(18, D), flat) and not y[padding].any()
    poisoned = torch.where(padding[..., None], torch.nan, x)
    again, its = moe(poisoned, padding)
    assert torch.equal(again, y), "what padding holds does not matter"
    (again.sum() + sum(its.losses.values())).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in moe.parameters())


@pytest.mark.parametrize("capacity", [Capacity("deepspeed"), *KEEP_ALL], ids=str)
def test_no_tokens(capacity: Capacity) -> None:
    y, _ = layer(replace(CONFIG, capacity=capacity))(tokens(0).requires_grad_())
    assert y.shape == (0, D)
    y.sum().backward()


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_buffers_are_what_an_all_to_all_sends(factor: float, ranks: int) -> None:
    """ParallelDims by hand: each routes its tokens, block r of its buffer goes to rank r, and comes back."""
    moe = layer(replace(CONFIG, capacity=Capacity("tutel", factor)))
    here = experts.experts_per_rank(E, ranks)
    inputs = [tokens(ranks * 6)[r * 6 : (r + 1) * 6] for r in range(ranks)]
    moves = [dispatch.SparseDispatcher(moe.gate(x_TD)) for x_TD in inputs]
    sent = torch.stack([m.dispatch(x_TD) for m, x_TD in zip(moves, inputs, strict=True)])  # [W, E, C, D]
    capacity = sent.shape[2]
    exchanged = sent.view(ranks, ranks, here, capacity, D).transpose(0, 1)  # of rank r: what came from each
    back = []
    for r in range(ranks):
        mine = FFN(here, D, H, dtype=torch.float64)
        whole = moe.experts.state_dict()
        mine.load_state_dict({name: value[r * here : (r + 1) * here] for name, value in whole.items()})
        blocks_END = experts.by_expert(exchanged[r])
        assert blocks_END.shape == (here, ranks * capacity, D)
        back.append(experts.by_source(mine(blocks_END), ranks))
    returned = torch.stack(back).transpose(0, 1).reshape(ranks, E, capacity, D)
    for r, x_TD in enumerate(inputs):
        torch.testing.assert_close(moves[r].combine(returned[r]), moe(x_TD).y, rtol=1e-12, atol=1e-12)


def test_bf16_layers_with_an_fp32_gate() -> None:
    config = replace(CONFIG, dtype="fp32", capacity=Capacity("dropless"))
    moe = MoE(Gate(D, config), FFN(E, D, H)).to(torch.bfloat16)
    x = tokens(3, 6).bfloat16().requires_grad_()
    y, routing = moe(x)
    assert y.dtype == torch.bfloat16 and routing.weights_TK.dtype == torch.float32
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16


def test_it_learns() -> None:
    """Four clusters with a linear map each: the loss falls to a tenth."""
    generator = torch.Generator().manual_seed(1)
    maps_EDD = torch.randn(E, D, D, generator=generator, dtype=torch.float64) / D**0.5
    centres_ED = 3 * torch.randn(E, D, generator=generator, dtype=torch.float64)
    moe = layer(replace(CONFIG, noise=0.5, capacity=Capacity("fairseq", 1.25)))
    optimizer = torch.optim.Adam(moe.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        cluster_T = torch.randint(E, (64,), generator=generator)
        x_TD = centres_ED[cluster_T] + 0.3 * torch.randn(64, D, generator=generator, dtype=torch.float64)
        wanted_TD = torch.einsum("td,tde->te", x_TD, maps_EDD[cluster_T])
        y_TD, routing = moe(x_TD, generator=generator)
        loss = (y_TD - wanted_TD).square().mean()
        optimizer.zero_grad()
        (loss + 0.01 * routing.losses["gshard"]).backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])


MASK = torch.zeros(12, dtype=torch.bool)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MoE(Gate(D, CONFIG), FFN(2, D, H)), "a gate for 4 experts with 2 experts here"),
        (lambda: MoE(Gate(D, CONFIG), FFN(E, 6, H)), "a gate of width 8 with experts of width 6"),
        (lambda: layer(way="dense"), "unknown permute 'dense'"),
        (lambda: layer()(torch.zeros(3, 7)), r"input of shape \[3, 7\] for a layer of width 8"),
        (lambda: layer()(tokens(3, 4), MASK.view(4, 3)), r"shape \[4, 3\] for input of shape \[3, 4, 8\]"),
        (lambda: layer()(tokens(3, 4), MASK), r"shape \[12\] for input of shape \[3, 4, 8\]"),
    ],
)
def test_what_cannot_be_meant(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


@pytest.mark.parametrize("capacity", [Capacity("tutel", 1.0), Capacity("dropless")])
def test_tokens_of_another_dtype_are_refused(capacity: Capacity) -> None:
    layer = MoE(Gate(8, GateConfig(experts=4, capacity=capacity)), FFN(4, 8, 16, dtype=torch.bfloat16))
    with pytest.raises(UsageError, match=r"tokens of torch.float32 for experts of torch.bfloat16"):
        layer(torch.randn(6, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(6, 8)).y.dtype == torch.bfloat16


def test_the_house() -> None:
    """Small modules; and commbench knows nothing of this package."""
    for path in (REPOSITORY / "moe_ref").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path
    for path in (REPOSITORY / "commbench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "moe_ref" for alias in node.names), path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "moe_ref", path
