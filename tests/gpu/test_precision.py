"""Counts, sums and means over many tokens in narrow dtypes, on one GPU: additions there are by atomics."""

from __future__ import annotations

import os

import pytest

from commbench.machine import gpus

if gpus.count(os.environ) < 1:
    pytest.skip("needs a GPU", allow_module_level=True)

import torch

from moe_ref import Gate, GateConfig
from tests.moe.test_precision import DTYPES, SIZES, check_biases, check_counts, check_losses


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("experts", "k"), SIZES)
def test_losses(experts: int, k: int, dtype: torch.dtype) -> None:
    check_losses(experts, k, dtype, "cuda")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_biases(dtype: torch.dtype, autocast: bool) -> None:
    check_biases(dtype, "cuda", autocast=autocast and dtype != torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts(dtype: torch.dtype) -> None:
    check_counts(dtype, "cuda")


@pytest.mark.parametrize("shape", [(4096, 2, 2048), (1000, 8, 512), (33, 256, 7168), (0, 8, 64), (5, 3, 12)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_gates_product_in_fp32(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    """Of narrow tokens it is as good as fp32 makes it; gradients by tokens are as good as the tokens' dtype."""
    tokens, experts, width = shape
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(tokens, width, generator=generator, device="cuda").to(dtype).requires_grad_()
    weight = (torch.rand(experts, width, generator=generator, device="cuda") - 0.5).mul(2 * width**-0.5)
    grad = torch.randn(tokens, experts, generator=generator, device="cuda") * 1e-2
    gate = Gate(width, GateConfig(experts=experts, top_k=1)).cuda()
    with torch.no_grad():
        gate.router.weight_ED.copy_(weight)
    logits = gate.router(x, torch.float32)
    ours = [logits, *torch.autograd.grad(logits, [gate.router.weight_ED, x], grad)]
    wide = x.detach().double()
    right = [wide @ weight.double().t(), grad.double().t() @ wide, grad.double() @ weight.double()]
    assert [found.dtype for found in ours] == [torch.float32, torch.float32, dtype]
    for found, oracle, most in zip(ours, right, (2e-6, 2e-6, torch.finfo(dtype).eps), strict=True):
        far = (found.detach().double() - oracle).norm() / oracle.norm().clamp(min=1e-30)
        assert float(far) < most
