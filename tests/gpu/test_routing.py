"""A gate by its kernels beside the plain one, on one GPU: all that a routing has, and its gradients."""

from __future__ import annotations

import os

import pytest

from commbench.machine import gpus

if gpus.count(os.environ) < 1:
    pytest.skip("needs a GPU", allow_module_level=True)

import torch

from moe_ref import Capacity, Gate, GateConfig, Routing, fused, fused_gate
from tests.kernels.routing import SIZES, compare

if reason := fused.unsupported(torch.device("cuda")):
    pytest.skip(f"needs {reason}", allow_module_level=True)

WIDTH = 64
CAPACITIES = {"tight": Capacity("tutel", 0.5), "even": Capacity("tutel", 1.0), "none": Capacity("tutel", 1e-9),
              "load": Capacity("tutel", 0), "dropless": Capacity("dropless")}  # fmt: skip
BALANCE = ("gshard", "gshard_all", "z")


def test_the_kernels_are_their_references() -> None:
    assert compare("cuda", (*SIZES, (4096, 64, 8), (1000, 8, 2))) == 12 * 6 * 2


def routed(gate: Gate, x: torch.Tensor, padding: torch.Tensor | None, *, plain: bool) -> Routing:
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            patch.setattr(fused_gate, "unsupported", lambda logits, **how: "plain is asked for")
        found: Routing = gate(x, padding)
        return found


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", CAPACITIES)
@pytest.mark.parametrize(("experts", "k"), [(2, 1), (2, 2), (8, 2), (64, 8), (256, 8), (5, 5)])
def test_the_fused_gate_is_the_plain_one(experts: int, k: int, name: str, padded: bool) -> None:
    ways = ("before", "after", "never")
    for number, tokens in enumerate((0, 1, 7, 4096)):
        normalise = ways[(number + list(CAPACITIES).index(name)) % 3]
        config = GateConfig(experts=experts, top_k=k, capacity=CAPACITIES[name], normalise=normalise, losses=BALANCE)
        gate = Gate(WIDTH, config, generator=torch.Generator().manual_seed(0)).cuda()
        generator = torch.Generator("cuda").manual_seed(tokens)
        x = torch.randn(tokens, WIDTH, generator=generator, device="cuda").requires_grad_()
        padding = torch.rand(tokens, generator=generator, device="cuda") < 0.3 if padded else None
        ours, right = (routed(gate, x, padding, plain=plain) for plain in (False, True))
        assert (ours.maps is not None) == bool(tokens) and right.maps is None
        real = slice(None) if padding is None else ~padding  # logits of padding are equal, and the choice is free
        assert torch.equal(ours.experts_TK[real], right.experts_TK[real])
        for field in ("slots_TK", "counts_E", "loads_E"):
            assert torch.equal(getattr(ours, field), getattr(right, field)), field
        assert (ours.rows, ours.capacity) == (right.rows, right.capacity)
        assert torch.equal(ours.rows_TK(), right.rows_TK()) and torch.equal(ours.choice_R(), right.choice_R())
        torch.testing.assert_close(ours.weights_TK, right.weights_TK, rtol=1e-5, atol=1e-6)
        given = torch.randn(right.weights_TK.shape, generator=generator, device="cuda")
        found = []
        for routing in (ours, right):
            losses = [routing.losses[loss] for loss in BALANCE]
            grads = torch.autograd.grad([routing.weights_TK, *losses], [x, *gate.parameters()],
                                        [given, *map(torch.ones_like, losses)])  # fmt: skip
            found.append([*losses, *grads])
        for one, oracle in zip(*found, strict=True):
            torch.testing.assert_close(one, oracle, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_gates_are_good_to_their_bits(dtype: torch.dtype) -> None:
    gate = Gate(WIDTH, GateConfig(experts=8, top_k=2, dtype="input"), generator=torch.Generator().manual_seed(0))
    gate = gate.cuda().to(dtype)
    x = torch.randn(32768, WIDTH, device="cuda", dtype=dtype)
    ours, right = (routed(gate, x, None, plain=plain) for plain in (False, True))
    assert ours.weights_TK.dtype == dtype and ours.losses["gshard"].dtype == dtype
    assert float((ours.loads_E - right.loads_E).abs().max()) < 0.01 * 65536  # of equal logits either may be chosen
    assert float(ours.losses["gshard"]) == pytest.approx(float(right.losses["gshard"]), rel=0.01)
    same = (ours.experts_TK == right.experts_TK).all(1) & (ours.slots_TK >= 0).all(1) & (right.slots_TK >= 0).all(1)
    assert float(same.float().mean()) > 0.5
    far = (ours.weights_TK - right.weights_TK)[same].float().abs().max()
    assert float(far) < 4 * torch.finfo(dtype).eps
